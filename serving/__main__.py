"""`python -m serving check`: verifies hashes and loads every variant, as the service does before its port opens."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated

import rich.table
import typer

import console
from serving import repository
from serving.settings import Settings

app = console.app("Checks what the service would serve.")


@app.callback()
def commands() -> None:
    """Keeps `check` a command by name, though it is the only one."""


@app.command()
def check(
    store: Annotated[Path | None, typer.Option(help="the folder of models, else MODELKILN_STORE or artifacts")] = None,
) -> None:
    """Verifies hashes and loads every variant; exits 1 naming the first bad file."""
    settings = Settings.from_environment()
    if store is not None:
        settings = dataclasses.replace(settings, store=store)
    served = repository.load(settings)
    table = rich.table.Table("model", "version", "status", "top-1 %", "KiB", "ms")
    for card, _, found in repository.candidates(repository.stores(settings)):
        for candidate in found:
            table.add_row(card.model, *_row(served, candidate))
    console.out.print(table)
    console.out.print(f"a request that names no model is answered by {served.default}", highlight=False)


def _row(served: repository.Repository, candidate: repository.Candidate) -> list[str]:
    card = candidate.card
    top1 = f"{card.accuracy.top1:.2f}" if card.accuracy else ""
    if candidate.skipped:
        return [card.variant.version, candidate.skipped, top1, f"{card.size_bytes / 1024:.0f}", ""]
    model = served.models[card.variant.model]
    version = card.variant.version
    status = "answers by default" if version == model.default else "served"
    return [version, status, top1, f"{card.size_bytes / 1024:.0f}", f"{model.variants[version].warm_ms:.3f}"]


if __name__ == "__main__":
    console.run(app)
