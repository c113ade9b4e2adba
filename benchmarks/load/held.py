"""A load on a server and what it cost: a closed one that it is to hold, or an open one that may be too much."""

from __future__ import annotations

import time
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
    return answered(server, cost(server, wire.closed(at, contents, connections, seconds, kind)))


def offer(server: Server, contents: list[bytes], rate: float, connections: int, seconds: float) -> wire.Seen:
    """An open load of so many requests a second, whatever becomes of them."""
    return cost(server, wire.open_loop(server.port, contents, rate, connections, seconds))


def cost(server: Server, work: Awaitable[wire.Seen]) -> wire.Seen:
    """Runs a load and notes the processor time that it took of the server and of this process."""
    used, own = server.cpu_s(), time.process_time()
    seen = run(work)
    seen.cpu_s, seen.own_s = server.cpu_s() - used, time.process_time() - own
    return seen


def answered(server: Server, seen: wire.Seen) -> wire.Seen:
    """The same, where every request was answered with 200.

    Raises:
        KilnError: One was not.
    """
    if seen.lost or set(seen.statuses) != {200}:
        raise KilnError(f"{server.name} answered {dict(seen.statuses)} and lost {seen.lost} requests")
    return seen
