"""What the figures mean: each variant against its parent, verdicts in words, Pareto fronts and the choice. Pure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from benchmarks.judging.bound import Bound, bound
from benchmarks.judging.pairs import float_parent
from benchmarks.judging.speed import Speed, in_batches, one_by_one
from benchmarks.results import Detail, Results
from catalog import Measurement, Policy, Variant, servable

BUDGET_POINTS = 0.5  # accuracy a variant may lose to its float parent and still be called as accurate
SMALLER = 1.1
LESS_ROBUST = 1.0  # points on corrupted images, relative to the parent's, from which a verdict says so


@dataclass(frozen=True)
class Line:
    """One row of the report. Ratios are above 1 where the variant is better than ONNX fp32 of its model."""

    row: Measurement
    detail: Detail | None
    change_points: float | None  # top-1 against the float parent
    size_ratio: float | None
    speed: Speed | None  # one by one
    throughput: Speed | None  # in batches
    verdict: str
    chosen: bool = False
    pareto: tuple[str, ...] = ()  # the pairs of figures in which no other that passed on this data set beats it
    single: Bound | None = None
    offline: Bound | None = None
    robust_top1: float | None = None  # percent, mean over all corruptions and severities
    robust_change: float | None = None  # points of it against the float parent
    worst_class: tuple[int, float] | None = None  # index of the class that lost most, and its change in points

    @property
    def measured(self) -> bool:
        """Whether the row has figures."""
        return self.row.status != "failed"

    @property
    def speed_up(self) -> float | None:
        """How many times as fast it is one by one."""
        return self.speed.ratio if self.speed else None


@dataclass(frozen=True)
class Group:
    """All variants on one data set, whose accuracies can be compared."""

    slug: str
    dataset: str
    classes: int
    test_images: int
    models: list[str]
    lines: list[Line]

    def chosen(self, model: str) -> Line | None:
        """The variant to take of a model: the fastest that serving can load within the accuracy budget."""
        return next((line for line in self.lines if line.chosen and line.row.variant.model == model), None)

    def reference(self, model: str) -> Line | None:
        """The model's ONNX fp32, which size and speed are held against."""
        return next((x for x in self.lines if x.measured and x.row.variant == Variant(model, "onnx")), None)


def groups(results: Results) -> list[Group]:
    """The report's sections, in the order of their data sets' names."""
    by_data: dict[tuple[str, str], list[str]] = {}
    for model, facts in sorted(results.models.items()):
        by_data.setdefault((facts.dataset, facts.dataset_sha256), []).append(model)
    names = [name for name, _ in by_data]
    found = []
    for (name, sha256), models in sorted(by_data.items()):
        facts = results.models[models[0]]
        slug = name if names.count(name) == 1 else f"{name}-{sha256[:6]}"
        found.append(Group(slug, name, facts.classes, facts.test_images, models, _lines(results, models)))
    return found


def _lines(results: Results, models: list[str]) -> list[Line]:
    lines = [line for model in models for line in _of_model(results, model)]
    may = [i for i, line in enumerate(lines) if line.row.status == "ok" and line.change_points is not None]
    fronts = {pair: front([of(lines[i].row) for i in may]) for pair, of in PAIRS.items()}
    for place, index in enumerate(may):
        pareto = tuple(pair for pair, ahead in fronts.items() if place in ahead)
        lines[index] = replace(lines[index], pareto=pareto)
    return lines


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


def front(points: Sequence[tuple[float, ...]]) -> set[int]:
    """Indices of the (cost, …, gain) points that no other beats in one figure without losing in another."""

    def beats(one: tuple[float, ...], other: tuple[float, ...]) -> bool:
        cheaper = all(a <= b for a, b in zip(one[:-1], other[:-1], strict=True))
        return cheaper and one[-1] >= other[-1] and one != other

    return {i for i, point in enumerate(points) if not any(beats(other, point) for other in points)}


def _of_model(results: Results, model: str) -> list[Line]:
    rows = [row for row in results.rows if row.variant.model == model]
    measured = {str(row.variant) for row in rows if row.accuracy is not None}
    parent = float_parent([row.variant for row in rows], model, measured)
    parent_top1 = results.models[model].card_top1
    for row in rows:
        if row.variant == parent and row.accuracy is not None:
            parent_top1 = row.accuracy.top1
    reference = next((row for row in rows if row.variant == Variant(model, "onnx") and row.p50_ms is not None), None)
    lines = [_line(results, row, parent, parent_top1, reference) for row in rows]
    served = [line.row for line in lines if line.change_points is not None and servable(line.row.variant)]
    best = Policy(model, "latency", BUDGET_POINTS).best(served, parent_top1)
    return [replace(line, chosen=line.row is best) for line in lines]


def _line(
    results: Results, row: Measurement, parent: Variant | None, parent_top1: float, reference: Measurement | None
) -> Line:
    detail = results.details.get(str(row.variant))
    if row.status == "failed" or row.accuracy is None or detail is None:
        return Line(row, detail, None, None, None, None, row.reason or "not measured")
    before = results.details.get(str(reference.variant)) if reference else None
    line = Line(
        row=row,
        detail=detail,
        change_points=round(row.accuracy.top1 - parent_top1, 4),
        size_ratio=_ratio(reference.size_bytes, row.size_bytes) if reference else None,
        speed=one_by_one(row, detail, reference, before) if reference and before else None,
        throughput=in_batches(row, detail, reference, before) if reference and before else None,
        verdict="",
    )
    line = _in_depth(line, detail, results, results.details.get(str(parent)) if parent else None)
    return replace(line, verdict=_verdict(line, row.variant == parent, reference == row))


def _in_depth(line: Line, detail: Detail, results: Results, parent: Detail | None) -> Line:
    """The line with its bounds, its robustness and its worst class."""
    robust, before = mean_robust(detail), mean_robust(parent) if parent else None
    worst = None
    if parent and detail.top1_by_class and detail is not parent:
        changes = [a - b for a, b in zip(detail.top1_by_class, parent.top1_by_class, strict=True)]
        index = min(range(len(changes)), key=lambda i: changes[i])
        worst = index, round(changes[index], 2)
    return replace(
        line,
        single=bound(line.row, detail, results.roofline, offline=False),
        offline=bound(line.row, detail, results.roofline, offline=True),
        robust_top1=robust,
        robust_change=round(robust - before, 2) if robust is not None and before is not None else None,
        worst_class=worst,
    )


def mean_robust(detail: Detail) -> float | None:
    """Top-1 in percent over all corrupted images; None where there were none."""
    shares = [share for severities in detail.robust_top1.values() for share in severities]
    return sum(shares) / len(shares) if shares else None


def _ratio(above: float | None, below: float | None) -> float | None:
    return above / below if above and below else None


# --- verdicts --------------------------------------------------------------------------------------------------------


def _verdict(line: Line, is_parent: bool, is_reference: bool) -> str:
    row, words = line.row, []
    if is_reference:
        words.append("the reference for size and speed")
    elif line.speed is None or line.throughput is None:
        words.append("no ONNX fp32 in this run to compare with")
    else:
        words += _cost_words(line, line.speed.word, line.throughput.word)
    words.append("the reference for accuracy" if is_parent else _accuracy_word(line))
    if line.robust_change is not None and line.robust_change <= -LESS_ROBUST:
        words.append("less robust")
    if line.detail and not line.detail.settled:
        words.append("unstable: latency had not settled")
    if row.status == "below-floor":
        words.insert(0, "not offered to serving")
    return ", ".join(words)


def _cost_words(line: Line, single: str, batches: str) -> list[str]:
    """Size and speed; first, if it was shrunk to be faster and is so in neither scenario, that."""
    assert line.size_ratio is not None
    size = "smaller" if line.size_ratio >= SMALLER else "larger" if line.size_ratio <= 1 / SMALLER else "as large"
    speed = single if single == batches else f"{single} one by one and {batches} in batches"
    kind = _kind(line.row.variant)
    if kind and not single.endswith("faster") and not batches.endswith("faster"):
        return [f"{kind} but {'no faster' if speed == 'as fast' else speed}", size]
    return [size, speed]


def _kind(variant: Variant) -> str:
    if variant.precision != "fp32":
        return "quantized"
    kinds = {"prune": "sparse", "cluster": "clustered"}
    return next((kind for transform, kind in kinds.items() if variant.transform.startswith(transform)), "")


def _accuracy_word(line: Line) -> str:
    change, detail = line.change_points or 0.0, line.detail
    p = None if detail is None else detail.mcnemar_p if detail.mcnemar_holm is None else detail.mcnemar_holm
    if abs(change) <= BUDGET_POINTS:
        return "as accurate"
    sure = p is not None and p < 0.05
    return ("" if sure else "perhaps ") + ("more accurate" if change > 0 else "less accurate")
