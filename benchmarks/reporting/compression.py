"""docs/compression.md: what every transform did to size, speed and accuracy, and what of the goals is reached.

Transforms take hours, so they are measured in several runs, each with the network as trained beside them. Those that
lie in results/compression/ are all told; one that is deleted there is no longer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.judging import compare, goals
from benchmarks.judging.compare import Group, Line
from benchmarks.reporting import prose, publish, stems, words
from benchmarks.results import Results, every
from catalog import ROOT, write_atomic

FOLDER = Path("results", "compression")
PAGE = Path("docs", "compression.md")
HEAD = """# What compression reaches

<!-- written by `make compression`; do not edit -->
Transforms of the networks, each as float32 and int8 ONNX. *change*: points of top-1 against the network as it was
trained, with the 95% interval of the two on the same images; *smaller*: against the float32 ONNX file of the network as
trained or after `quantize_aware`, the larger one, both after gzip (a network restored from int8 has weights that gzip
packs to half, until it is trained on); *one by one*: how many times as fast as float32 ONNX of the network as trained,
the median ratio of the quietest turns taken side by side; *in batches*: how many times the images/s of its int8, at
batch {batch} or the largest below it that both were measured at; *or chance*: it falls short by accuracy alone, and
what was asked lies within that interval; –: not measured, or not asked of that network. The commands under a table make
its transforms in int8 again; more of them in [Tune a budget](how-to/tune-a-budget.md).
"""


@dataclass(frozen=True)
class Run:
    """One run of the page, and the number it has there."""

    number: int
    results: Results
    groups: list[Group]

    @property
    def models(self) -> list[tuple[Group, str]]:
        """Each model with the group it was measured in."""
        return [(group, model) for group in self.groups for model in group.models]

    @property
    def told(self) -> str:
        """On what it was measured, and what is to be known of its networks."""
        lines = [publish.dated(self.results, self.groups)]
        lines += [f"{model}: {facts.notes}." for model, facts in sorted(self.results.models.items()) if facts.notes]
        return " ".join(lines)


def page(results: Sequence[Results], of_stems: Sequence[Results] = ()) -> str:
    """The page in Markdown, of some runs from the oldest to the newest.

    Of a goal the newest run counts that measured what it asks of a model; `of_stems` are runs of `make stems`.
    """
    runs = [Run(number, one, compare.groups(one)) for number, one in enumerate(results, 1)]
    lines = [HEAD.format(batch=goals.BATCH)]
    for run in runs:
        lines += [f"Run {run.number}: {run.told}" if len(runs) > 1 else run.told, "", *prose.quoted(run.results)]
    lines += ["## What was asked", ""]
    lines += [f"Of each the newest run that measured it, of {len(runs)}.", ""] if len(runs) > 1 else []
    lines += ["| goal | model | best variant | change | times | run | reached |"]
    lines += ["| --- | --- | --- | --: | --: | --: | --- |"]
    models = sorted({model for run in runs for _, model in run.models})
    for goal in goals.GOALS:
        lines += [_asked(goal, runs, model, first=place == 0) for place, model in enumerate(models)]
    for model in models:
        lines += ["", f"## {model}"]
        for run, group in _of(runs, model):
            lines += ["", *([f"Run {run.number}:", ""] if len(runs) > 1 else []), *_table(group, model)]
            lines += _made(group, model)
    lines += ["", *stems.section(of_stems[-1])] if of_stems else []
    return "\n".join(lines) + "\n"


def _of(runs: Sequence[Run], model: str) -> list[tuple[Run, Group]]:
    """The runs that measured a model, the oldest first, each with the model's group."""
    return [(run, group) for run in runs for group, measured in run.models if measured == model]


def _asked(goal: goals.Goal, runs: Sequence[Run], model: str, first: bool) -> str:
    """A row; what was asked stands in the first of its rows only."""
    what = goal.what if first else ""
    measured = [(run.number, goal.of(group, model)) for run, group in _of(runs, model)]
    number, found = next((pair for pair in reversed(measured) if pair[1]), (0, None))
    if found is None:
        return f"| {what} | {model} | – | – | – | – | – |"
    cells = [what, model, found.version, words.points(found.change), words.times(found.factor), str(number)]
    return f"| {' | '.join([*cells, words.reached(found.enough, found.chance)])} |"


def _table(group: Group, model: str) -> list[str]:
    lines = goals.of_model(group, model)
    heads = ["variant", "top-1, %", "change", "kB", "kB after gzip", "smaller", "one by one", "in batches"]
    rows = [heads, ["---", *("--:" for _ in heads[1:])]]
    for _, line in sorted(lines.items(), key=lambda pair: (pair[0][1], pair[0][0])):
        rows.append([goals.version(line.row.variant), *_figures(line, lines)])
    return [f"| {' | '.join(row)} |" for row in rows]


def _made(group: Group, model: str) -> list[str]:
    """What makes each transform's int8 again, as the cards have it; older runs do not say."""
    lines = goals.of_model(group, model)
    transformed = [line for (transform, precision), line in sorted(lines.items()) if transform and precision == "int8"]
    made = [line.detail.command for line in transformed if line.detail and line.detail.command]
    return ["", "<!-- not run: takes minutes to an hour -->", "```bash", *made, "```"] if made else []


def _figures(line: Line, lines: dict[tuple[str, str], Line]) -> list[str]:
    row, batches = line.row, goals.faster_in_batches(line, lines.get(("", "int8")))
    span = f" ({words.span(*line.change_span, words.points)})" if line.change_span and line.change_points else ""
    return [
        words.percent(row.accuracy.top1 if row.accuracy else None),
        words.points(line.change_points) + span,
        words.kilobytes(row.size_bytes),
        words.kilobytes(row.gzip_bytes),
        words.times(goals.smaller(line, lines)),
        words.about_times(line.speed_up),
        words.about_times(batches[0]) if batches else words.NONE,
    ]


def put(results: Results, source: Path, root: Path = ROOT, folder: Path = FOLDER) -> Path:
    """Copies `source` into a folder of `results/` and writes the page of all runs that lie there; the copy's path."""
    target = root / folder / publish.name(results)
    write_atomic(target, source.read_bytes())
    write_atomic(root / PAGE, committed(root))
    return target


def committed(root: Path = ROOT) -> str:
    """The page of the runs in `results/`."""
    return page(every(root / FOLDER), every(root / stems.FOLDER))
