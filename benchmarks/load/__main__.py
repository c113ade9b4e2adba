"""`python -m benchmarks.load`: every row, seconds as they come.

    python -m benchmarks.load --rows predict,v2 --seconds 10 --rounds 3
    python -m benchmarks.load --rows tail --seconds 100       over five minutes, in three rounds
    python -m benchmarks.load --rows memory --seconds 600     over half an hour

Both sides of a row run at the same time, one of them under load while the other waits, turn by turn; a figure is the
median of the rounds. The generator shares the machine, and `load_before` says what else did.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Annotated

import rich.table
import typer

import catalog
import console
from benchmarks import machine
from benchmarks.load.plan import Plan
from benchmarks.load.rows import ROWS, measure
from catalog import ROOT, KilnError, Store


def main(
    rows: Annotated[str, typer.Option(help=f"which, separated by commas: {', '.join(ROWS)}")] = ",".join(ROWS),
    store: Annotated[Path | None, typer.Option(help="the folder of models; without one, the zoo")] = None,
    seconds: Annotated[float, typer.Option(min=0.2, help="of each load")] = 5,
    rounds: Annotated[int, typer.Option(min=1)] = 3,
    threads: Annotated[int, typer.Option(min=1, help="of the runtime, on both sides")] = 1,
    model: Annotated[str, typer.Option(help="the small network")] = "lenet",
    deep: Annotated[str, typer.Option(help="the network of the V2 row")] = "simcnn",
    out: Annotated[Path, typer.Option(help="the file of figures")] = ROOT / "reports" / "load.json",
) -> None:
    """Puts the service under load and compares; exits 1 if a goal that was measured is missed."""
    names = [name.strip() for name in rows.split(",") if name.strip()]
    if unknown := [name for name in names if name not in ROWS]:
        raise KilnError(f"there is no row {unknown[0]!r}; there are: {', '.join(ROWS)}")
    plan = Plan(Store(store or ROOT / "zoo"), seconds, rounds, threads, model, deep)
    before = machine.load()
    found = measure(plan, names)
    told = {
        "created": catalog.now(),
        "commit": catalog.commit(),
        "plan": {"seconds": seconds, "rounds": rounds, "threads": threads, "model": model, "deep": deep},
        "machine": dataclasses.asdict(machine.read(("bentoml", "fastapi", "uvicorn", "uvloop"))),
        "load_before": before,
        "rows": [dataclasses.asdict(row) for row in found],
    }
    catalog.write_atomic(out, json.dumps(told, indent=2) + "\n")
    table = rich.table.Table("row", "figure", "goal", "", "from")
    for row in found:
        table.add_row(row.name, row.figure, row.goal, row.verdict, row.beside)
    console.out.print(table)
    console.out.print(f"all figures: {out}", highlight=False)
    if any(row.met is False for row in found):
        raise typer.Exit(1)


if __name__ == "__main__":
    application = console.app("Load tests.")
    application.command("run")(main)
    console.run(application)
