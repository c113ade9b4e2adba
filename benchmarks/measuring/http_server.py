"""The Server scenario over HTTP: the highest rate of Poisson arrivals whose p99 at the client stays under a limit.

As `benchmarks.measuring.server`, but for two things: whoever waits is batched by the service, and a search makes one
trial at a time, so that those of many variants take turns and what disturbs the machine for a moment costs a rate only
one of its tries.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from benchmarks.load import wire
from benchmarks.load.held import run

QUERIES = 200  # of a trial: two are then above the p99 …
LONGEST = 1.0  # … unless they took longer to arrive than these seconds
TRIES = 2  # of a rate, before it counts as not held
STEPS = 4  # of the bisection: the rate is found to about a sixteenth of the closed loop's throughput
HEADROOM = 0.95  # of that throughput, the highest rate that is tried
CONNECTIONS = 64
PATIENCE_S = 2.0  # for the last answers of a trial


@dataclass
class Search:
    """Bisects between nothing and `HEADROOM` of `capacity`, which is in images/s."""

    capacity: float
    limit_ms: float
    seconds: float  # of a trial, at least
    low: float = 0.0
    high: float = 0.0
    rate: float = 0.0  # the next one
    p99_ms: float | None = None  # at `low`
    trials: list[list[float]] = field(default_factory=list)
    _tries: int = 0
    _steps: int = 0

    def __post_init__(self) -> None:
        """The highest rate comes first."""
        self.high = self.rate = HEADROOM * self.capacity

    @property
    def done(self) -> bool:
        """Whether `low` is the answer."""
        return self._steps > STEPS or self.low == self.high

    def trial(self, port: int, content: bytes) -> None:
        """Offers the next rate once."""
        seconds = max(self.seconds, min(QUERIES / self.rate, LONGEST))
        arrivals = (port, [content], self.rate, CONNECTIONS, seconds)
        seen = run(wire.open_loop(*arrivals, len(self.trials), PATIENCE_S, self.limit_ms / 1e3))
        whole = not seen.lost and set(seen.statuses) == {200}
        self.saw(seen.ms(99), whole and seen.ms(99) <= self.limit_ms)

    def saw(self, p99_ms: float, held: bool) -> None:
        """Takes what came of the next rate, and chooses the one after it."""
        self.trials.append([round(self.rate, 1), round(p99_ms, 4)])
        self._tries += 1
        if held:
            self.low, self.p99_ms = self.rate, round(p99_ms, 4)
        elif self._tries < TRIES:
            return
        else:
            self.high = self.rate
        self._tries, self._steps = 0, self._steps + 1
        self.rate = (self.low + self.high) / 2

    def found(self) -> dict[str, Any]:
        """The figures of `Tax`; a rate of 0 where none was held."""
        return {"server_rate": round(self.low, 1), "server_p99_ms": self.p99_ms, "server_trials": self.trials}
