"""`python -m benchmarks.peers.summary`: what `make peers` found, in one page: optimization, serving, training.

Reads what the three commands left in the folder of reports; a part that has not been run says which command runs it.
"""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Annotated, Any

import typer

import catalog
import console
from benchmarks.peers import exported, serving, standings
from catalog import KilnError

app = console.app("One summary of the comparisons with peers.")


@app.command()
def summarize(
    reports: Annotated[Path, typer.Option(help="the folder that holds what the commands wrote")] = Path("reports"),
) -> None:
    """Prints the summary, and writes it to peers.md in that folder."""
    parts = {"Optimization": _export, "Serving": _serving, "Training": _training}
    lines = ["# modelkiln beside its peers"]
    for title, tell in parts.items():
        try:
            told = tell(reports)
        except KilnError as error:
            told = [str(error)]
        lines += ["", f"## {title}", "", *(f"- {line}" for line in told)]
    catalog.write_atomic(reports / "peers.md", "\n".join(lines) + "\n")
    console.out.print("\n".join(lines), highlight=False, markup=False, soft_wrap=True)


def _export(reports: Path) -> list[str]:
    """For each model: our int8 against what Olive and NNCF made of the same float model, and the best of ours."""
    found = _read(reports / "peers-export.json", "make peers-export")
    try:
        rows = [exported.Contender(folder="", file="", **row) for row in found["rows"]]
    except (KeyError, TypeError) as error:
        raise KilnError(f"{reports / 'peers-export.json'} is of another version; run: make peers-export") from error
    models = list(dict.fromkeys(row.model for row in rows))
    told = [line for model in models for line in exported.verdicts([row for row in rows if row.model == model])]
    return [f"measured {found.get('created')}", *told]


def _serving(reports: Path) -> list[str]:
    """A verdict for each peer."""
    told, rows = serving.read(reports / "peers-serving.json")
    return [f"{told['model']}/{told['version']}, measured {told['created']}", *standings.verdicts(rows)]


def _training(reports: Path) -> list[str]:
    """How fast the loop is beside a bare `model.fit`, for each network."""
    found = _read(reports / "training-speed.json", "make peers")
    told = []
    for model, row in found.items():
        if isinstance(row, dict):
            ratio = statistics.median(row["ratios"])
            lose = "we lose: " if ratio < 1 else ""
            rates = f"{row['ours']:,.0f} images/s against {row['bare']:,.0f} of a bare fit"
            spread = f"{min(row['ratios']):.3f} to {max(row['ratios']):.3f} over {len(row['ratios'])} rounds"
            told.append(f"{model}: {lose}{rates} ({ratio:.3f} times, {spread})")
    return told


def _read(path: Path, command: str) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise KilnError(f"{path} cannot be read ({type(error).__name__}); run: {command}") from error
    return found


if __name__ == "__main__":
    console.run(app)
