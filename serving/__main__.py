"""`python -m serving predict images/*.png` asks a running service; `check` says what would be served, `settings` how.

`check` verifies hashes and loads every variant, as the service does before its port opens.
"""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import rich.table
import typer

import console
from serving.settings import Settings, variable

if TYPE_CHECKING:
    from serving.models import repository

app = console.app("Asks the service, or checks what it would serve.")


@app.command()
def predict(
    images: Annotated[list[Path], typer.Argument(help="image files, or folders of them")],
    url: Annotated[str, typer.Option(help="of the service")] = "http://localhost:3000",
    model: Annotated[str, typer.Option(help="a network; the service's default where left out")] = "",
    version: Annotated[str, typer.Option(help="a variant; the network's default where left out")] = "",
    top: Annotated[int, typer.Option(min=1, help="classes to tell")] = 3,
    format: Annotated[str, typer.Option(help="csv or json (one object a line)")] = "csv",
    out: Annotated[Path | None, typer.Option(help="a file, else standard output")] = None,
    jobs: Annotated[int, typer.Option(min=1, max=64, help="requests at a time")] = 4,
) -> None:
    """Classifies image files by a running service; MODELKILN_TOKEN is sent where it is set. Exits 1 if one failed."""
    from serving import ask

    token = os.environ.get(variable("token"), "")
    if failed := ask.run(images, url, token, model, version, top, format, out, jobs):
        console.err.print(f"{failed} of the files could not be classified; the column 'error' says why", style="red")
        raise typer.Exit(1)


@app.command()
def settings() -> None:
    """Prints every setting of the service: its variable, its default and what is in force."""
    in_force = Settings.from_environment()
    table = rich.table.Table("variable", "default", "in force")
    for field in dataclasses.fields(Settings):
        told = [str(getattr(which, field.name)) for which in (Settings(), in_force)]
        told = ["(secret)" if text and field.name == "token" else text for text in told]
        table.add_row(variable(field.name), *told)
    console.out.print(table)


@app.command()
def check(
    store: Annotated[Path | None, typer.Option(help="the folder of models, else MODELKILN_STORE or artifacts")] = None,
) -> None:
    """Verifies hashes and loads every variant; exits 1 naming the first bad file."""
    from serving.models import repository

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
