"""How a variant's speed compares with the reference's in the same run: a ratio, its range, and a word that knows it."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from benchmarks.judging import intervals
from benchmarks.results import Detail, Pass
from catalog import Measurement

FASTER = 1.05  # a ratio of times below which two speeds are called the same, and a range around one is not told
BLIND = 1.25  # a ratio that figures which tell nothing of their spread must reach to count
SURE_ERRORS = 2  # standard errors that two passes must lie apart beyond not overlapping, which they do by chance
FREEDOM = 10  # degrees of it, below which a pooled noise is not believed
Span = tuple[float, float]


@dataclass(frozen=True)
class Speed:
    """One scenario; `ratio` is above 1 where the variant is better, and lies between `low` and `high`.

    `margin` is what the ratio must reach beside, or be below its reciprocal, where the range tells too little.
    """

    ratio: float
    low: float
    high: float
    margin: float = 1.0

    @property
    def sure(self) -> bool:
        """Whether the range excludes 1, and by enough where it says little."""
        return (self.low > 1 or self.high < 1) and not 1 / self.margin < self.ratio < self.margin

    @property
    def differs(self) -> bool:
        """Whether the ratio is far enough from 1 to be told."""
        return not 1 / FASTER < self.ratio < FASTER

    @property
    def wide(self) -> bool:
        """Whether the range is so wide that it must be told beside the ratio."""
        return self.low < self.ratio / FASTER or self.high > self.ratio * FASTER

    @property
    def word(self) -> str:
        """`as fast`, or `faster` or `slower`, with `perhaps` before it where the spread may explain the difference."""
        if not self.differs:
            return "as fast"
        return ("" if self.sure else "perhaps ") + ("faster" if self.ratio > 1 else "slower")


@dataclass(frozen=True)
class Noise:
    """How far the passes of a model's variants lie apart; two passes of one variant alone hardly say that.

    Each is the standard deviation of logarithms, with its degrees of freedom.
    """

    turns: tuple[float, int] = (0.0, 0)  # of speed-ups over fp32 ONNX, turn by turn
    p50: tuple[float, int] = (0.0, 0)
    rates: tuple[float, int] = (0.0, 0)

    @classmethod
    def of(cls, details: Iterable[Detail]) -> Noise:
        """That of the details of one model, whose variants were measured in the same minutes."""
        passes = [detail.passes for detail in details]
        ratios = [_ratios(of_one) for of_one in passes]
        return cls(
            turns=_pooled(of_one for of_one in ratios if set(of_one) != {1.0}),  # the reference against itself
            p50=_pooled([one.p50_ms for one in of_one] for of_one in passes),
            rates=_pooled([one.images_per_s for one in of_one] for of_one in passes),
        )


NONE = Noise()


def one_by_one(
    row: Measurement, detail: Detail, reference: Measurement, before: Detail, noise: Noise = NONE
) -> Speed | None:
    """SingleStream, by the quietest of the turns that both took, with its interval.

    Runs that did not note those have the median of the passes' and what their intervals span, or the passes themselves
    for a range; where there were no turns, it is that of p50 over p50.
    """
    if not row.p50_ms or not reference.p50_ms:
        return None
    return _of_turns(detail, noise) or by_p50(row, detail, reference, before, noise)


def _of_turns(detail: Detail, noise: Noise) -> Speed | None:
    if quiet := detail.quiet:
        return Speed(quiet.speed_up, quiet.low, quiet.high)
    ratios = _ratios(detail.passes)
    if not ratios:
        return None
    spans = [_span(one) for one in detail.passes if one.speed_up]
    known = [span for span in spans if span]
    ends = [end for span in known for end in span] + ratios
    margin = 1.0 if len(known) == len(spans) else _margin(len(ratios), [ratios], noise.turns)
    return Speed(statistics.median(ratios), min(ends), max(ends), margin)


def by_turns(detail: Detail, before: Detail, noise: Noise = NONE) -> Speed | None:
    """SingleStream of two variants that both took turns with fp32 ONNX; None where one did not."""
    one, other = _of_turns(detail, noise), _of_turns(before, noise)
    if one is None or other is None:
        return None
    return Speed(one.ratio / other.ratio, one.low / other.high, one.high / other.low, max(one.margin, other.margin))


def by_p50(row: Measurement, detail: Detail, reference: Measurement, before: Detail, noise: Noise = NONE) -> Speed:
    """SingleStream, by p50 and the span of its medians; both rows must have one."""
    assert row.p50_ms and reference.p50_ms
    passes = [[one.p50_ms for one in each.passes] for each in (detail, before)]
    # one pass has its five fifths for a span, which is believed
    margin = _margin(2, passes, noise.p50) if min(map(len, passes)) == 2 else 1.0
    low, high = before.p50_low_ms / detail.p50_high_ms, before.p50_high_ms / detail.p50_low_ms
    return Speed(reference.p50_ms / row.p50_ms, low, high, margin)


def in_turns(detail: Detail) -> float | None:
    """How many times as fast as fp32 ONNX one by one, as `one_by_one` has it; None where they took no turns."""
    found = _of_turns(detail, NONE)
    return found.ratio if found else None


def in_batches(
    row: Measurement, detail: Detail, reference: Measurement, before: Detail, noise: Noise = NONE
) -> Speed | None:
    """Offline, by images/s and its span over the passes, each at its variant's best batch."""
    if not row.images_per_s or not reference.images_per_s:
        return None
    rates, others = (
        [one.images_per_s_in(of.offline_batch) for one in each.passes] or [0.0]
        for of, each in ((row, detail), (reference, before))
    )
    ratio, least = row.images_per_s / reference.images_per_s, min(len(rates), len(others))
    if least < 2:
        return Speed(ratio, ratio / BLIND, ratio * BLIND)
    return Speed(
        ratio, min(rates) / max(others), max(rates) / min(others), _margin(least, [rates, others], noise.rates)
    )


def _ratios(passes: Sequence[Pass]) -> list[float]:
    return [one.speed_up for one in passes if one.speed_up]


def _span(one: Pass) -> Span | None:
    known = one.speed_up_low is not None and one.speed_up_high is not None
    return (one.speed_up_low, one.speed_up_high) if known else None  # type: ignore[return-value]


def _pooled(groups: Iterable[Sequence[float]]) -> tuple[float, int]:
    logs = [[math.log(value) for value in group] for group in groups if len(group) > 1]
    return intervals.noise(logs), sum(len(group) - 1 for group in logs)


def _margin(passes: int, groups: Sequence[Sequence[float]], pooled: tuple[float, int]) -> float:
    """What a ratio of the groups' middles must reach to be more than noise; 1 of three passes, whose range says it.

    One pass says nothing of noise. Two that do not overlap do so by chance in one case of three: the noise of all
    variants of the model, or their own where that is larger, says how far apart they must be.
    """
    if passes != 2:
        return BLIND if passes < 2 else 1.0
    noise, freedom = pooled
    noise = max(noise, _pooled(groups)[0])
    found = math.exp(SURE_ERRORS * noise * math.sqrt(sum(1 / len(group) for group in groups)))
    return found if freedom >= FREEDOM else max(found, BLIND)
