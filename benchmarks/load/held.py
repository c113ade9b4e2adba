"""A closed load that a server is to hold: warmed up, answered throughout, and what it cost the server."""

from __future__ import annotations

from collections.abc import Awaitable
from typing import TypeVar

from benchmarks.load import wire
from benchmarks.load.served import Server
from catalog import KilnError

WARM_S = 1.0
Found = TypeVar("Found")


def run(work: Awaitable[Found]) -> Found:
    """Runs a load on the fastest event loop there is."""
    import uvloop

    async def whole() -> Found:
        return await work

    return uvloop.run(whole())


def hold(
    server: Server,
    contents: list[bytes],
    connections: int,
    seconds: float,
    kind: type[wire.Connection] = wire.Connection,
    port: int | None = None,
) -> wire.Seen:
    """A closed load after a short one that warms both sides up; the server's own port where none is given.

    Raises:
        KilnError: An answer was not 200, or a connection was lost.
    """
    at = server.port if port is None else port
    run(wire.closed(at, contents, connections, min(WARM_S, seconds), kind))
    used = server.cpu_s()
    seen = run(wire.closed(at, contents, connections, seconds, kind))
    seen.cpu_s = server.cpu_s() - used
    return answered(server, seen)


def answered(server: Server, seen: wire.Seen) -> wire.Seen:
    """The same, where every request was answered with 200.

    Raises:
        KilnError: One was not.
    """
    if seen.lost or set(seen.statuses) != {200}:
        raise KilnError(f"{server.name} answered {dict(seen.statuses)} and lost {seen.lost} requests")
    return seen
