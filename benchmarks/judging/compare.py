"""What the figures mean: each variant against its parent, verdicts in words, Pareto fronts and the choice. Pure."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from benchmarks.judging import intervals
from benchmarks.judging.bound import Bound, bound
from benchmarks.judging.fronts import OF_ACCURACY, PAIRS, front, tied
from benchmarks.judging.pairs import float_parent
from benchmarks.judging.rivals import rivals
from benchmarks.judging.speed import Noise, Speed, in_batches, one_by_one
from benchmarks.results import Detail, Results
from catalog import Measurement, Policy, Variant, servable

BUDGET_POINTS = 0.5  # accuracy a variant may lose to its float parent and still be called as accurate
SMALLER = 1.1
HALVES = ("fp16", "bf16")


@dataclass(frozen=True)
class Line:
    """One row of the report. Ratios are above 1 where the variant is better than ONNX fp32 of its model."""

    row: Measurement
    detail: Detail | None
    change_points: float | None  # top-1 against the float parent
    change_span: tuple[float, float] | None  # its paired 95% interval; None for the parent, and without one in the run
    size_ratio: float | None
    speed: Speed | None  # one by one
    throughput: Speed | None  # in batches
    verdict: str
    chosen: bool = False
    rivals: tuple[str, ...] = ()  # of the choice: versions that could be chosen too and may be as fast
    pareto: tuple[str, ...] = ()  # the pairs of figures in which no other that passed on this data set beats it
    ties: tuple[str, ...] = ()  # those of them that it owes to a lead in accuracy that may be chance
    single: Bound | None = None
    offline: Bound | None = None
    robust_top1: float | None = None  # percent, mean over all corruptions and severities
    robust_change: float | None = None  # points of it against the float parent
    robust_worse: frozenset[str] = frozenset()  # corruptions, and `all`, with a loss that is large and beyond chance
    class_changes: tuple[float, ...] = ()  # points of every class against the float parent

    @property
    def measured(self) -> bool:
        """Whether the row has figures."""
        return self.row.status != "failed"

    @property
    def worst_class(self) -> tuple[int, float] | None:
        """Index of the class that lost most, and its change in points."""
        if not self.class_changes:
            return None
        return min(enumerate(self.class_changes), key=lambda pair: pair[1])

    @property
    def may_be_chance(self) -> bool:
        """Whether the change of top-1 may be none, by McNemar's test, Holm-corrected where the run knows that."""
        detail = self.detail
        p = None if detail is None else detail.mcnemar_p if detail.mcnemar_holm is None else detail.mcnemar_holm
        return p is None or p >= 0.05

    @property
    def may_lose_more(self) -> bool:
        """Whether the interval of the change reaches beyond what may be lost."""
        return self.change_span is not None and self.change_span[0] < -BUDGET_POINTS

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

    def parent_top1(self, model: str) -> float | None:
        """The accuracy of the model's float parent in percent; None where nothing of it was measured."""
        for line in self.lines:
            if line.row.variant.model == model and line.row.accuracy and line.change_points is not None:
                return line.row.accuracy.top1 - line.change_points
        return None

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
    points = {pair: [of(lines[i].row) for i in may] for pair, of in PAIRS.items()}
    ahead = {pair: front(of) for pair, of in points.items()}
    found = [lines[i] for i in may]
    for place, index in enumerate(may):
        pareto = tuple(pair for pair in PAIRS if place in ahead[pair])
        owed = [pair for pair in pareto if pair in OF_ACCURACY]
        ties = [pair for pair in owed if tied(place, points[pair], lambda i, j: margin(found[i], found[j]))]
        lines[index] = replace(lines[index], pareto=pareto, ties=tuple(ties))
    return lines


def margin(line: Line, other: Line) -> float:
    """Points of accuracy that two variants must lie apart: both intervals' halves, as if they were independent.

    Of one model these are of the changes against the parent, whose own is known exactly; of two models, Wilson's.
    """
    same = line.row.variant.model == other.row.variant.model and (line.change_span or other.change_span)
    return math.hypot(*((_half_change(one) if same else _half_wilson(one)) for one in (line, other)))


def gap(line: Line, other: Line) -> float:
    """Points of accuracy that the first is ahead of the second."""
    assert line.row.accuracy and other.row.accuracy
    return line.row.accuracy.top1 - other.row.accuracy.top1


def _half_change(line: Line) -> float:
    return (line.change_span[1] - line.change_span[0]) / 2 if line.change_span else 0.0


def _half_wilson(line: Line) -> float:
    return (line.row.accuracy.high - line.row.accuracy.low) / 2 if line.row.accuracy else 0.0


def _of_model(results: Results, model: str) -> list[Line]:
    rows = [row for row in results.rows if row.variant.model == model]
    measured = {str(row.variant) for row in rows if row.accuracy is not None}
    parent = float_parent([row.variant for row in rows], model, measured)
    parent_top1 = results.models[model].card_top1
    for row in rows:
        if row.variant == parent and row.accuracy is not None:
            parent_top1 = row.accuracy.top1
    reference = next((row for row in rows if row.variant == Variant(model, "onnx") and row.p50_ms is not None), None)
    noise = Noise.of(results.details[str(row.variant)] for row in rows if str(row.variant) in results.details)
    lines = [_line(results, row, parent, parent_top1, reference, noise) for row in rows]
    served = [line.row for line in lines if line.change_points is not None and servable(line.row.variant)]
    policy = Policy(model, "latency", BUDGET_POINTS)
    if (best := policy.best(served, parent_top1)) is None:
        return lines
    near = rivals(results, best, [row for row in served if policy.allows(row, parent_top1)])
    return [replace(line, chosen=True, rivals=tuple(near)) if line.row is best else line for line in lines]


def _line(
    results: Results,
    row: Measurement,
    parent: Variant | None,
    parent_top1: float,
    reference: Measurement | None,
    noise: Noise,
) -> Line:
    detail = results.details.get(str(row.variant))
    if row.status == "failed" or row.accuracy is None or detail is None:
        return Line(row, detail, None, None, None, None, None, row.reason or "not measured")
    flips = None if detail.lost is None or detail.won is None else (detail.lost, detail.won)
    before = results.details.get(str(reference.variant)) if reference else None
    line = Line(
        row=row,
        detail=detail,
        change_points=round(row.accuracy.top1 - parent_top1, 4),
        change_span=intervals.change(*flips, row.accuracy.images) if flips else None,
        size_ratio=_ratio(reference.size_bytes, row.size_bytes) if reference else None,
        speed=one_by_one(row, detail, reference, before, noise) if reference and before else None,
        throughput=in_batches(row, detail, reference, before, noise) if reference and before else None,
        verdict="",
    )
    line = _in_depth(line, detail, results, results.details.get(str(parent)) if parent else None)
    return replace(line, verdict=_verdict(line, row.variant == parent, reference == row))


def _in_depth(line: Line, detail: Detail, results: Results, parent: Detail | None) -> Line:
    """The line with its bounds, its robustness and what became of each class."""
    robust, before = mean_robust(detail), mean_robust(parent) if parent else None
    classes: tuple[float, ...] = ()
    if parent and detail.top1_by_class and detail is not parent:
        pairs = zip(detail.top1_by_class, parent.top1_by_class, strict=True)
        classes = tuple(round(after - before, 2) for after, before in pairs)
    return replace(
        line,
        single=bound(line.row, detail, results.roofline, offline=False),
        offline=bound(line.row, detail, results.roofline, offline=True),
        robust_top1=robust,
        robust_change=round(robust - before, 2) if robust is not None and before is not None else None,
        robust_worse=intervals.robust_worse(detail, parent) if parent and detail is not parent else frozenset(),
        class_changes=classes,
    )


def mean_robust(detail: Detail) -> float | None:
    """Top-1 in percent over all corrupted images; None where there were none."""
    return intervals.mean_robust(detail) if detail.robust_top1 else None


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
    if line.robust_change is not None and line.robust_change <= -intervals.LESS_ROBUST:
        words.append(("" if intervals.ALL in line.robust_worse else "perhaps ") + "less robust")
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
    if variant.precision in HALVES:
        return "half precision"
    if variant.precision != "fp32":
        return "quantized"
    kinds = {"prune": "sparse", "cluster": "clustered"}
    return next((kind for transform, kind in kinds.items() if variant.transform.startswith(transform)), "")


def _accuracy_word(line: Line) -> str:
    change = line.change_points or 0.0
    low, high = line.change_span or (change, change)
    if low < -BUDGET_POINTS and high > BUDGET_POINTS:
        return f"accuracy cannot be told from {line.row.accuracy.images if line.row.accuracy else 0:,} images"
    if abs(change) <= BUDGET_POINTS:
        return ("perhaps " if line.may_lose_more else "") + "as accurate"
    return ("perhaps " if line.may_be_chance else "") + ("more accurate" if change > 0 else "less accurate")
