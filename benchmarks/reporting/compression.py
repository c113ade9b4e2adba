"""docs/compression.md: what every transform did to size, speed and accuracy, and what of the goals is reached."""

from __future__ import annotations

from pathlib import Path

from benchmarks.judging import compare, goals
from benchmarks.judging.compare import Group, Line
from benchmarks.reporting import prose, publish, words
from benchmarks.results import Results
from catalog import ROOT, write_atomic

FOLDER = Path("results", "compression")
PAGE = Path("docs", "compression.md")
HEAD = """# What compression reaches

<!-- written by `make compression`; do not edit -->
Transforms of the networks, each as float32 and int8 ONNX. *change*: points of top-1 against the network as it was
trained, with the 95% interval of the two on the same images; *smaller*: against the float32 ONNX file of the network as
trained, both after gzip; *one by one*: how many times as fast as that file, the median ratio of the quietest turns
taken side by side; *in batches*: how many times the images/s of the int8 of the network as trained, at batch {batch} or
the largest below it that both were measured at; –: not measured, or not asked of that network. How to make them:
[Tune a budget](how-to/tune-a-budget.md).
"""


def page(results: Results) -> str:
    """The page in Markdown."""
    groups = compare.groups(results)
    lines = [HEAD.format(batch=goals.BATCH), f"{publish.setting(results, groups)}.", ""]
    for caution in prose.warnings(results):
        lines += [f"> {caution}", ""]
    lines += ["## What was asked", "", "| goal | model | best variant | change | times | reached |"]
    lines += ["| --- | --- | --- | --: | --: | --- |"]
    models = [(group, model) for group in groups for model in group.models]
    for goal in goals.GOALS:
        lines += [_asked(goal, group, model, first=pair == 0) for pair, (group, model) in enumerate(models)]
    for group, model in models:
        lines += ["", f"## {model}", "", *_table(group, model)]
    return "\n".join(lines) + "\n"


def _asked(goal: goals.Goal, group: Group, model: str, first: bool) -> str:
    """A row; what was asked stands in the first of its rows only."""
    found, what = goal.of(group, model), goal.what if first else ""
    if found is None:
        return f"| {what} | {model} | – | – | – | – |"
    cells = [what, model, found.version, words.points(found.change), words.times(found.factor)]
    return f"| {' | '.join([*cells, 'yes' if found.enough else '**no**'])} |"


def _table(group: Group, model: str) -> list[str]:
    lines = goals.of_model(group, model)
    heads = ["variant", "top-1, %", "change", "kB", "kB after gzip", "smaller", "one by one", "in batches"]
    rows = [heads, ["---", *("--:" for _ in heads[1:])]]
    for _, line in sorted(lines.items(), key=lambda pair: (pair[0][1], pair[0][0])):
        rows.append([goals.version(line.row.variant), *_figures(line, lines)])
    return [f"| {' | '.join(row)} |" for row in rows]


def _figures(line: Line, lines: dict[tuple[str, str], Line]) -> list[str]:
    row, batches = line.row, goals.faster_in_batches(line, lines.get(("", "int8")))
    span = f" ({words.span(*line.change_span, words.points)})" if line.change_span and line.change_points else ""
    smaller = goals.smaller(line, lines.get(("", "fp32")))
    return [
        words.percent(row.accuracy.top1 if row.accuracy else None),
        words.points(line.change_points) + span,
        words.kilobytes(row.size_bytes),
        words.kilobytes(row.gzip_bytes),
        words.times(smaller),
        words.about_times(line.speed_up),
        words.about_times(batches[0]) if batches else words.NONE,
    ]


def put(results: Results, source: Path, root: Path = ROOT) -> Path:
    """Copies `source` to results/compression/ and writes the page of it; the copy's path."""
    target = root / FOLDER / publish.name(results)
    text = page(results)
    write_atomic(target, source.read_bytes())
    write_atomic(root / PAGE, text)
    return target
