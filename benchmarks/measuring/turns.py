"""Lets measuring processes that live side by side compute one at a time, a short turn each, round after round.

The speed of a shared machine changes within a second, so that two variants measured one after the other were measured
on two machines. Those that take turns of a twentieth of a second see the same ones, and their ratio turn by turn holds.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Any

# Seconds at a turn's start that are not timed: caches fill, and the threads of the variant before fall asleep. That
# takes as long before a short turn as before a long one, so it is a larger share of a short one.
SETTLE = 0.03


class Turns:
    """The process's side: a byte written asks for a turn and gives back the one before, a byte read grants it."""

    def __init__(self, pipes: list[int], seconds: float) -> None:
        """`pipes` are the ends to read from and to write to; without them the turn is this process's for good."""
        self._pipes, self._seconds, self._end = pipes, seconds, float("inf")

    def take(self) -> None:
        """Gives back the turn, if there is one, and waits for the next."""
        if not self._pipes:
            return
        grants, asks = self._pipes
        os.write(asks, b"?")
        if not os.read(grants, 1):
            raise SystemExit("the run that started this process has ended")
        self._end = time.perf_counter() + self._seconds

    def next_if_over(self, call: Callable[[], Any], call_s: float) -> bool:
        """Takes the next turn once this one's time is up, and whether it did; `call` takes about `call_s` seconds."""
        if time.perf_counter() < self._end:
            return False
        self.take()
        settled = time.perf_counter() + SETTLE
        if call_s > SETTLE:
            time.sleep(SETTLE)
        while time.perf_counter() < settled:
            call()
        self._end = time.perf_counter() + self._seconds
        return True
