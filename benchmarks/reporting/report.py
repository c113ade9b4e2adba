"""The report: a pure function of the results, as Markdown with pictures beside it and as one self-contained page."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.judging import compare
from benchmarks.reporting import columns, depth, explore, palette, plots, prose, words
from benchmarks.results import Results
from catalog import write_atomic

TEMPLATES = Path(__file__).with_name("templates")


@dataclass(frozen=True)
class Report:
    """What `write` writes. `images` maps a PNG's name to its bytes; the page holds its own drawings instead."""

    headline: str
    markdown: str
    html: str
    images: dict[str, bytes]
    csv: str


def render(results: Results, pictures: bool = True) -> Report:
    """The report of one run; nothing but `results` decides a letter of it. Without `pictures`, no PNG is drawn."""
    found = compare.groups(results)
    said = prose.headline(results, found)
    context = {
        "results": results,
        "groups": found,
        "headline": said,
        "picture": plots.NAME,
        "picture_title": plots.TITLE,
        "advice": prose.advice,
        "warnings": prose.warnings(results),
        "method": prose.method(results),
        "machine": prose.machine_rows(results),
        "summary": plots.summary,
        "svg": plots.svg,
        "word": words,
        "budget": f"{compare.BUDGET_POINTS:g}",
        "batches": _batches(results),
        "light": palette.LIGHT,
        "dark": palette.DARK,
        "explore": explore.data(results, found),
        "row_id": explore.row_id,
        "columns": columns.of_table(found),
        "brief": columns.named(columns.BRIEF),
        "further": columns.further(found),
        "cell": _cell,
        "speed_span": columns.speed_span,
        **depth.context(results, found),
    }
    images = {}
    for group in found if pictures else []:
        images[f"{plots.NAME}-{group.slug}.png"] = plots.png(group, palette.LIGHT)
        images[f"{plots.NAME}-{group.slug}-dark.png"] = plots.png(group, palette.DARK)
    markdown, html = _fill("report.md.j2", False, context), _fill("report.html.j2", True, context)
    return Report(said, markdown, html, images, columns.table(found))


def write(report: Report, folder: Path) -> None:
    """Writes `report.html`, `report.md` with its pictures, and `results.csv`, each of them atomically."""
    for name, image in report.images.items():
        write_atomic(folder / name, image)
    write_atomic(folder / "results.csv", report.csv)
    write_atomic(folder / "report.md", report.markdown)
    write_atomic(folder / "report.html", report.html)


def _fill(template: str, escape: bool, context: dict[str, Any]) -> str:
    import jinja2

    loader = jinja2.FileSystemLoader(TEMPLATES)
    environment = jinja2.Environment(
        loader=loader,
        autoescape=escape,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["cell"] = lambda text: " ".join(str(text).replace("|", r"\|").split())
    return environment.get_template(template).render(context)


def _cell(column: columns.Column, line: compare.Line) -> str:
    """A figure with its small print as the Markdown tables have it."""
    if not line.measured or line.row.accuracy is None:
        return words.NONE
    notes = "; ".join(column.notes(line))
    return f"{column.shown(line)} ({notes})" if notes else column.shown(line)


def _batches(results: Results) -> list[int]:
    """Every batch size that Offline was tried at, ascending."""
    return sorted({int(batch) for row in results.rows for batch in row.images_per_s_at})
