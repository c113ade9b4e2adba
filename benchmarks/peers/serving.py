"""`python -m benchmarks.peers.serving`: the service beside its peers, with one ONNX file, in one run.

    python -m benchmarks.peers.serving                                  everybody, LeNet int8 of the zoo
    python -m benchmarks.peers.serving --peers fastapi,litserve --connections 16 --seconds 2 --rounds 1
    python -m benchmarks.peers.serving --store artifacts --model mobilenetv2

`make peers-serving` installs the peers first. A peer that is not installed, does not start or answers wrongly keeps
its row with the reason. The load generator shares the machine with the server, so beside requests/s there is the
processor time that a request costs, which other work on the machine disturbs least.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
import tempfile
from pathlib import Path
from typing import Annotated, Any

import typer

import catalog
import console
from benchmarks import machine
from benchmarks.peers import contest, standings
from benchmarks.peers.contenders import OURS, Contender, Subject
from benchmarks.peers.entrants import EVERY
from catalog import CARD, ROOT, KilnError, Store

app = console.app("Compares the service with MLServer, LitServe, Ray Serve, plain BentoML and FastAPI by hand.")
SCHEMA = 1


@app.command()
def compare(
    store: Annotated[Path | None, typer.Option(help="the folder of models; without one, the zoo")] = None,
    model: Annotated[str, typer.Option(help="a model of the store")] = "lenet",
    version: Annotated[str, typer.Option(help="its variant, an ONNX file")] = "onnx-int8",
    connections: Annotated[str, typer.Option(help="numbers of clients, separated by commas")] = "1,16,64",
    seconds: Annotated[float, typer.Option(min=0.2, help="of each load")] = 5.0,
    rounds: Annotated[int, typer.Option(min=1, help="of everybody, in turn")] = 3,
    threads: Annotated[int, typer.Option(min=1, help="of everybody's session")] = 1,
    batch: Annotated[int, typer.Option(min=1, help="images the peers may compute together; 1: as they come")] = 1,
    peers: Annotated[str, typer.Option(help=f"separated by commas: {', '.join(EVERY)}")] = ",".join(EVERY),
    environments: Annotated[Path, typer.Option(help="where make peers-setup installed them")] = ROOT / ".venv-peers",
    out: Annotated[Path, typer.Option(help="the file of figures; the table goes beside it")] = Path(
        "reports/peers-serving.json"
    ),
) -> None:
    """Starts every peer in turn, checks its answers, measures it, and says where we lose."""
    entered = chosen(peers)
    plan = contest.Plan(counts(connections), seconds, rounds)
    before = machine.load()
    with tempfile.TemporaryDirectory(prefix="peers-", ignore_cleanup_errors=True) as scratch, console.progress() as bar:
        subject = single(Store(store or ROOT / "zoo"), model, version, threads, batch, Path(scratch), environments)
        task = bar.add_task("starting", total=plan.rounds * plan.steps * len(entered))

        def tick(now: str, steps: int) -> None:
            bar.update(task, advance=steps, description=now or None)

        rows = contest.contest(plan, subject, entered, tick)
        digest = catalog.sha256_of(subject.file)
    told = {
        "schema": SCHEMA,
        "created": catalog.now(),
        "commit": catalog.commit(),
        "model": model,
        "version": version,
        "sha256": digest,
        "threads": threads,
        "batch": batch,
        "plan": dataclasses.asdict(plan),
        "machine": dataclasses.asdict(machine.read(("bentoml", "fastapi", "uvicorn", "uvloop"))),
        "load_before": before,
        "load_after": machine.load(),
        "rows": [dataclasses.asdict(row) for row in rows],
    }
    catalog.write_atomic(out, json.dumps(told, indent=2) + "\n")
    page = out.with_suffix(".md")
    catalog.write_atomic(page, standings.markdown(told, rows))
    for line in standings.verdicts(rows):
        console.out.print(line, highlight=False, markup=False, soft_wrap=True)
    console.out.print(f"all figures: {out}; the tables: {page}", highlight=False, soft_wrap=True)


def chosen(names: str) -> list[Contender]:
    """The contenders by their names, ours always first: everything is told as a ratio to it.

    Raises:
        KilnError: There is none of a name.
    """
    wanted = [name.strip() for name in names.split(",") if name.strip()]
    if unknown := [name for name in wanted if name not in EVERY]:
        raise KilnError(f"there is no peer {unknown[0]!r}; there are: {', '.join(EVERY)}")
    return [OURS, *(EVERY[name] for name in dict.fromkeys(wanted) if name != OURS.name)]


def counts(text: str) -> tuple[int, ...]:
    """Numbers of connections.

    Raises:
        KilnError: One is none.
    """
    words = [word.strip() for word in text.split(",") if word.strip()]
    if not words or not all(word.isdecimal() and 0 < int(word) <= 1024 for word in words):
        raise KilnError(f"--connections is {text!r}; it takes numbers from 1 to 1024, separated by commas: 1,16,64")
    return tuple(dict.fromkeys(int(word) for word in words))


def single(
    store: Store, model: str, version: str, threads: int, batch: int, scratch: Path, environments: Path
) -> Subject:
    """What everybody serves; the service gets a store of this one variant, as the peers get one file.

    Raises:
        KilnError: The store has no such model, or the variant is no ONNX file that may be served.
    """
    card = store.card(model)
    fit = {c.variant.version: c for c in store.variants(model) if c.variant.format == "onnx" and c.status == "ok"}
    if version not in fit:
        raise KilnError(f"{store.root} has no ONNX variant {model}/{version}; there are: {', '.join(fit) or 'none'}")
    alone = Store(scratch / "store")
    folder = alone.variant_dir(fit[version].variant)
    shutil.copytree(store.variant_dir(fit[version].variant), folder)
    shutil.copy(store.model_dir(model) / CARD, alone.model_dir(model) / CARD)
    file = folder / fit[version].file
    info = card.dataset
    size = info.height, info.width
    return Subject(model, version, file, alone.root, info.classes, *size, threads, batch, scratch, environments)


def read(path: Path) -> tuple[dict[str, Any], list[contest.Row]]:
    """What a run wrote.

    Raises:
        KilnError: It is not there, or of another version of this program.
    """
    try:
        told = json.loads(path.read_text(encoding="utf-8"))
        rows = [
            contest.Row(**{**row, "cells": [contest.Cell(**cell) for cell in row["cells"]]}) for row in told["rows"]
        ]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise KilnError(f"{path} cannot be read ({error}); run: make peers-serving") from error
    return told, rows


if __name__ == "__main__":
    console.run(app)
