"""What the figures mean: each variant against its parent, verdicts in words, Pareto fronts and the choice. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from benchmarks.pairs import float_parent
from benchmarks.results import Detail, Results
from catalog import Measurement, Variant

BUDGET_POINTS = 0.5  # accuracy a variant may lose to its float parent and still be called as accurate
FASTER = 1.05  # a ratio of times below which two speeds are called the same
SMALLER = 1.1


@dataclass(frozen=True)
class Line:
    """One row of the report. Ratios are above 1 where the variant is better than ONNX fp32 of its model."""

    row: Measurement
    detail: Detail | None
    change_points: float | None  # top-1 against the float parent
    size_ratio: float | None
    speed_up: float | None  # of p50
    throughput_up: float | None  # of Offline
    verdict: str
    front_latency: bool = False  # no other variant on this data set is both faster and as accurate
    front_size: bool = False
    chosen: bool = False

    @property
    def measured(self) -> bool:
        """Whether the row has figures."""
        return self.row.status != "failed"

    @property
    def within_budget(self) -> bool:
        """Whether it may be taken: offered to serving, and not more than the budget below its parent."""
        return self.row.status == "ok" and self.change_points is not None and self.change_points >= -BUDGET_POINTS


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
        """The variant to take of a model: the fastest within the accuracy budget."""
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
    timed = [i for i, line in enumerate(lines) if line.row.p50_ms is not None and line.row.accuracy is not None]
    fast = front([(lines[i].row.p50_ms or 0.0, lines[i].row.accuracy.top1) for i in timed])  # type: ignore[union-attr]
    small = front([(lines[i].row.size_bytes or 0, lines[i].row.accuracy.top1) for i in timed])  # type: ignore[union-attr]
    for place, index in enumerate(timed):
        lines[index] = replace(lines[index], front_latency=place in fast, front_size=place in small)
    return lines


def front(points: Sequence[tuple[float, float]]) -> set[int]:
    """Indices of the (cost, gain) points that no other beats in one without losing in the other."""
    return {
        i
        for i, (cost, gain) in enumerate(points)
        if not any(c <= cost and g >= gain and (c, g) != (cost, gain) for c, g in points)
    }


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
    eligible = [i for i, line in enumerate(lines) if line.within_budget and line.row.p50_ms is not None]
    if eligible:
        best = min(eligible, key=lambda i: lines[i].row.p50_ms or 0.0)
        lines[best] = replace(lines[best], chosen=True)
    return lines


def _line(
    results: Results, row: Measurement, parent: Variant | None, parent_top1: float, reference: Measurement | None
) -> Line:
    detail = results.details.get(str(row.variant))
    if row.status == "failed" or row.accuracy is None or detail is None:
        return Line(row, detail, None, None, None, None, row.reason or "not measured")
    line = Line(
        row=row,
        detail=detail,
        change_points=round(row.accuracy.top1 - parent_top1, 4),
        size_ratio=_ratio(reference.size_bytes, row.size_bytes) if reference else None,
        speed_up=_ratio(reference.p50_ms, row.p50_ms) if reference else None,
        throughput_up=_ratio(row.images_per_s, reference.images_per_s) if reference else None,
        verdict="",
    )
    before = results.details.get(str(reference.variant)) if reference else None
    return replace(line, verdict=_verdict(line, before, row.variant == parent, reference == row))


def _ratio(above: float | None, below: float | None) -> float | None:
    return above / below if above and below else None


# --- verdicts --------------------------------------------------------------------------------------------------------


def _verdict(line: Line, before: Detail | None, is_parent: bool, is_reference: bool) -> str:
    row, words = line.row, []
    if is_reference:
        words.append("the reference for size and speed")
    elif line.speed_up is None:
        words.append("no ONNX fp32 in this run to compare with")
    else:
        words += _cost_words(line, before)
    words.append("the reference for accuracy" if is_parent else _accuracy_word(line))
    if line.detail and not line.detail.settled:
        words.append("latency had not settled")
    if row.status == "below-floor":
        words.insert(0, "not offered to serving")
    return ", ".join(words)


def _cost_words(line: Line, before: Detail | None) -> list[str]:
    assert line.size_ratio is not None
    speed, slow = _speed_word(line, before)
    size = "smaller" if line.size_ratio >= SMALLER else "larger" if line.size_ratio <= 1 / SMALLER else "as large"
    kind = _kind(line.row.variant)
    if kind and slow:
        return [f"{kind} but {speed}", size]
    return [size, speed]


def _kind(variant: Variant) -> str:
    if variant.precision != "fp32":
        return "quantized"
    return "sparse" if variant.transform.startswith("prune") else ""


def _speed_word(line: Line, before: Detail | None) -> tuple[str, bool]:
    """How fast in words, and whether it is so in neither scenario."""
    single = _against(line.speed_up or 1.0)
    if before and line.detail and single == "faster" and line.detail.p50_high_ms >= before.p50_low_ms:
        single = "as fast"  # the spreads of the two medians meet
    if before and line.detail and single == "slower" and line.detail.p50_low_ms <= before.p50_high_ms:
        single = "as fast"
    batches = _against(line.throughput_up or 1.0)
    if single == batches:
        return ("no faster" if single == "as fast" and _kind(line.row.variant) else single), single != "faster"
    return f"{single} one by one and {batches} in batches", "faster" not in (single, batches)


def _against(ratio: float) -> str:
    return "faster" if ratio >= FASTER else "slower" if ratio <= 1 / FASTER else "as fast"


def _accuracy_word(line: Line) -> str:
    change, p = line.change_points or 0.0, line.detail.mcnemar_p if line.detail else None
    if abs(change) <= BUDGET_POINTS:
        return "as accurate"
    sure = p is not None and p < 0.05
    return ("" if sure else "perhaps ") + ("more accurate" if change > 0 else "less accurate")
