"""How far a change against the float parent may be off, both asked the same images: 95% intervals, standard errors."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from benchmarks.results import Detail

Z = NormalDist().inv_cdf(0.975)
ALL = "all"  # the name of all corruptions together
LESS_ROBUST = 1.0  # points on corrupted images, relative to the parent's, from which a loss is told
SURE_ERRORS = 2  # standard errors, beyond which a change is more than chance where no corrected p is known


def change(lost: int, won: int, images: int) -> tuple[float, float]:
    """Points of top-1 between which the change lies, from the images lost and won of so many.

    Wald's interval for paired proportions after Bonett and Price (2012): one image is added to either direction, so
    that it holds for few flips too, and is not empty where there was none.
    """
    up, down, total = (won + 1) / (images + 2), (lost + 1) / (images + 2), images + 2
    half = Z * math.sqrt((up + down - (up - down) ** 2) / total)
    return 100 * (up - down - half), 100 * (up - down + half)


def median(values: Sequence[float]) -> tuple[float, float] | None:
    """The values between which the median of what they are a sample of lies in 95% of samples, whatever it looks like.

    Those are two of the values, the same number from either end; of fewer than six none are so sure: None.
    """
    ordered, count = sorted(values), len(values)
    outside, place = 0.0, -1  # as many values as `place`, or fewer, lie below the median by this chance
    while place + 1 < count and (more := outside + math.comb(count, place + 1) / 2**count) <= 0.025:
        outside, place = more, place + 1
    return None if place < 0 else (ordered[place], ordered[-1 - place])


def noise(groups: Iterable[Sequence[float] | NDArray[np.float64]]) -> float:
    """The standard deviation within groups of logarithms, pooled over them; 0 of none."""
    logs = [np.asarray(group, np.float64) for group in groups if len(group)]
    squares = sum(float(((group - group.mean()) ** 2).sum()) for group in logs)
    return math.sqrt(squares / max(1, sum(len(group) - 1 for group in logs)))


def paired_error(differences: NDArray[np.float64]) -> float:
    """The standard error of a mean of differences, one an image; in points where these are shares. 0 of one image."""
    count = len(differences)
    return 100 * float(differences.std(ddof=1)) / math.sqrt(count) if count > 1 else 0.0


def robust_error(detail: Detail, parent: Detail, corruption: str = ALL) -> float:
    """The standard error in points of the change on corrupted images.

    A run that did not note the paired one has the larger one of two samples of as many images, whose answers to the
    several corruptions of one image are taken to be the same.
    """
    if corruption in detail.robust_errors:
        return detail.robust_errors[corruption]
    shares = [mean_robust(one, corruption) / 100 for one in (detail, parent)]
    return 100 * math.sqrt(sum(share * (1 - share) for share in shares) / max(1, detail.robust_images))


def mean_robust(detail: Detail, corruption: str = ALL) -> float:
    """Top-1 in percent over the severities of one corruption, or of all; the run must have corrupted images."""
    told = detail.robust_top1.values() if corruption == ALL else [detail.robust_top1[corruption]]
    shares = [share for severities in told for share in severities]
    return sum(shares) / len(shares)


def robust_worse(detail: Detail, parent: Detail) -> frozenset[str]:
    """The corruptions, and `all` of them, on which a variant loses a point or more, and more than chance explains.

    All of them together are judged by p after Holm's correction over the run's variants where the run knows it; single
    corruptions, and older runs, by two standard errors, uncorrected.
    """
    both = [name for name in detail.robust_top1 if name in parent.robust_top1]
    found = set()
    for name in [*both, *([ALL] if both else [])]:
        change = mean_robust(detail, name) - mean_robust(parent, name)
        sure = change < -SURE_ERRORS * robust_error(detail, parent, name)
        if name == ALL and detail.robust_holm is not None:
            sure = detail.robust_holm < 0.05
        if sure and change <= -LESS_ROBUST:
            found.add(name)
    return frozenset(found)


def chance_of(difference: float, error: float) -> float:
    """The two-sided p of a mean so far from 0, by the normal distribution; without an error, only of none at all."""
    if error == 0:
        return 1.0 if difference == 0 else 0.0
    return 2 * NormalDist().cdf(-abs(difference) / error)
