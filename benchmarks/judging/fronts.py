"""Who is beaten by nobody in a pair of figures, and who owes that to a lead in accuracy that may be chance. Pure."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from catalog import Measurement


def _top1(row: Measurement) -> float:
    return row.accuracy.top1 if row.accuracy else 0.0


LATENCY_PAIR, SIZE_PAIR = "accuracy/latency", "accuracy/size"
# (cost, gain) of a measured row
PAIRS: dict[str, Callable[[Measurement], tuple[float, float]]] = {
    LATENCY_PAIR: lambda row: (row.p50_ms or 0.0, _top1(row)),
    SIZE_PAIR: lambda row: (row.size_bytes or 0, _top1(row)),
    "accuracy/throughput": lambda row: (-(row.images_per_s or 0.0), _top1(row)),
    "latency/size": lambda row: (row.p50_ms or 0.0, -(row.size_bytes or 0)),
}
OF_ACCURACY = [pair for pair in PAIRS if pair.startswith("accuracy/")]


def front(points: Sequence[tuple[float, ...]]) -> set[int]:
    """Indices of the (cost, …, gain) points that no other beats in one figure without losing in another."""

    def beats(one: tuple[float, ...], other: tuple[float, ...]) -> bool:
        cheaper = all(a <= b for a, b in zip(one[:-1], other[:-1], strict=True))
        return cheaper and one[-1] >= other[-1] and one != other

    return {i for i, point in enumerate(points) if not any(beats(other, point) for other in points)}


def tied(index: int, points: Sequence[tuple[float, float]], margin: Callable[[int, int], float]) -> bool:
    """Whether a (cost, accuracy) point that costs no more lies below this one by no more than their `margin`."""
    cost, top1 = points[index]
    others = (i for i in range(len(points)) if i != index and points[i][0] <= cost)
    return any(top1 - points[i][1] <= margin(index, i) for i in others)
