"""The highest rate that is held, looked for one trial at a time; both Server scenarios search so.

A pause of the machine can fail any one trial, and luck may pass one, so a rule says how many trials must hold a rate.
The search only chooses rates and is told what came of them: whoever makes the trials may do so in turns with others.
"""

from __future__ import annotations

import statistics
from dataclasses import dataclass, field

HEADROOM = 0.95  # of the capacity, the highest rate that is tried


@dataclass(frozen=True)
class Trial:
    """One rate: the p99 of its latencies in milliseconds, and how many images were taken together on average."""

    rate: float
    p99_ms: float
    batch: float | None = None


@dataclass(frozen=True)
class Rule:
    """`held` trials of at most `tries` hold a rate; `steps` find it to `HEADROOM / 2**steps` of the capacity.

    Below `least`, in images/s, only the first rate is tried: trials get long there, for a rate of no use.
    """

    held: int
    tries: int
    steps: int
    least: float = 0.0


@dataclass
class Search:
    """Bisects between nothing and `HEADROOM` of `capacity`, which is in images/s; `rate` is to be tried next."""

    rule: Rule
    capacity: float
    limit_ms: float
    trials: list[Trial] = field(init=False, default_factory=list)
    low: float = field(init=False, default=0.0)  # the highest rate that was held, 0 for none
    rate: float = field(init=False)
    _high: float = field(init=False)  # the lowest rate that was not held, or the highest of all
    _held: list[Trial] = field(init=False, default_factory=list)  # of the trials at `low`, those that held it
    _good: list[Trial] = field(init=False, default_factory=list)  # of the trials at `rate`, those that hold it
    _bad: int = field(init=False, default=0)
    _steps: int = field(init=False, default=0)

    def __post_init__(self) -> None:
        """The highest rate comes first."""
        self.rate = self._high = HEADROOM * self.capacity

    @property
    def done(self) -> bool:
        """Whether `low` is the answer."""
        if not self._steps:
            return False
        return self._steps > self.rule.steps or self.low == self._high or self.rate < self.rule.least

    def saw(self, trial: Trial, whole: bool = True) -> None:
        """Takes what came of `rate`, and chooses the one after it; `whole` is not so where an answer went missing."""
        self.trials.append(trial)
        if whole and trial.p99_ms <= self.limit_ms:
            self._good.append(trial)
        else:
            self._bad += 1
        if len(self._good) == self.rule.held:
            self.low, self._held = self.rate, self._good
        elif self._bad > self.rule.tries - self.rule.held:
            self._high = self.rate
        else:
            return
        self._good, self._bad, self._steps = [], 0, self._steps + 1
        self.rate = (self.low + self._high) / 2

    @property
    def p99_ms(self) -> float | None:
        """The highest p99 of the trials that held `low`."""
        return round(max(trial.p99_ms for trial in self._held), 4) if self._held else None

    @property
    def batch(self) -> float | None:
        """The images taken together in these trials, their median."""
        batches = [trial.batch for trial in self._held if trial.batch is not None]
        return round(statistics.median(batches), 2) if batches else None

    @property
    def told(self) -> list[list[float]]:
        """Rate and p99 of every trial, in order."""
        return [[round(trial.rate, 1), round(trial.p99_ms, 4)] for trial in self.trials]
