"""A lean HTTP/1.1 load generator: one protocol object a connection, whole requests prepared as bytes.

It shares the machine with what it measures, so it must cost little: no client library, no pipelining (a browser or
proxy does none), one write a request, and of an answer only the status and the length are read.
"""

from __future__ import annotations

import asyncio
import math
import random
import time
from array import array
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field

PATIENCE_S = 10.0  # for the last answers of an open loop


def request(path: str, body: bytes, headers: dict[str, str] | None = None, method: str = "POST") -> bytes:
    """A whole request, kept alive."""
    lines = [f"{method} {path} HTTP/1.1", "host: localhost", f"content-length: {len(body)}"]
    lines += [f"{name}: {value}" for name, value in (headers or {}).items()]
    return ("\r\n".join(lines) + "\r\n\r\n").encode() + body


@dataclass
class Seen:
    """What came of a load; latencies are seconds, of answers with status 200 and of refusals apart.

    Every request that was due is in `offered`, and ends as an answer or in `lost`.
    """

    seconds: float = 0.0
    good: array[float] = field(default_factory=lambda: array("d"))
    refused: array[float] = field(default_factory=lambda: array("d"))
    statuses: Counter[int] = field(default_factory=Counter)
    lost: int = 0  # requests whose connection ended or could not be had, or that were not answered in the end
    offered: int = 0
    after: int = 0  # good answers that came after the `seconds`
    limit_s: float = math.inf
    late: int = 0  # answers that took longer than that
    cpu_s: float = 0.0  # that the server's processes used meanwhile, where that was looked at
    own_s: float = 0.0  # that this process used, likewise

    @property
    def rate(self) -> float:
        """Good answers a second, of those that came within the `seconds`."""
        return (len(self.good) - self.after) / self.seconds if self.seconds else 0.0

    @property
    def cpu_us(self) -> float:
        """The server's processor time of a good answer, microseconds."""
        return 1e6 * self.cpu_s / len(self.good) if self.good else 0.0

    def ms(self, percent: float, of: array[float] | None = None) -> float:
        """A percentile of the good answers' latencies, or of others', in milliseconds; 0 of none."""
        ordered = sorted(self.good if of is None else of)
        return 1000 * ordered[min(len(ordered) - 1, int(len(ordered) * percent / 100))] if ordered else 0.0


class Connection(asyncio.Protocol):
    """Sends one request at a time; `done(connection)` is called when its answer is whole or lost."""

    def __init__(self, seen: Seen, done: Callable[[Connection], None]) -> None:
        self.seen, self.done = seen, done
        self.transport: asyncio.Transport | None = None
        self.begun = 0.0
        self.busy = self.gone = False
        self.body = b""  # of the last answer
        self._buffer = b""
        self._end = -1

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keeps the way to write."""
        assert isinstance(transport, asyncio.Transport) or hasattr(transport, "write")
        self.transport = transport  # type: ignore[assignment]

    def ask(self, content: bytes, begun: float | None = None) -> None:
        """Sends a request whose latency counts from now, or from when it was due."""
        assert self.transport is not None
        self.begun = time.perf_counter() if begun is None else begun
        self.busy = True
        self.transport.write(content)

    def data_received(self, data: bytes) -> None:
        """Collects an answer."""
        self._buffer = self._buffer + data if self._buffer else data
        if self._end < 0:
            head = self._buffer.find(b"\r\n\r\n")
            if head < 0:
                return
            at = self._buffer.find(b"content-length: ", 0, head) + 16
            self._end = head + 4 + int(self._buffer[at : self._buffer.find(b"\r", at)])
        if len(self._buffer) >= self._end:
            self._finish()

    def _finish(self) -> None:
        taken, status = time.perf_counter() - self.begun, int(self._buffer[9:12])
        self.body, self._buffer, self._end = self._buffer, b"", -1
        self.busy = False
        self.seen.statuses[status] += 1
        self.seen.late += taken > self.seen.limit_s
        (self.seen.good if status == 200 else self.seen.refused).append(taken)
        self.done(self)

    def connection_lost(self, error: Exception | None) -> None:
        """Counts what was under way as lost."""
        self.gone = True
        if self.busy:
            self.busy = False
            self.seen.lost += 1
            self.done(self)


async def closed(
    port: int, contents: list[bytes], connections: int, seconds: float, kind: type[Connection] = Connection
) -> Seen:
    """So many clients, each asking again as soon as it was answered; a connection that ends is made anew.

    `kind` is what speaks the protocol that the contents are prepared for.
    """
    loop, seen = asyncio.get_running_loop(), Seen()
    ended = loop.create_future()
    turn, until = 0, 0.0
    making: set[asyncio.Task[None]] = set()

    def again(connection: Connection) -> None:
        nonlocal turn
        if time.perf_counter() >= until:
            if not ended.done() and not any(one.busy for one in pool):
                ended.set_result(None)
        elif connection.gone or (connection.transport and connection.transport.is_closing()):
            task = loop.create_task(start())
            making.add(task)
            task.add_done_callback(making.discard)
        else:
            turn += 1
            seen.offered += 1
            connection.ask(contents[turn % len(contents)])

    async def start() -> None:
        try:
            _, connection = await loop.create_connection(lambda: kind(seen, again), "127.0.0.1", port)
        except OSError:
            seen.lost += 1
            return
        pool.append(connection)
        again(connection)

    pool: list[Connection] = []
    begun = time.perf_counter()
    until = begun + seconds
    await asyncio.gather(*(start() for _ in range(connections)))
    await asyncio.wait([ended], timeout=seconds + 30)
    seen.seconds = time.perf_counter() - begun
    for connection in pool:
        if connection.transport:
            connection.transport.close()
    return seen


async def one_by_one(port: int, content: bytes, requests: int, seconds: float) -> tuple[Seen, list[bytes]]:
    """One connection that asks so many times, or until the time is up: what was seen, and the bodies of the answers.

    The first answer that is not 200 is the last.
    """
    loop, seen, bodies = asyncio.get_running_loop(), Seen(), list[bytes]()
    ended = loop.create_future()

    def again(connection: Connection) -> None:
        if not connection.gone:
            bodies.append(connection.body.partition(b"\r\n\r\n")[2])
        if connection.gone or seen.refused or len(bodies) == requests or time.perf_counter() >= until:
            ended.set_result(None)
        else:
            ask(connection)

    def ask(connection: Connection) -> None:
        seen.offered += 1
        connection.ask(content)

    _, connection = await loop.create_connection(lambda: Connection(seen, again), "127.0.0.1", port)
    begun = time.perf_counter()
    until = begun + seconds
    ask(connection)
    await asyncio.wait([ended], timeout=seconds + 30)
    seen.seconds = time.perf_counter() - begun
    seen.lost += connection.busy
    connection.busy = False
    if connection.transport:
        connection.transport.close()
    return seen, bodies


class _Arrivals:
    """The connections of an open loop, and the requests that were due while all of them were busy."""

    def __init__(self, seen: Seen, contents: list[bytes]) -> None:
        self.seen, self._contents = seen, contents
        self.pool: list[Connection] = []
        self._idle: deque[Connection] = deque()
        self._late: deque[float] = deque()
        self._sent = 0

    async def connect(self, port: int, connections: int) -> None:
        loop = asyncio.get_running_loop()
        made = [
            loop.create_connection(lambda: Connection(self.seen, self._free), "127.0.0.1", port)
            for _ in range(connections)
        ]
        self.pool = [connection for _, connection in await asyncio.gather(*made)]
        self._idle.extend(self.pool)

    def arrive(self, due: float) -> None:
        self.seen.offered += 1
        if self._idle:
            self._send(self._idle.popleft(), due)
        else:
            self._late.append(due)

    def _free(self, connection: Connection) -> None:
        if connection.gone:
            return
        if self._late:
            self._send(connection, self._late.popleft())
        else:
            self._idle.append(connection)

    def _send(self, connection: Connection, due: float) -> None:
        self._sent += 1
        connection.ask(self._contents[self._sent % len(self._contents)], due)

    async def end(self, patience_s: float) -> None:
        """Waits for what is under way and for what still waits for a connection; what is not answered then is lost."""
        deadline = time.perf_counter() + patience_s
        while any(connection.busy for connection in self.pool) and time.perf_counter() < deadline:
            await asyncio.sleep(0.05)
        self.seen.lost += len(self._late)
        self._late.clear()
        for connection in self.pool:
            self.seen.lost += connection.busy
            connection.busy = False
            if connection.transport:
                connection.transport.close()


async def open_loop(
    port: int,
    contents: list[bytes],
    rate: float,
    connections: int,
    seconds: float,
    seed: int = 0,
    patience_s: float = PATIENCE_S,
    limit_s: float = math.inf,
) -> Seen:
    """Requests that arrive at random (Poisson) whatever the answers do; latency counts from when each was due.

    One that finds all connections busy waits here, and its wait counts: the generator's own limit is not hidden. Those
    of the last moment are waited for, up to `patience_s`: their latencies count, the rate is without them.

    It ends early where more than a hundredth of the requests that are expected took longer than `limit_s`.
    """
    seen, chance = Seen(limit_s=limit_s), random.Random(seed)
    arrivals = _Arrivals(seen, contents)
    await arrivals.connect(port, connections)
    begun = due = time.perf_counter()
    count = 0
    while due < begun + seconds and seen.late <= rate * seconds / 100:
        due += chance.expovariate(rate)
        count += 1
        if (wait := due - time.perf_counter()) > 0.001:
            await asyncio.sleep(wait)
        elif count % 16 == 0:  # behind: the answers must be read all the same
            await asyncio.sleep(0)
        arrivals.arrive(min(due, time.perf_counter()))  # timers are of whole milliseconds: it may go out too early
    seen.seconds, within = time.perf_counter() - begun, len(seen.good)
    await arrivals.end(patience_s)
    seen.after = len(seen.good) - within
    return seen
