"""The report is a pure function of the results; its words and structure are held against golden files.

After a change that is meant: `UPDATE_GOLDEN=1 python -m pytest tests/benchmarks`, and read the difference.
"""

from __future__ import annotations

import dataclasses
import os
import re
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from benchmarks.judging.compare import groups
from benchmarks.reporting import plots
from benchmarks.reporting.palette import LIGHT
from benchmarks.reporting.plots import draw, svg
from benchmarks.reporting.report import Report, render, write
from benchmarks.results import Results
from catalog import Accuracy, Variant

GOLDEN = Path(__file__).parent / "golden"


@pytest.fixture(scope="module")
def report(golden: Results) -> Report:
    return render(golden)


def without_plots(html: str) -> str:
    """The page without its drawings, which vary with Matplotlib's version."""
    return re.sub(r"(<svg role).*?</svg>", r"\1/>", html, flags=re.DOTALL)


@pytest.mark.parametrize("name", ["report.md", "report.html"])
def test_golden(report: Report, name: str) -> None:
    text = report.markdown if name == "report.md" else without_plots(report.html)
    path = GOLDEN / name
    if os.environ.get("UPDATE_GOLDEN"):
        path.write_text(text, encoding="utf-8")
    assert text == path.read_text(encoding="utf-8")


class Page(HTMLParser):
    """What is to be known of a page: its ids, its references, and that every element is closed."""

    VOID = frozenset({"meta", "link", "br", "img", "input", "hr"})

    def __init__(self, html: str) -> None:
        super().__init__()
        self.ids: Counter[str] = Counter()
        self.references: list[str] = []
        self.open: list[str] = []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in self.VOID:
            self.open.append(tag)
        self._note(attrs)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._note(attrs)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def _note(self, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name == "id":
                self.ids[value or ""] += 1
            elif name in ("src", "href", "xlink:href", "srcset", "aria-labelledby"):
                self.references.append(("#" if name.startswith("aria") else "") + (value or ""))


def test_the_page_is_whole_and_needs_nothing_else(report: Report) -> None:
    page = Page(report.html)
    assert page.open == []
    assert [name for name, count in page.ids.items() if count > 1] == []
    assert page.references
    for reference in page.references:
        assert reference == "data:," or reference[1:] in page.ids, reference
    assert not re.search(r"@import|url\((?!#)|fetch\(|https?://(?!www\.w3\.org/)", report.html)


def test_drawings_take_their_colours_from_the_page(golden: Results) -> None:
    group = groups(golden)[0]
    text = svg(group)
    assert "var(--ink)" in text and "var(--model-0)" in text
    assert not re.search(r"#[0-9a-f]{6}\b", text)


def test_every_row_is_in_both(report: Report, golden: Results) -> None:
    for row in golden.rows:
        assert re.search(rf"^\| {row.variant.model} \| (\*\*)?{row.variant.version}(\*\*)? \|", report.markdown, re.M)
    assert report.html.count('<th scope="row" data-label="variant">') == len(golden.rows)


def test_tables_are_rectangular(report: Report) -> None:
    for block in re.findall(r"(?:^\|.*\n)+", report.markdown, re.M):
        widths = {len(re.findall(r"(?<!\\)\|", line)) for line in block.splitlines()}
        assert len(widths) == 1, block


def test_rendering_twice_gives_the_same(report: Report, golden: Results, tmp_path: Path) -> None:
    assert render(golden) == report
    write(report, tmp_path)
    named = re.findall(r'(?:src|srcset)="([^"]+)"', report.markdown)
    assert named and all((tmp_path / name).is_file() for name in named)


def test_text_from_a_store_cannot_become_markup(golden: Results) -> None:
    evil = "<script>alert(1)</script> | x\ny"
    rows = [dataclasses.replace(row, reason=evil) if row.status == "failed" else row for row in golden.rows]
    report = render(dataclasses.replace(golden, rows=rows), pictures=False)
    assert "<script>alert" not in report.html
    assert r"\| x y |" in report.markdown


def test_nothing_measured_is_a_report_too(golden: Results) -> None:
    rows = [dataclasses.replace(row, status="failed", reason="no", accuracy=None, p50_ms=None) for row in golden.rows]
    rows = [dataclasses.replace(row, images_per_s_at={}, size_bytes=None) for row in rows]
    report = render(dataclasses.replace(golden, rows=rows, details={}), pictures=False)
    assert report.headline.startswith("0 of 15 variants could be measured")
    assert "no servable variant within 0.5 points" in report.markdown


def test_two_data_sets_are_two_sections(golden: Results) -> None:
    models = dict(golden.models)
    models["lenet"] = dataclasses.replace(models["lenet"], dataset="digits", dataset_sha256="d" * 64)
    models["simcnn"] = dataclasses.replace(models["simcnn"], dataset_sha256="e" * 64)
    found = groups(dataclasses.replace(golden, models=models))
    assert [group.slug for group in found] == ["cifar10-c4a38c", "cifar10-eeeeee", "digits"]
    assert [group.models for group in found] == [["mobilenetv2"], ["simcnn"], ["lenet"]]


def test_one_model_gets_a_sentence_with_its_figures(golden: Results) -> None:
    rows = [row for row in golden.rows if row.variant.model == "mobilenetv2"]
    one = dataclasses.replace(golden, rows=rows, models={"mobilenetv2": golden.models["mobilenetv2"]})
    assert render(one, pictures=False).headline == (
        "onnx-int8 is the fastest servable variant of mobilenetv2 within 0.5 points of its float parent: 0.59 ms an "
        "image, 1.9 times the speed of fp32 ONNX; 2,610 kB instead of 9,080; 89.74% right on 10,000 test images, 0.38 "
        "points lower than its parent."
    )


@pytest.mark.parametrize("narrow", [False, True])
def test_the_picture_names_every_variant_and_no_name_covers_another(golden: Results, narrow: bool) -> None:
    group = groups(golden)[0]
    figure = draw(group, LIGHT, narrow)
    axes = figure.axes[0]
    texts = [text for text in axes.texts if text.get_text()]
    drawn = [line.row.variant.version for line in group.lines if line.measured]
    assert Counter(drawn) <= Counter(text.get_text() for text in texts)
    boxes = [text.get_window_extent() for text in texts]
    for i, box in enumerate(boxes):
        assert box.x1 < axes.bbox.x0 or texts[i].get_text() in group.models or "%" in texts[i].get_text()
        assert not any(box.shrunk(0.98, 0.9).overlaps(other.shrunk(0.98, 0.9)) for other in boxes[:i])


def test_the_picture_has_every_figure_at_its_place(golden: Results) -> None:
    group = groups(golden)[0]
    axes = draw(group, LIGHT).axes
    for column, panel in zip(plots.COLUMNS, axes, strict=True):
        marks = sorted(np.asarray(line.get_xdata())[0] for line in panel.lines if line.get_marker() == "o")
        assert marks == pytest.approx(sorted(column.of(line) or 0.0 for line in group.lines if line.measured))
        left, right = panel.get_xlim()
        assert all(left < mark < right for mark in marks)
    bold = [text.get_text() for text in axes[0].texts if text.get_fontweight() == "bold"]
    assert bold == ["lenet", "litert-fp32", "mobilenetv2", "onnx-int8", "simcnn", "litert-fp32"]


def test_a_broken_variant_does_not_crush_the_changes_of_the_others(golden: Results) -> None:
    name = "mobilenetv2/onnx-int8"
    rows = [
        dataclasses.replace(r, accuracy=Accuracy.of(4000, 10_000)) if str(r.variant) == name else r for r in golden.rows
    ]
    details = {**golden.details, name: dataclasses.replace(golden.details[name], lost=5100, won=88)}
    panel = draw(groups(dataclasses.replace(golden, rows=rows, details=details))[0], LIGHT).axes[-1]
    at = [panel.transAxes.inverted().transform(panel.transData.transform((x, 0)))[0] for x in (-50.12, -0.5, 0)]
    assert 0 < at[0] < at[1] < at[2] < 1 and at[2] - at[1] > 0.1


def test_the_choice_is_within_budget_and_fastest(golden: Results) -> None:
    group = groups(golden)[0]
    chosen = {line.row.variant for line in group.lines if line.chosen}
    assert chosen == {Variant("lenet", "litert"), Variant("mobilenetv2", "onnx", "int8"), Variant("simcnn", "litert")}


def test_what_serving_cannot_load_is_not_the_choice(golden: Results) -> None:
    rows = [dataclasses.replace(row, p50_ms=0.001) if row.variant.format == "keras" else row for row in golden.rows]
    fastest, gone = Variant("lenet", "litert"), Variant("lenet", "gone")  # a format that this checkout does not have
    rows = [dataclasses.replace(row, variant=gone) if row.variant == fastest else row for row in rows]
    details = {**golden.details, str(gone): golden.details[str(fastest)]}
    group = groups(dataclasses.replace(golden, rows=rows, details=details))[0]
    chosen = {line.row.variant for line in group.lines if line.chosen}
    assert chosen == {Variant("lenet", "onnx"), Variant("mobilenetv2", "onnx", "int8"), Variant("simcnn", "litert")}


def test_a_busy_machine_and_a_quick_run_are_said_first(golden: Results, report: Report) -> None:
    assert "quick run" not in report.markdown and "busy" not in report.markdown
    loaded = render(dataclasses.replace(golden, quick=True, load_before=[3.6, 1.0, 0.5]), pictures=False)
    for text in (loaded.markdown.split("## ")[0], loaded.html.split("<main>")[0]):
        assert "This was a quick run" in text
        assert "busy with other work (load average 3.6 before and 1.9 after the run, on 2 cores)" in text
    told = dataclasses.replace(golden, load_before=[3.6, 1.0, 0.5], others_percent=30.4)
    assert "which took 30% of its 2 cores' time during the run" in render(told, pictures=False).markdown
    first, *others = golden.details
    assert "own speed changed" not in report.markdown
    quicker = [dataclasses.replace(one, kernel_ms=0.05) for one in golden.details[first].passes]
    slower = [dataclasses.replace(one, kernel_ms=0.1, offline_kernel_ms=0.11) for one in quicker]
    details = {
        n: dataclasses.replace(golden.details[n], passes=slower if n in others else quicker) for n in golden.details
    }
    unsteady = render(dataclasses.replace(golden, details=details), pictures=False)
    assert "The machine's own speed changed" not in unsteady.markdown  # three samples of many are no tenth
    halves = {n: dataclasses.replace(d, passes=[*quicker, *slower]) for n, d in golden.details.items()}
    unsteady = render(dataclasses.replace(golden, details=halves), pictures=False)
    for text in (unsteady.markdown.split("## ")[0], unsteady.html.split("<main>")[0].replace("&#39;", "'")):
        assert "The machine's own speed changed during the run (its calibration kernel took 0.0500 ms at" in text
        assert "0.110 ms at the 90th" in text and "2.20×" in text
    calm = dataclasses.replace(told, others_percent=1.0)  # whatever was computed before it began
    assert "busy" not in render(calm, pictures=False).markdown


def test_a_panel_needs_no_words_beyond_the_legend(report: Report) -> None:
    """Every term of a heading is explained on the page before the first table, in both renderings."""
    head = report.html.partition("<main>")[0]
    for term in ("float parent", "servable", "plain ONNX", "p50", "held/s", "ratio", "speed-up", "RSS", "tie"):
        assert f"<dt>{term}</dt>" in head and f"- *{term}*: " in report.markdown
    assert report.html.count('<p class="rule">') >= 7


def test_a_long_run_is_told_in_numbers_not_in_names(golden: Results) -> None:
    details = {name: dataclasses.replace(one, reused=True, settled=False) for name, one in golden.details.items()}
    said = render(dataclasses.replace(golden, details=details), pictures=False).markdown.partition("## How this was")[2]
    assert "14 of 14 variants' answers reused" in said and "the order is in results.json" in said
    assert "14 variants did not settle" in said and "lenet/" not in said


def test_the_energy_of_a_row_sorts_as_a_number(golden: Results) -> None:
    details = {
        name: dataclasses.replace(one, energy_mj={"rapl package-0": 9.5}) for name, one in golden.details.items()
    }
    html = render(dataclasses.replace(golden, details=details), pictures=False).html
    assert html.count('<td data-value="9.5">9.50</td>') == len(details)


def test_every_class_of_a_variant_is_told(report: Report, golden: Results) -> None:
    for text in (report.html, report.markdown):
        details = text.partition("Every class of every variant")[2].partition("</details>")[0]
        assert all(name in details for name in golden.models["lenet"].class_names)
        assert "\N{MINUS SIGN}5.05" in details  # cat of prune80-onnx-int8
