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
    """`held` trials of at most `tries` hold a rate; it is found to `HEADROOM / 2**steps` of the capacity.

    On the way one trial is believed: most rates are passed by, and only where the search ends need the others be made.
    Below `least`, in images/s, only the first rate is tried: trials get long there, for a rate of no use.
    """

    held: int
    tries: int
    steps: int
    least: float = 0.0

    @property
    def most(self) -> int:
        """The trials after which no new rate is tried: what all steps take, none of which is held, and one more."""
        return (self.tries - self.held + 1) * (self.steps + 2)


@dataclass
class Search:
    """Bisects between nothing and `HEADROOM` of `capacity`, which is in images/s; `rate` is to be tried next."""

    rule: Rule
    capacity: float
    limit_ms: float
    trials: list[Trial] = field(init=False, default_factory=list)
    rate: float = field(init=False)
    _high: float = field(init=False)  # the lowest rate that was not held, or the highest of all
    _lows: list[float] = field(init=False, default_factory=list)  # rates that a trial held, climbing
    _good: dict[float, list[Trial]] = field(init=False, default_factory=dict)  # by rate, the trials that hold it
    _bad: dict[float, int] = field(init=False, default_factory=dict)  # by rate, how many do not

    def __post_init__(self) -> None:
        """The highest rate comes first."""
        self.rate = self._high = HEADROOM * self.capacity

    @property
    def low(self) -> float:
        """The highest rate that was held, 0 for none; on the way, one that may turn out to be not."""
        return self._lows[-1] if self._lows else 0.0

    @property
    def done(self) -> bool:
        """Whether `low` is the answer."""
        if not self.trials or self.rate != self.low:
            return False
        return not self._lows or len(self._good[self.low]) >= self.rule.held

    def saw(self, trial: Trial, whole: bool = True) -> None:
        """Takes what came of `rate`, and chooses the one after it; `whole` is not so where an answer went missing."""
        self.trials.append(trial)
        if whole and trial.p99_ms <= self.limit_ms:
            self._good.setdefault(self.rate, []).append(trial)
        else:
            self._bad[self.rate] = self._bad.get(self.rate, 0) + 1
        if self._bad.get(self.rate, 0) > self.rule.tries - self.rule.held:
            self._lows = [rate for rate in self._lows if rate != self.rate]
            self._high = self.rate
        elif self.rate not in self._good:
            return  # once more
        elif self.rate != self.low:
            self._lows.append(self.rate)
        middle, finest = (self.low + self._high) / 2, HEADROOM * self.capacity / 2**self.rule.steps
        open_ = self._high - self.low > 1.001 * finest and len(self.trials) < self.rule.most
        self.rate = middle if open_ and middle >= self.rule.least else self.low

    @property
    def p99_ms(self) -> float | None:
        """The highest p99 of the trials that held `low`."""
        return round(max(trial.p99_ms for trial in self._good[self.low]), 4) if self._lows else None

    @property
    def batch(self) -> float | None:
        """The images taken together in these trials, their median."""
        batches = [trial.batch for trial in self._good.get(self.low, []) if trial.batch is not None]
        return round(statistics.median(batches), 2) if batches else None

    @property
    def told(self) -> list[list[float]]:
        """Rate and p99 of every trial, in order."""
        return [[round(trial.rate, 1), round(trial.p99_ms, 4)] for trial in self.trials]
