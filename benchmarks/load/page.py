"""`python -m benchmarks.load.page`: what `make load` found, as a page. Of a row that several runs have, the last.

python -m benchmarks.load.page reports/load.json reports/load-memory.json --publish
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

import catalog
import console
from benchmarks.load.plan import Row
from benchmarks.peers import serving, standings, summary
from catalog import ROOT, KilnError

PAGE = ROOT / "docs" / "load.md"
HEAD = """# Under load

Written from `make load`; do not edit. The service, its peer and the generator share one machine and take turns; a
figure is the median of the rounds. One worker, one thread of the runtime, and PNG uploads for LeNet's int8 variant
unless the row says otherwise. FastAPI stands for an application written by hand over the same model, session and
decoder (`benchmarks/peers/fastapi_app.py`).
"""

app = console.app("One page of the load tests.")


@app.command()
def write(
    reports: Annotated[list[Path], typer.Argument(help="what `make load` wrote, later ones over earlier ones")],
    peers: Annotated[Path | None, typer.Option(help="what `make peers-serving` wrote, to be told as well")] = None,
    publish: Annotated[bool, typer.Option("--publish", help="write docs/load.md as well")] = False,
) -> None:
    """Prints the table, and writes it to docs/load.md where it is to be published."""
    text = page([_read(path) for path in reports])
    if peers is not None:
        text += beside(peers)
    console.out.print(text, highlight=False, markup=False, soft_wrap=True)
    if publish:
        catalog.write_atomic(PAGE, text)


def page(runs: list[dict[str, Any]]) -> str:
    """The page in Markdown."""
    rows: dict[str, tuple[Row, int]] = {}
    for number, run in enumerate(runs):
        rows |= {row["name"]: (Row(**row), number) for row in run["rows"]}
    lines = ["| what | goal | seen | | from | run |", "|---|--:|--:|---|---|--:|"]
    for row, number in rows.values():
        verdict = f"**{row.verdict}**" if row.met is False else row.verdict
        goal = row.goal.replace(">=", "≥").replace("<=", "≤")
        lines.append(f"| {row.name} | {goal} | {row.figure} | {verdict} | {row.beside} | {number + 1} |")
    used = {number for _, number in rows.values()}
    told = [f"{number + 1}. {_how(run)}" for number, run in enumerate(runs) if number in used]
    return "\n".join([HEAD, *lines, "", "The runs:", "", *told, ""])


def beside(path: Path) -> str:
    """The section of what `make peers-serving` wrote.

    Raises:
        KilnError: It is not there, or of another version of this program.
    """
    told, rows = serving.read(path)
    verdicts = "\n".join(f"- {line}" for line in standings.verdicts(rows))
    blocks = [f"## {told['model']} beside its peers", verdicts, *standings.sections(told, rows, "###")]
    return "\n" + "\n\n".join(block.strip("\n") for block in blocks) + "\n"


def _how(run: dict[str, Any]) -> str:
    plan, machine = run["plan"], run["machine"]
    return (
        f"{run['created']}, commit `{run['commit']}`: {plan['rounds']} rounds of {plan['seconds']:g} s; "
        f"{machine['cpu']}, {machine['logical_cores']} cores, load average {run['load_before'][0]:.1f} before."
    )


def _read(path: Path) -> dict[str, Any]:
    found = summary.read_json(path, "make load")
    try:
        page([found])
    except (KeyError, TypeError, IndexError) as error:
        raise KilnError(f"{path} is of another version; run: make load") from error
    return found


if __name__ == "__main__":
    console.run(app)
