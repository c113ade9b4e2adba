"""A contender's processes: all of them watched while it is under load, and none of them left when it ends."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from benchmarks import load
from benchmarks.load import served, wire
from benchmarks.peers.contenders import Contender, Subject, Way
from catalog import KilnError


@dataclass(frozen=True)
class Load:
    """What one load came to."""

    requests_per_s: float
    p50_ms: float
    p99_ms: float
    cpu_us_per_request: float  # of all the server's processes


@contextlib.contextmanager
def running(one: Contender, subject: Subject) -> Iterator[served.Server]:
    """The contender, ready; when this ends, none of the processes that it started is left."""
    import psutil

    with contextlib.ExitStack() as stack:
        server = stack.enter_context(one.start(subject))
        try:
            yield server
        finally:
            family = tree(server.process.pid)
            stack.close()
            for process in family:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
            psutil.wait_procs(family, timeout=10)


def tree(pid: int) -> list[Any]:
    """A process and all below it that live."""
    import psutil

    try:
        root = psutil.Process(pid)
        return [root, *root.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def hold(server: served.Server, way: Way, contents: list[bytes], connections: int, seconds: float) -> Load:
    """A closed load, after a short one that warms both sides up.

    Raises:
        KilnError: An answer was not 200, or a connection was lost.
    """
    load.run(wire.closed(way.at(server), contents, connections, min(load.WARM_S, seconds), way.kind))
    used = _cpu_s(server.process.pid)
    seen = load.run(wire.closed(way.at(server), contents, connections, seconds, way.kind))
    used = _cpu_s(server.process.pid) - used
    if seen.lost or set(seen.statuses) != {200}:
        raise KilnError(f"{server.name} answered {dict(seen.statuses)} and lost {seen.lost} requests")
    return Load(seen.rate, seen.ms(50), seen.ms(99), 1e6 * used / len(seen.good))


def _cpu_s(pid: int) -> float:
    import psutil

    spent = 0.0
    for process in tree(pid):
        with contextlib.suppress(psutil.NoSuchProcess):
            times = process.cpu_times()
            spent += times.user + times.system
    return spent


def memory_bytes(family: list[Any]) -> int:
    """Of these processes together: what they share is counted once (PSS); 0 where the system does not say."""
    return sum(_share(process) for process in family)


def _share(process: Any) -> int:
    import psutil

    try:
        return int(process.memory_full_info().pss)
    except (psutil.Error, AttributeError):  # it ended, is another user's, or the system counts no shares
        return 0
