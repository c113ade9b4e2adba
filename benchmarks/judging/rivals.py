"""Who may be as fast as the variant that was chosen: figures that lie too near for one run to put them in an order."""

from __future__ import annotations

from collections.abc import Iterable

from benchmarks.judging import speed
from benchmarks.judging.speed import Noise, Speed
from benchmarks.results import Results
from catalog import Measurement


def rivals(results: Results, taken: Measurement, others: Iterable[Measurement], batches: bool = False) -> list[str]:
    """The versions of those others of its model that may be as fast as `taken`, one by one or in batches."""
    noise = Noise.of(results.details[name] for name in results.details if name.startswith(f"{taken.variant.model}/"))
    return [row.variant.version for row in others if row is not taken and _near(results, taken, row, noise, batches)]


def _near(results: Results, taken: Measurement, row: Measurement, noise: Noise, batches: bool) -> bool:
    """Whether a figure of theirs leaves it open which is the faster: p50, and their turns beside fp32 ONNX's."""
    details = [results.details.get(str(one.variant)) for one in (row, taken)]
    detail, before = details
    if detail is None or before is None or not row.p50_ms or not taken.p50_ms:
        return False
    if batches:
        found = [speed.in_batches(row, detail, taken, before, noise)]
    else:
        found = [speed.by_p50(row, detail, taken, before, noise), speed.by_turns(detail, before, noise)]
    return any(one is not None and not _slower(one) for one in found)


def _slower(one: Speed) -> bool:
    return one.sure and one.differs and one.ratio < 1
