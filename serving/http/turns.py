"""Lets requests be answered in turns of the event loop that are short, first come, first served.

Answers are short and mostly computed where they are asked for. A hundred of them in one turn of the event loop would
keep whoever arrives meanwhile, probes and those to be refused too, waiting for them all, and let luck decide who of
the hundred waits longest.
"""

from __future__ import annotations

import asyncio
from collections import deque
from time import perf_counter

TURN_S = 0.008  # of answering, after which the event loop looks for what has arrived
_MOST = 1024  # requests in a turn, where they take no time
_LEARNING = 0.3  # weight of the newest turn in what a request is expected to take


class Turns:
    """One worker's turns; all methods are for its event loop's thread."""

    def __init__(self) -> None:
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._each = 0.001  # seconds that a request takes of its turn
        self._room, self._taken = 1, 0  # requests that this turn still has room for, and has had
        self._begun = 0.0
        self._running = False

    async def mine(self) -> None:
        """Returns when it is a request's turn."""
        if not self._waiting and self._room:
            self._room -= 1
            self._taken += 1
            if not self._running:
                self._begin(asyncio.get_running_loop())
            return
        future = asyncio.get_running_loop().create_future()
        self._waiting.append(future)
        await future

    def _begin(self, loop: asyncio.AbstractEventLoop) -> None:
        self._running, self._begun = True, perf_counter()
        loop.call_soon(self._end, loop)

    def _end(self, loop: asyncio.AbstractEventLoop) -> None:
        """Learns from the turn that ends, and calls those up who have waited longest."""
        if self._taken:
            self._each += _LEARNING * ((perf_counter() - self._begun) / self._taken - self._each)
        self._running, self._taken = False, 0
        self._room = max(1, min(_MOST, int(TURN_S / max(self._each, 1e-9))))
        while self._waiting and self._room:
            future = self._waiting.popleft()
            if not future.done():  # nobody waits for it where it was cancelled
                future.set_result(None)
                self._room -= 1
                self._taken += 1
        if self._taken:
            self._begin(loop)
