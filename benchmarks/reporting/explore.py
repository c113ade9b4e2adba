"""What the page's interactive plot is drawn from: every measured row's figures as JSON, and the text of its card."""

from __future__ import annotations

import json
from typing import Any

from benchmarks.judging.compare import Group, Line
from benchmarks.reporting import depth, palette, words
from benchmarks.reporting.columns import COLUMNS
from benchmarks.results import Results

FIRST_AXES = ("p50_ms", "change_points")


def data(results: Results, groups: list[Group]) -> str:
    """The JSON, safe inside a script element; only axes along which something was measured are offered."""
    axes = [
        {"key": c.name, "title": c.title, "unit": c.unit, "better": c.better}
        for c in COLUMNS
        if c.axis and any(isinstance(c.of(x), int | float) for g in groups for x in g.lines if x.measured)
    ]
    found = {"axes": axes, "first": list(FIRST_AXES), "groups": [_group(results, group) for group in groups]}
    return json.dumps(found, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c")


def _group(results: Results, group: Group) -> dict[str, Any]:
    lines = [line for line in group.lines if line.measured and line.row.accuracy]
    return {"slug": group.slug, "points": [_point(results, group, line) for line in lines]}


def _point(results: Results, group: Group, line: Line) -> dict[str, Any]:
    variant, accuracy = line.row.variant, line.row.accuracy
    assert accuracy is not None
    figures = {c.name: c.of(line) for c in COLUMNS if c.axis}
    return {
        "id": row_id(group, line),
        "model": variant.model,
        "version": variant.version,
        "format": variant.format,
        "precision": variant.precision,
        "colour": group.models.index(variant.model) % palette.MODELS,
        "chosen": line.chosen,
        "served": line.row.status == "ok",
        "interval": {"top1": [accuracy.low, accuracy.high], "change_points": line.change_span or []},
        "figures": {name: value for name, value in figures.items() if isinstance(value, int | float)},
        "card": card(line),
    }


def row_id(group: Group, line: Line) -> str:
    """The id of a row in the page's table."""
    return f"row-{group.slug}-{line.row.variant.model}-{line.row.variant.version}"


def card(line: Line) -> list[list[str]]:
    """What the card beside a point says, as names and values."""
    row, detail = line.row, line.detail
    assert row.accuracy is not None
    change = f"{words.points(line.change_points)} points"
    if line.change_span:
        change += f" ({words.span(*line.change_span, words.points)})"
    rows = [
        ["top-1", f"{words.percent(row.accuracy.top1)}%"],
        ["change", change],
        ["p50, p99", f"{words.about(row.p50_ms)}, {words.about(row.p99_ms)} ms"],
        ["Offline", f"{words.about(row.images_per_s)} images/s, batch {row.offline_batch}"],
        ["size", f"{words.kilobytes(row.size_bytes)} kB"],
    ]
    if detail and detail.server_rate is not None:
        rows.append(["Server", f"{words.about(detail.server_rate)} images/s"])
    if line.robust_top1 is not None:
        rows.append(["corrupted", f"{words.percent(line.robust_top1)}% ({words.points(line.robust_change)})"])
    if line.offline:
        beyond = ", peak underestimated" if line.offline.compute > 1 else ""
        rows.append(["bound by", f"{line.offline.by}, {100 * line.offline.compute:.0f}% of the peak{beyond}"])
    if line.pareto:
        rows.append(["best in", "; ".join(depth.pareto(line))])
    return [*rows, ["", line.verdict]]
