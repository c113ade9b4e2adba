"""The tables and sentences of `benchmarks.peers.serving`: what everybody did, as ratios to ours, and where we lose."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from benchmarks.peers.contenders import OURS
from benchmarks.peers.contest import Cell, Row
from benchmarks.reporting import words

EVEN = 0.05  # a difference below it is told, and told to be within what one run can say
TITLES = {"png": "One PNG a request", "tensor": "One tensor a request, each by its own fastest documented form"}


def markdown(told: dict[str, Any], rows: list[Row]) -> str:
    """The page beside the file of figures."""
    said = ["## In words", "\n".join(f"- {line}" for line in verdicts(rows))]
    return "\n\n".join(["# The service beside its peers", *sections(told, rows), *said]) + "\n"


def sections(told: dict[str, Any], rows: list[Row], level: str = "##") -> list[str]:
    """How it was measured, and the tables, each below a heading of that level."""
    plan = told["plan"]
    threads, rounds = (
        f"{n} {word}{'s' if n != 1 else ''}" for n, word in ((told["threads"], "thread"), (plan["rounds"], "round"))
    )
    first = (
        f"{told['model']}/{told['version']}, the same file (sha256 {told['sha256'][:12]}) and {threads} for every "
        f"session; medians of {rounds} of {plan['seconds']:g} s, everybody in turn. Every server has one process "
        "that computes, and was checked first: its answers for 20 images are those of the session called in process. "
        f"{told['machine']['cpu']}, {told['machine']['logical_cores']} cores, which the load generator shares; load "
        f"average {told['load_before'][0]:g} before and {told['load_after'][0]:g} after; commit `{told['commit']}`, "
        f"{told['created']}."
    )
    batching = (
        f"up to {told['batch']} images, where they can" if told["batch"] > 1 else "not at all, which is their default"
    )
    first += (
        " Requests that arrive together are computed together by ours, as it comes; FastAPI by hand does not, and the "
        f"peers do so {batching}."
    )
    busy = told["load_before"][0] > 0.5
    parts = [first]
    if busy:
        parts.append("> The machine was busy with other work when this began: figures are noisy, ratios less so.")
    for way, title in TITLES.items():
        parts += [f"{level} {title}", _loads(rows, way)]
    return [*parts, f"{level} Start and memory", _starts(rows)]


def _loads(rows: list[Row], way: str) -> str:
    """One line for each server and number of connections, the fastest first; failed ones with why."""
    lines = ["| connections | server | asked with | requests/s | ours to it | p50 ms | p99 ms | CPU µs a request |"]
    lines.append("|--:|---|---|--:|--:|--:|--:|--:|")
    mine = {cell.connections: cell for row in rows if row.name == OURS.name for cell in row.cells if cell.way == way}
    counts = list(dict.fromkeys(cell.connections for row in rows for cell in row.cells if cell.way == way))
    for count in counts:
        cells = [(row, cell) for row in rows for cell in row.cells if (cell.way, cell.connections) == (way, count)]
        for row, cell in sorted(cells, key=lambda pair: -(pair[1].requests_per_s or 0.0)):
            lines.append(_line(row, cell, mine.get(count)))
    lines += [f"| | {row.title} | | failed | | | | {_safe(row.reason)} |" for row in rows if row.reason]
    return "\n".join(lines)


def _line(row: Row, cell: Cell, mine: Cell | None) -> str:
    name = f"**{row.title}**" if row.name == OURS.name else row.title
    if cell.reason:
        return f"| {cell.connections} | {name} | {cell.says} | failed | | | | {_safe(cell.reason)} |"
    figures = (cell.p50_ms, cell.p99_ms, cell.cpu_us_per_request)
    shown = " | ".join(words.digits(figure) for figure in figures)
    rate = words.digits(cell.requests_per_s)
    return f"| {cell.connections} | {name} | {cell.says} | {rate} | {_ratio(row, cell, mine)} | {shown} |"


def _ratio(row: Row, cell: Cell, mine: Cell | None) -> str:
    if row.name == OURS.name or not mine or not cell.requests_per_s:
        return ""
    if not mine.requests_per_s:
        return "▼ we lose: ours failed"
    ratio = mine.requests_per_s / cell.requests_per_s
    return f"{ratio:.2f}" + (" ▼ we lose" if ratio < 1 else "")


def _starts(rows: list[Row]) -> str:
    lines = ["| server | version | start to ready, s | memory MB | processes | |", "|---|---|--:|--:|--:|---|"]
    for row in rows:
        why = _safe(f"failed: {row.reason}") if row.reason else ""
        memory = words.megabytes(row.memory_bytes) if row.memory_bytes else words.NONE
        shown = f"{words.digits(row.ready_s)} | {memory} | {row.processes or words.NONE}"
        lines.append(f"| {row.title} | {row.version or words.NONE} | {shown} | {why} |")
    return "\n".join(lines)


def _safe(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")[:300]


def verdicts(rows: list[Row]) -> list[str]:
    """A sentence for each peer: where we lose to it, all of it, and otherwise that we do not."""
    mine = next((row for row in rows if row.name == OURS.name), None)
    if mine is None or mine.reason:
        return [f"the service itself could not be measured: {mine.reason if mine else 'it did not take part'}"]
    return [_verdict(mine, row) for row in rows if row is not mine]


def _verdict(mine: Row, row: Row) -> str:
    if row.reason:
        return f"{row.title}: no figures, because {_safe(row.reason)}"
    found = [figure for figure in _figures(mine, row) if figure.comparable]
    lost = [str(figure) for figure in found if figure.behind > EVEN]
    even = [str(figure) for figure in found if 0 < figure.behind <= EVEN]
    failed = _failures(mine, row)
    said = [f"we lose in {len(lost)} of {len(found)} figures: {'; '.join(lost)}"] if lost else []
    if failed["ours"]:
        said.insert(0, f"we lose where ours failed and theirs did not: {'; '.join(failed['ours'])}")
    if even:
        said.append(f"behind by less than {EVEN:.0%}, which one run cannot tell from even: {'; '.join(even)}")
    if not lost and not even:
        said.append(f"we lose in none of {len(found)} figures" + (" that both have" if failed["ours"] else ""))
    if failed["theirs"]:
        said.append(f"theirs failed and ours did not: {'; '.join(failed['theirs'])}")
    if failed["both"]:
        said.append(f"both failed: {'; '.join(failed['both'])}")
    return f"{row.title}: " + ". ".join(said)


def _failures(mine: Row, row: Row) -> dict[str, list[str]]:
    """The loads at which only `ours` failed, only `theirs`, and `both`."""
    found: dict[str, list[str]] = {"ours": [], "theirs": [], "both": []}
    theirs = {(cell.way, cell.connections): cell for cell in row.cells}
    for cell in mine.cells:
        other = theirs.get((cell.way, cell.connections))
        if other is None or not (cell.reason or other.reason):
            continue
        side = "theirs" if not cell.reason else "both" if other.reason else "ours"
        found[side].append(f"{_kind(cell.way)} by {_clients(cell.connections)}")
    return found


@dataclass(frozen=True)
class Figure:
    """One thing measured on both sides."""

    what: str
    unit: str
    ours: float | None
    theirs: float | None
    more_is_better: bool = False

    @property
    def comparable(self) -> bool:
        """Whether both sides have it."""
        return bool(self.ours and self.theirs)

    @property
    def behind(self) -> float:
        """By which share of theirs ours is worse; negative where it is better."""
        assert self.ours and self.theirs
        return self.theirs / self.ours - 1 if self.more_is_better else self.ours / self.theirs - 1

    def __str__(self) -> str:
        assert self.ours and self.theirs
        unit = f" {self.unit}" if self.unit else ""
        times = f"{self.ours / self.theirs:.2f} of theirs"
        return f"{self.what} {words.digits(self.ours)} against {words.digits(self.theirs)}{unit} ({times})"


def _figures(mine: Row, row: Row) -> list[Figure]:
    """Everything that was measured of both; a cell that failed has no figures."""
    own = {(cell.way, cell.connections): cell for cell in mine.cells}
    found: list[Figure] = []
    for cell in row.cells:
        ours = own.get((cell.way, cell.connections))
        if ours is None:
            continue
        where = f"{_kind(cell.way)}, {_clients(cell.connections)}"
        found += [
            Figure(f"requests/s ({where})", "", ours.requests_per_s, cell.requests_per_s, more_is_better=True),
            Figure(f"p50 ({where})", "ms", ours.p50_ms, cell.p50_ms),
            Figure(f"p99 ({where})", "ms", ours.p99_ms, cell.p99_ms),
            Figure(f"CPU a request ({where})", "µs", ours.cpu_us_per_request, cell.cpu_us_per_request),
        ]
    found.append(Figure("start to ready", "s", mine.ready_s, row.ready_s))
    memory = [one.memory_bytes / 1e6 if one.memory_bytes else None for one in (mine, row)]
    return [*found, Figure("memory", "MB", memory[0], memory[1])]


def _kind(way: str) -> str:
    return "PNG" if way == "png" else "tensor"


def _clients(count: int) -> str:
    return f"{count} connection{'s' if count > 1 else ''}"
