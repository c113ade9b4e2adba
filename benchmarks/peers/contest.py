"""One contender at a time: started, checked against the session called in process, put under load, stopped.

Every round starts all contenders anew, in one order and then in the other, so that a machine whose speed drifts treats
them alike; a figure is the median of the rounds. A contender that cannot be started or answers wrongly is out, with
the reason; what failed under load only loses that cell.
"""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from benchmarks.load import served
from benchmarks.peers import answers, processes
from benchmarks.peers.contenders import Contender, Picture, Subject, Way
from benchmarks.peers.processes import Load
from catalog import KilnError

WAYS = ("png", "tensor")
Tick = Callable[[str, int], None]  # what is done now, and steps done since


@dataclass(frozen=True)
class Plan:
    """How long and how often everybody is measured."""

    connections: tuple[int, ...] = (1, 16, 64)
    seconds: float = 5.0
    rounds: int = 3

    @property
    def steps(self) -> int:
        """Of one contender in one round: its start with the check, and a load for every cell."""
        return 1 + len(WAYS) * len(self.connections)


@dataclass(frozen=True)
class Cell:
    """One way to ask, by so many connections; medians over the rounds, all None where there is a reason."""

    way: str
    connections: int
    says: str
    requests_per_s: float | None = None
    p50_ms: float | None = None
    p99_ms: float | None = None
    cpu_us_per_request: float | None = None  # of all the server's processes
    rounds: list[float] = field(default_factory=list)  # requests/s of each
    reason: str = ""


@dataclass(frozen=True)
class Row:
    """A contender: its cells, or why it has none. `memory_bytes` is the largest sum of its processes' shares (PSS)."""

    name: str
    title: str
    version: str
    ready_s: float | None = None  # from its start
    memory_bytes: int | None = None
    processes: int | None = None
    cells: list[Cell] = field(default_factory=list)
    reason: str = ""
    install: str = ""  # the command, where it is not installed


@dataclass
class _Seen:
    reason: str = ""
    install: str = ""
    ready_s: list[float] = field(default_factory=list)
    memory_bytes: list[int] = field(default_factory=list)
    processes: int = 0
    loads: dict[tuple[str, int], list[Load]] = field(default_factory=dict)
    failed: dict[tuple[str, int], str] = field(default_factory=dict)


def contest(plan: Plan, subject: Subject, entered: list[Contender], tick: Tick) -> list[Row]:
    """A row for everybody who entered, in that order."""
    shown = answers.pictures(subject.height, subject.width)
    stage = _Stage(plan, subject, shown, answers.expected(subject, shown), tick)
    seen = {one.name: _Seen(one.missing(subject)) for one in entered}
    for one in entered:
        seen[one.name].install = one.install if seen[one.name].reason else ""
    for turn in range(plan.rounds):
        for one in entered if turn % 2 == 0 else reversed(entered):
            stage.turn(one, seen[one.name])
    return [_row(plan, subject, one, seen[one.name]) for one in entered]


@dataclass(frozen=True)
class _Stage:
    plan: Plan
    subject: Subject
    shown: list[Picture]
    wanted: NDArray[np.float32]
    tick: Tick

    def turn(self, one: Contender, seen: _Seen) -> None:
        """One contender from its start to its end; the steps that it does not come to are done all the same."""
        done = 0
        try:
            if not seen.reason:
                self.tick(f"{one.title}: starting", 0)
                with processes.running(one, self.subject) as server:
                    for way in WAYS:
                        answers.check(server, self.subject, one.way(way), self.shown, self.wanted)
                    seen.ready_s.append(server.ready_s)
                    for way, connections in itertools.product(WAYS, self.plan.connections):
                        self.tick(f"{one.title}: {one.way(way).says}, {connections} at a time", 1)
                        done += 1
                        self._load(server, one.way(way), connections, seen, (way, connections))
        except (KilnError, OSError) as error:
            seen.reason = in_short(str(error))
        finally:
            self.tick("", self.plan.steps - done)

    def _load(self, server: served.Server, way: Way, connections: int, seen: _Seen, at: tuple[str, int]) -> None:
        if at in seen.failed:
            return
        contents = [way.ask(self.subject, picture) for picture in self.shown]
        try:
            seen.loads.setdefault(at, []).append(processes.hold(server, way, contents, connections, self.plan.seconds))
        except KilnError as error:
            seen.failed[at] = in_short(str(error))
            return
        family = served.tree(server.process.pid)
        seen.processes = max(seen.processes, len(family))
        seen.memory_bytes.append(processes.memory_bytes(family))


def in_short(reason: str) -> str:
    """A reason that ends in a log, on one line: how it begins, and the log's last line, where the cause stands."""
    lines = [" ".join(line.split()) for line in reason.splitlines() if line.strip()] or [reason]
    return lines[0][:300] if len(lines) == 1 else f"{lines[0].partition(': ')[0]}: {lines[-1]}"[:300]


def _row(plan: Plan, subject: Subject, one: Contender, seen: _Seen) -> Row:
    row = Row(one.name, one.title, one.version(subject), reason=seen.reason, install=seen.install)
    if seen.reason:
        return row
    cells = [_cell(one, way, count, seen) for way in WAYS for count in plan.connections]
    ready = round(statistics.median(seen.ready_s), 3)
    memory = max(seen.memory_bytes, default=0) or None
    return Row(one.name, one.title, row.version, ready, memory, seen.processes, cells)


def _cell(one: Contender, way: str, connections: int, seen: _Seen) -> Cell:
    says, at = one.way(way).says, (way, connections)
    if at in seen.failed or at not in seen.loads:
        return Cell(way, connections, says, reason=seen.failed.get(at, "not measured"))
    loads = seen.loads[at]
    rate, p50, p99, cost = (
        round(statistics.median(getattr(found, name) for found in loads), 3)
        for name in ("requests_per_s", "p50_ms", "p99_ms", "cpu_us_per_request")
    )
    return Cell(way, connections, says, rate, p50, p99, cost, [round(found.requests_per_s, 1) for found in loads])
