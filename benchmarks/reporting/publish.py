"""Puts a run's results where readers look: `results/`, the README's table, and its picture. Nothing of it is typed."""

from __future__ import annotations

import collections
import dataclasses
import re
from pathlib import Path

from benchmarks import scale
from benchmarks.judging import compare, fronts
from benchmarks.reporting import columns, legend, palette, plots, prose
from benchmarks.results import Results
from catalog import ROOT, KilnError, Store, Variant, write_atomic

BEGIN, END = "<!-- results: written by `make publish`; do not edit -->", "<!-- /results -->"
PICTURE = "report"
SPANNED = ("change_points", "p50_ms")  # figures that a published table shows with what they lie between


def name(results: Results) -> str:
    """The file's name under results/: data sets, machine, versions and day."""
    data = "-".join(sorted({facts.dataset for facts in results.models.values()}))
    cpu = re.sub(r"\b(processor|cpu)\b|\(\w+\)|@", " ", results.machine.cpu, flags=re.IGNORECASE)
    parts = [data, cpu, f"{results.machine.logical_cores}cores"]
    versions = results.machine.versions
    parts += [f"{tool}{versions[tool]}" for tool in ("onnxruntime", "tensorflow") if tool in versions]
    return re.sub(r"[^a-z0-9.]+", "-", " ".join([*parts, results.created[:10]]).lower()).strip("-") + ".json"


def section(results: Results) -> str:
    """The README's section: a headline, and of every model the rows that somebody might take, beside what they beat."""
    groups = compare.groups(results)
    shown = [line for group in groups for line in _brief(group).lines]
    every = sum(line.measured for group in groups for line in group.lines)
    rest = f"All {every} variants: [docs/results.md](docs/results.md); " if every > len(shown) else ""
    file = f"results/{name(results)}"
    return "\n".join(
        [
            prose.headline(results, groups),
            "",
            *_advice(groups),
            *([f"> {caution}", ""] if (caution := prose.warning(results)) else []),
            *_table(shown),
            "",
            f"{_bold()}. {_shipped(groups)}",
            "",
            f"{legend.compact(results, legend.BRIEF)} More: [Read the report]({legend.PAGE}).",
            "",
            f"{setting(results, groups)}. A variant is left out if another of its model is as accurate, as fast, "
            f"one by one and in batches, and as small. {rest}every figure: [{file}]({file}).",
        ]
    )


def page(results: Results) -> str:
    """docs/results.md: all that was measured."""
    groups = compare.groups(results)
    lines = [
        "# Results",
        "",
        "<!-- written by `make publish`; do not edit -->",
        prose.headline(results, groups),
        "",
        *_advice(groups),
        f"{setting(results, groups)}. {_bold()}. {_shipped(groups)}",
        "",
        f"{legend.compact(results, legend.BRIEF)} More: [Read the report]({legend.PAGE.removeprefix('docs/')}).",
    ]
    for caution in prose.warnings(results):
        lines += ["", f"> {caution}"]
    for group in groups:
        for model in group.models:
            of_model = [line for line in group.lines if line.row.variant.model == model]
            left_out = [f"- {line.row.variant.version}: {line.verdict}" for line in of_model if not line.measured]
            lines += ["", f"## {model}", "", *_table([line for line in of_model if line.measured])]
            lines += ["", *left_out] if left_out else []
    return "\n".join(lines) + "\n"


def _advice(groups: list[compare.Group]) -> list[str]:
    chosen = [(group, line) for group in groups for model in group.models if (line := group.chosen(model))]
    said = [f"- **{line.row.variant.model}**: {prose.advice(group, line)}" for group, line in chosen]
    return [*said, ""] if said else []


def _shipped(groups: list[compare.Group]) -> str:
    """Which of the variants a fresh clone can serve at once, and how it comes to the others; "" where that is none."""
    zoo = Store(ROOT / "zoo")
    held = {model: [card.variant.version for card in zoo.variants(model)] for group in groups for model in group.models}
    if not any(held.values()):
        return ""
    example = next(model for model, of_model in held.items() if of_model)
    dataset = next(group.dataset for group in groups if example in group.models)
    known = next((model for model, of_model in held.items() if Variant(model, "onnx").version in of_model), "")
    restored = f", or `python -m training restore {known}` with the zoo's weights" if known else ""
    return (
        f"**A fresh clone serves only {served(held)}, from `zoo/`; the others are made "
        f"from a trained model: `python -m training {example} --dataset {dataset} --recipe cpu`{restored}, then "
        f"`python -m export {example}` (`--formats litert` for one format)."
    )


def served(held: dict[str, list[str]]) -> str:
    """Names the versions of the models, those that most of them have first, to go behind a "**"."""
    kinds = collections.Counter(tuple(sorted(versions)) for versions in held.values() if versions)
    usual = kinds.most_common(1)[0][0]
    others = {model: sorted(versions) for model, versions in held.items() if tuple(sorted(versions)) != usual}
    told = [f"of {model} only {' and '.join(has)}" if has else f"of {model} none" for model, has in others.items()]
    return ", ".join([f"{' and '.join(usual)}** of these models", *told])


def _brief(group: compare.Group) -> compare.Group:
    """With the lines alone that the README's table and picture show."""
    return dataclasses.replace(group, lines=[line for model in group.models for line in _worth_a_row(group, model)])


def _worth_a_row(group: compare.Group, model: str) -> list[compare.Line]:
    lines = [line for line in group.lines if line.row.status == "ok" and line.row.variant.model == model]
    ahead = fronts.front(
        [
            (
                row.p50_ms or 0.0,
                -(row.images_per_s or 0.0),
                row.size_bytes or 0,
                row.accuracy.top1 if row.accuracy else 0.0,
            )
            for row in (line.row for line in lines)
        ]
    )
    reference = group.reference(model)
    return [line for place, line in enumerate(lines) if place in ahead or line.chosen or line == reference]


def _table(lines: list[compare.Line]) -> list[str]:
    shown = columns.named(columns.BRIEF)
    heads = ["model", "variant", *(column.head for column in shown), "verdict"]
    rows = [heads, ["---", "---", *("--:" for _ in shown), "---"]]
    for line in lines:
        variant, mark = line.row.variant, "**" if line.chosen else ""
        named = [variant.model, f"{mark}{variant.version}{mark}"]
        rows.append([*named, *(_shown(column, line) for column in shown), line.verdict])
    return [f"| {' | '.join(row)} |" for row in rows]


def _shown(column: columns.Column, line: compare.Line) -> str:
    span = column.span(line) if column.name in SPANNED else ""
    return f"{column.shown(line)} ({span})" if span else column.shown(line)


def setting(results: Results, groups: list[compare.Group]) -> str:
    """On what the figures were measured: images, run, machine and threads."""
    images = ", ".join(f"{group.test_images:,} test images of {group.dataset}" for group in groups)
    run = f"{images}, one run{_passes(results)} on {results.machine.cpu}"
    return f"{run}, {results.threads} threads, one process a variant"


def dated(results: Results, groups: list[compare.Group]) -> str:
    """The same, with the day and the commit, as a sentence."""
    return f"{setting(results, groups)}; {results.created[:10]}, commit {results.commit}."


def _bold() -> str:
    return f"Bold is the fastest servable variant within {compare.BUDGET_POINTS:g} points of its float parent"


def _passes(results: Results) -> str:
    return f" of {results.settings.passes} passes" if results.settings.passes > 1 else ""


def readme(text: str, results: Results) -> str:
    """The README with its section renewed.

    Raises:
        KilnError: The two marks between which it stands are not there.
    """
    head, begin, rest = text.partition(BEGIN)
    _, end, tail = rest.partition(END)
    if not begin or not end:
        raise KilnError(f"README.md lacks the line {BEGIN!r} or {END!r}, between which the results stand")
    return f"{head}{BEGIN}\n{section(results)}\n{END}{tail}"


def publish(results: Results, source: Path, root: Path = ROOT) -> Path:
    """Copies `source` to `results/`, renews the README's section and picture and pages of docs/; the copy's path.

    All of it is made before any is written, so that what cannot be made leaves everything as it was.
    """
    target, docs = root / "results" / name(results), root / "docs"
    group = _brief(max(compare.groups(results), key=lambda g: len(g.lines)))
    made: dict[Path, str | bytes] = {
        root / "README.md": readme((root / "README.md").read_text(encoding="utf-8"), results),
        docs / "images" / f"{PICTURE}.png": plots.png(group, palette.LIGHT),
        docs / "images" / f"{PICTURE}-dark.png": plots.png(group, palette.DARK),
        target: source.read_bytes(),
        docs / "results.md": page(results),
        docs / "scale.md": scale.text(results, target.name),
    }
    for path, content in made.items():
        write_atomic(path, content)
    return target
