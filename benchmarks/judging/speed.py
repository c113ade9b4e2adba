"""How a variant's speed compares with the reference's in the same run: a ratio, and a word that knows the spread."""

from __future__ import annotations

import statistics
from dataclasses import dataclass

from benchmarks.results import Detail
from catalog import Measurement

FASTER = 1.05  # a ratio of times below which two speeds are called the same
BLIND = 1.25  # a ratio of rates that a single pass, which tells nothing of its spread, must reach to count
Span = tuple[float, float]


@dataclass(frozen=True)
class Speed:
    """One scenario; `ratio` is above 1 where the variant is better; `sure`: the passes' spreads do not meet."""

    ratio: float
    sure: bool

    @property
    def differs(self) -> bool:
        """Whether the ratio is far enough from 1 to be told."""
        return not 1 / FASTER < self.ratio < FASTER

    @property
    def word(self) -> str:
        """`as fast`, or `faster` or `slower`, with `perhaps` before it where the spread may explain the difference."""
        if not self.differs:
            return "as fast"
        return ("" if self.sure else "perhaps ") + ("faster" if self.ratio > 1 else "slower")


def one_by_one(row: Measurement, detail: Detail, reference: Measurement, before: Detail) -> Speed | None:
    """SingleStream, by the turns that both took and their passes; where they took none, by p50 and its spread."""
    if not row.p50_ms or not reference.p50_ms:
        return None
    if ratios := _in_turns(detail):
        paired, sure = statistics.median(ratios), len(ratios) > 1 and _apart((min(ratios), max(ratios)), (1.0, 1.0))
        return Speed(paired, sure or (len(ratios) == 1 and not 1 / BLIND < paired < BLIND))
    spans = (detail.p50_low_ms, detail.p50_high_ms), (before.p50_low_ms, before.p50_high_ms)
    return Speed(reference.p50_ms / row.p50_ms, _apart(*spans))


def in_turns(detail: Detail) -> float | None:
    """How many times as fast as fp32 ONNX one by one: the median over the passes in which both took turns."""
    ratios = _in_turns(detail)
    return statistics.median(ratios) if ratios else None


def _in_turns(detail: Detail) -> list[float]:
    return [one.speed_up for one in detail.passes if one.speed_up]


def in_batches(row: Measurement, detail: Detail, reference: Measurement, before: Detail) -> Speed | None:
    """Offline, by images/s and its spread over the passes; `BLIND` stands in for that where there is one pass."""
    if not row.images_per_s or not reference.images_per_s:
        return None
    ratio = row.images_per_s / reference.images_per_s
    if min(len(detail.passes), len(before.passes)) < 2:
        return Speed(ratio, not 1 / BLIND < ratio < BLIND)
    rates, others = ([one.images_per_s for one in d.passes] for d in (detail, before))
    return Speed(ratio, _apart((min(rates), max(rates)), (min(others), max(others))))


def _apart(one: Span, other: Span) -> bool:
    return one[0] > other[1] or one[1] < other[0]
