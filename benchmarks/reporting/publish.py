"""Puts a run's results where readers look: `results/`, the README's table, and its picture. Nothing of it is typed."""

from __future__ import annotations

import re
from pathlib import Path

from benchmarks import scale
from benchmarks.judging import compare
from benchmarks.reporting import palette, plots, prose, words
from benchmarks.results import Results
from catalog import ROOT, KilnError, write_atomic

BEGIN, END = "<!-- results: written by `make publish`; do not edit -->", "<!-- /results -->"
PICTURE = "report"


def name(results: Results) -> str:
    """The file's name under results/: data sets, machine, versions and day."""
    data = "-".join(sorted({facts.dataset for facts in results.models.values()}))
    cpu = re.sub(r"\b(processor|cpu)\b|\(\w+\)|@", " ", results.machine.cpu, flags=re.IGNORECASE)
    parts = [data, cpu, f"{results.machine.logical_cores}cores"]
    versions = results.machine.versions
    parts += [f"{tool}{versions[tool]}" for tool in ("onnxruntime", "tensorflow") if tool in versions]
    return re.sub(r"[^a-z0-9.]+", "-", " ".join([*parts, results.created[:10]]).lower()).strip("-") + ".json"


def section(results: Results) -> str:
    """The README's section: a headline, and a row for every variant that was measured."""
    rows = []
    for group in compare.groups(results):
        for line in (line for line in group.lines if line.measured):
            row, mark = line.row, "**" if line.chosen else ""
            top1 = words.percent(row.accuracy.top1) if row.accuracy else words.NONE
            cells = [
                row.variant.model,
                f"{mark}{row.variant.version}{mark}",
                top1,
                words.points(line.change_points),
                words.kilobytes(row.size_bytes),
                words.digits(row.p50_ms),
                words.digits(row.images_per_s),
                line.verdict,
            ]
            rows.append(f"| {' | '.join(cells)} |")
    groups = compare.groups(results)
    measured = (
        f"{', '.join(f'{g.test_images:,} test images of {g.dataset}' for g in groups)}, one run{_passes(results)}"
    )
    return "\n".join(
        [
            prose.headline(results, groups),
            "",
            "| model | variant | top-1 % | change | kB | p50 ms | images/s | verdict |",
            "|---|---|--:|--:|--:|--:|--:|---|",
            *rows,
            "",
            f"{measured} on {results.machine.cpu}, {results.threads} threads, one process a variant; "
            f"all figures in [results/{name(results)}](results/{name(results)}). Bold is the fastest variant within "
            f"{compare.BUDGET_POINTS:g} points of its float parent.",
        ]
    )


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
    """Copies `source` to `results/`, renews the README's section and picture and docs/scale.md; the copy's path."""
    target = root / "results" / name(results)
    renewed = readme((root / "README.md").read_text(encoding="utf-8"), results)
    group = max(compare.groups(results), key=lambda g: len(g.lines))
    for colours, suffix in ((palette.LIGHT, ""), (palette.DARK, "-dark")):
        write_atomic(root / "docs" / "images" / f"{PICTURE}{suffix}.png", plots.png(group, plots.KINDS[0], colours))
    write_atomic(target, source.read_bytes())
    write_atomic(root / "docs" / "scale.md", scale.text(results, target.name))
    write_atomic(root / "README.md", renewed)
    return target
