"""A contender's processes: all of them watched while it is under load, and none of them left when it ends."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from benchmarks.load import held, served
from benchmarks.peers.contenders import Contender, Subject, Way


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
            family = served.tree(server.process.pid)
            stack.close()
            for process in family:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
            psutil.wait_procs(family, timeout=10)


def hold(server: served.Server, way: Way, contents: list[bytes], connections: int, seconds: float) -> Load:
    """A closed load, after a short one that warms both sides up.

    Raises:
        KilnError: An answer was not 200, or a connection was lost.
    """
    seen = held.hold(server, contents, connections, seconds, way.kind, way.at(server))
    return Load(seen.rate, seen.ms(50), seen.ms(99), seen.cpu_us)


def memory_bytes(family: list[Any]) -> int:
    """Of these processes together: what they share is counted once (PSS); 0 where the system does not say."""
    return sum(_share(process) for process in family)


def _share(process: Any) -> int:
    import psutil

    try:
        return int(process.memory_full_info().pss)
    except (psutil.Error, AttributeError):  # it ended, is another user's, or the system counts no shares
        return 0
