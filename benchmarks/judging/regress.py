"""Holds a run against a saved one: whether a variant became slower than noise explains, on this machine or another.

Times are divided by the calibration kernel's in the same process, so that a slower hour or a slower machine slows both
sides of the ratio. Every pass gives one; a regression is where even the best pass of now is slower than the worst pass
of then by more than `TOLERANCE`. One pass alone tells nothing of noise, so `BLIND` stands in for it.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass

from benchmarks.results import Pass, Results
from catalog import KilnError

TOLERANCE = 1.05
BLIND = 1.25


@dataclass(frozen=True)
class Change:
    """One figure of one variant; `ratio`, of the passes' medians in kernels, is above 1 where it is slower now."""

    name: str
    figure: str
    before_ms: float
    after_ms: float
    ratio: float
    least: float  # best pass of now against worst of then
    most: float
    tolerance: float = TOLERANCE

    @property
    def regressed(self) -> bool:
        """Slower beyond noise and tolerance."""
        return self.least > self.tolerance

    @property
    def improved(self) -> bool:
        """Faster beyond noise and tolerance."""
        return self.most < 1 / self.tolerance


def _single(one: Pass) -> float:
    return one.p50_ms


def _offline(one: Pass) -> float:
    return 1e3 / one.images_per_s


FIGURES: dict[str, Callable[[Pass], float]] = {"p50": _single, "Offline": _offline}


def compared(before: Results, after: Results) -> list[Change]:
    """Both figures of every variant that both runs measured.

    Raises:
        KilnError: They have none in common, were given different threads, or one knows no calibration kernel.
    """
    if before.threads != after.threads:
        raise KilnError(f"one run had {before.threads} threads, the other {after.threads}; measure with the same")
    common = [name for name in sorted(after.details) if name in before.details]
    if not common:
        raise KilnError("the two runs have no measured variant in common; name another with --against")
    changes = []
    for name in common:
        then, now = before.details[name].passes, after.details[name].passes
        if not then or not now:
            raise KilnError(f"{name} was measured without the calibration kernel; measure again: python -m benchmarks")
        changes += [_change(name, figure, of, then, now) for figure, of in FIGURES.items()]
    return changes


def _change(name: str, figure: str, of: Callable[[Pass], float], then: list[Pass], now: list[Pass]) -> Change:
    old, new = ([of(one) / one.kernel_ms for one in passes] for passes in (then, now))
    return Change(
        name,
        figure,
        statistics.median(of(one) for one in then),
        statistics.median(of(one) for one in now),
        statistics.median(new) / statistics.median(old),
        min(new) / max(old),
        max(new) / min(old),
        TOLERANCE if min(len(then), len(now)) > 1 else BLIND,
    )
