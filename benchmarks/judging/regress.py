"""Holds a run against a saved one: whether a variant became slower than noise explains, on this machine or another.

Times are divided by the calibration kernel's in the same process and scenario, so that a slower hour or machine slows
both sides of the ratio, which is of the passes' geometric means. Noise is how far the passes of one variant lie apart,
pooled over all variants of both runs, since three passes say little; a variant whose own lie further apart has its own.
Of what is then called slower, Benjamini and Hochberg's procedure (1995) leaves one in twenty to chance, however many
variants there are. A change of less than `TOLERANCE` is none, however sure.
"""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from benchmarks.judging import intervals
from benchmarks.results import Pass, Results
from catalog import KilnError

TOLERANCE = 1.05
CHANCE = 0.05  # of the changes found, the share that may be noise
LEAST_NOISE = 0.005  # of a pass: a few that agree better do so by chance
Passes = dict[str, list[Pass]]  # by variant
Logs = NDArray[np.float64]  # logarithms of a figure in kernels, one a pass


@dataclass(frozen=True)
class Change:
    """One figure of one variant; `ratio`, in kernels, is above 1 where it is slower now.

    `least` and `most` lie two standard errors beside it. `p_slower` is the one-sided p of its being slower.
    """

    name: str
    figure: str
    before_ms: float
    after_ms: float
    ratio: float
    least: float
    most: float
    p_slower: float
    regressed: bool = False  # slower beyond noise and tolerance
    improved: bool = False


@dataclass(frozen=True)
class Comparison:
    """Both figures of every variant that two runs measured, and the variants that only the first one did.

    `failed` are those that the second tried too, with the reason; `missing` are those it did not try.
    """

    changes: list[Change]
    failed: dict[str, str]
    missing: list[str]


def _single(one: Pass) -> tuple[float, float]:
    return one.p50_ms, one.kernel_ms


def _offline(one: Pass) -> tuple[float, float]:
    return 1e3 / one.images_per_s, one.offline_kernel_ms or one.kernel_ms


# milliseconds an image, and the calibration kernel's beside them
FIGURES: dict[str, Callable[[Pass], tuple[float, float]]] = {"p50": _single, "Offline": _offline}


def compared(before: Results, after: Results) -> Comparison:
    """What became of the first run's variants in the second.

    Raises:
        KilnError: They have none in common, were given different threads, one knows no calibration kernel, or one
            has a single pass.
    """
    if before.threads != after.threads:
        raise KilnError(f"one run had {before.threads} threads, the other {after.threads}; measure with the same")
    common = [name for name in sorted(after.details) if name in before.details]
    gone = [name for name in sorted(before.details) if name not in after.details]
    reasons = {str(row.variant): row.reason for row in after.rows if row.status == "failed"}
    failed = {name: reasons[name] for name in gone if name in reasons}
    if not common and not failed:
        raise KilnError("the two runs have no measured variant in common; name another with --against")
    then, now = ({name: run.details[name].passes for name in common} for run in (before, after))
    for name in common:
        _check(name, min(len(then[name]), len(now[name])))
    changes = [change for figure, of in FIGURES.items() for change in _changes(figure, of, then, now)]
    return Comparison(_judged(changes), failed, [name for name in gone if name not in failed])


def _check(name: str, passes: int) -> None:
    if not passes:
        raise KilnError(f"{name} was measured without the calibration kernel; measure again: python -m benchmarks")
    if passes == 1:
        raise KilnError(
            f"{name} was measured in one pass, which says nothing of noise, and two are the least; "
            "measure again without --quick: python -m benchmarks"
        )


def _changes(figure: str, of: Callable[[Pass], tuple[float, float]], then: Passes, now: Passes) -> list[Change]:
    """One figure of all variants, not judged yet."""
    old, new = (
        {name: np.log([ms / kernel_ms for ms, kernel_ms in map(of, passes)]) for name, passes in run.items()}
        for run in (then, now)
    )
    freedom = sum(len(logs) - 1 for logs in (*old.values(), *new.values()))
    pooled = max(LEAST_NOISE, intervals.noise((*old.values(), *new.values())))
    changes = []
    for name in then:
        noise = max(pooled, intervals.noise((old[name], new[name])))
        error = noise * math.sqrt(1 / len(old[name]) + 1 / len(new[name]))
        change = float(new[name].mean() - old[name].mean())
        ratio, least, most = (math.exp(change + width * error) for width in (0, -2, 2))
        before_ms, after_ms = (statistics.median(of(one)[0] for one in passes) for passes in (then[name], now[name]))
        p = _p_above(change / error, freedom)
        changes.append(Change(name, figure, before_ms, after_ms, ratio, least, most, p))
    return changes


def _p_above(t: float, freedom: int) -> float:
    """The chance of a larger Student's t, by Abramowitz and Stegun's 26.7.8: within 0.001 from ten degrees on."""
    return NormalDist().cdf(-t * (1 - 1 / (4 * freedom)) / math.sqrt(1 + t * t / (2 * freedom)))


def _judged(changes: list[Change]) -> list[Change]:
    slower = _found({i: change.p_slower for i, change in enumerate(changes)})
    faster = _found({i: 1 - change.p_slower for i, change in enumerate(changes)})
    return [
        dataclasses.replace(
            change,
            regressed=i in slower and change.ratio > TOLERANCE,
            improved=i in faster and change.ratio < 1 / TOLERANCE,
        )
        for i, change in sorted(enumerate(changes), key=lambda one: one[1].name)
    ]


def _found(p_values: Mapping[int, float]) -> set[int]:
    """Those that Benjamini and Hochberg's procedure calls more than chance."""
    ordered = sorted(p_values, key=lambda key: p_values[key])
    ranks = [rank for rank, key in enumerate(ordered, 1) if p_values[key] <= CHANCE * rank / len(ordered)]
    return set(ordered[: max(ranks, default=0)])
