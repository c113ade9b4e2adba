"""`python -m benchmarks.peers.summary`: what `make peers` found, in one page: optimization, serving, training.

Reads what the three commands left in the folder of reports; a part that has not been run says which command runs it,
and so does one whose figures are of before `--since`, which `make peers` sets to its own beginning: its command failed.
"""

from __future__ import annotations

import json
import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

import catalog
import console
from benchmarks.peers import exported, serving, standings
from catalog import ROOT, KilnError

PAGE = ROOT / "docs" / "peers.md"
HEAD = """# Beside its peers

Written by `python -m benchmarks.peers.summary --publish` from what `make peers` measured; do not edit. Everybody has
the same model, the same images, the same threads and the settings that its own documentation recommends, on the same
machine, in turns. Where we lose, it says so.
"""


@dataclass(frozen=True)
class Origin:
    """The file that a part comes from, when, at which commit and on what it was measured, and what measures again."""

    path: Path
    created: str
    commit: str
    cpu: str
    run: str


Told = tuple[list[str], list[str], Origin]  # sentences, blocks of figures, where they come from
app = console.app("One page of the comparisons with peers.")


@app.command()
def summarize(
    reports: Annotated[Path, typer.Option(help="the folder that holds what the commands wrote")] = Path("reports"),
    publish: Annotated[
        bool, typer.Option("--publish", help="write docs/peers.md as well, if nothing is missing")
    ] = False,
    since: Annotated[str, typer.Option(help="figures of before this UTC time, as 2026-01-31T12:00:00Z, are none")] = "",
) -> None:
    """Prints the verdicts, and writes them with all figures to peers.md in that folder."""
    parts = {"Optimization": _export, "Serving": _serving, "Training": _training}
    page, missing, origins = [HEAD], list[str](), dict[str, Origin]()
    for title, tell in parts.items():
        try:
            said, figures, origin = tell(reports)
            _check(origin, since)
            origins[title] = origin
        except KilnError as error:
            missing.append(str(error))
            said, figures = [str(error)], []
        bullets = "\n".join(f"- {line}" for line in said)
        page += [f"## {title}\n\n{bullets}\n", *(f"{block}\n" for block in figures)]
        console.out.print(f"{title}\n{bullets}\n", highlight=False, markup=False, soft_wrap=True)
    if caution := _apart(origins):
        page.insert(1, f"> {caution}\n")
        console.out.print(caution, highlight=False, markup=False, soft_wrap=True)
    text = "\n".join(page)
    catalog.write_atomic(reports / "peers.md", text)
    if publish and missing:
        raise KilnError(f"not published: {'; '.join(missing)}")
    if publish:
        catalog.write_atomic(PAGE, text)


def _check(origin: Origin, since: str) -> None:
    """Refuses figures of before `since`; both are UTC in ISO 8601, whose order is that of their letters."""
    if origin.created < since:
        raise KilnError(
            f"{origin.path} is of {origin.created} (commit {origin.commit}, {origin.cpu}), before this began at "
            f"{since}: its part failed, and nothing of it is told; run: {origin.run}"
        )


def _apart(origins: dict[str, Origin]) -> str:
    """That the parts are of several commits or machines, in a sentence; "" where they are of one."""
    if len({(one.commit, one.cpu) for one in origins.values()}) < 2:
        return ""
    told = "; ".join(f"{title} at commit {one.commit} on {one.cpu}, {one.created}" for title, one in origins.items())
    return f"The parts were measured at different commits or on different machines: {told}."


def _export(reports: Path) -> Told:
    """For each model: our int8 against what Olive and NNCF made of the same float model, and the best of ours."""
    path = reports / "peers-export.json"
    found = read_json(path, "make peers-export")
    try:
        rows = [exported.Contender(folder="", file="", **row) for row in found["rows"]]
        how = (
            f"Every peer quantizes our fp32 ONNX by its defaults with the same calibration images; {found['threads']} "
            f"threads, {found['machine']['cpu']}, load average {found['load_before'][0]:g} before and "
            f"{found['load_after'][0]:g} after; commit `{found['commit']}`, {found['created']}."
        )
        origin = Origin(path, found["created"], found["commit"], found["machine"]["cpu"], "make peers-export")
    except (KeyError, TypeError, IndexError) as error:
        raise KilnError(f"{path} is of another version; run: make peers-export") from error
    models = list(dict.fromkeys(row.model for row in rows))
    told = [line for model in models for line in exported.verdicts([row for row in rows if row.model == model])]
    return told, [how, "\n".join(exported.markdown(rows))], origin


def _serving(reports: Path) -> Told:
    """A verdict for each peer."""
    path = reports / "peers-serving.json"
    told, rows = serving.read(path)
    origin = Origin(path, told["created"], told["commit"], told["machine"]["cpu"], "make peers-serving")
    return standings.verdicts(rows), standings.sections(told, rows, "###"), origin


def _training(reports: Path) -> Told:
    """How fast the loop is beside a bare `model.fit`, for each network."""
    path = reports / "training-speed.json"
    found = read_json(path, "make peers")
    rows = {model: row for model, row in found.items() if isinstance(row, dict) and "ratios" in row}
    try:
        if not rows:
            raise KeyError("ratios")
        how = (
            "The same network, recipe and arrays in one process, in turns: our loop, and a bare `model.fit`. "
            f"{found['cpu']}, load average {found['load_before']:g} before; commit `{found['commit']}`, "
            f"{found['created']}."
        )
        origin = Origin(path, found["created"], found["commit"], found["cpu"], "make peers")
        return [_trained(model, row) for model, row in rows.items()], [how], origin
    except (KeyError, TypeError) as error:
        raise KilnError(f"{path} is of another version; run: make peers") from error


def _trained(model: str, row: dict[str, Any]) -> str:
    ratio = statistics.median(row["ratios"])
    lose = "we lose: " if ratio < 1 else ""
    rates = f"{row['ours']:,.0f} images/s against {row['bare']:,.0f} of a bare fit"
    spread = f"{min(row['ratios']):.3f} to {max(row['ratios']):.3f} over {len(row['ratios'])} rounds"
    return f"{model}: {lose}{rates} ({ratio:.3f} times, {spread})"


def read_json(path: Path, command: str) -> dict[str, Any]:
    """What a command wrote.

    Raises:
        KilnError: It is not there or not JSON; names the command.
    """
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise KilnError(f"{path} cannot be read ({type(error).__name__}); run: {command}") from error
    return found


if __name__ == "__main__":
    console.run(app)
