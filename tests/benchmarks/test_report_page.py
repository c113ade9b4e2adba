"""The report in a headless Chromium: sort, filter, choose axes, look closely; wide and narrow, light and dark."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Any

import pytest

from benchmarks.reporting.report import render, write
from benchmarks.results import Results
from tests import browser as chromium
from tests import lighthouse
from tests.browser import Browser

pytestmark = pytest.mark.skipif(chromium.binary() is None, reason="there is no Chromium on the PATH")
TABLE = "table.sortable.cards"
MARKS = "document.querySelectorAll('.explore .mark').length"
SHOWN = f"[...document.querySelectorAll('{TABLE} tbody tr')].filter(row => !row.hidden).length"


@pytest.fixture(scope="module")
def folder(golden: Results, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the report lies."""
    made = tmp_path_factory.mktemp("report")
    write(render(golden), made)
    return made


@pytest.fixture
def page(browser: Browser, folder: Path) -> Browser:
    browser.events.clear()
    browser.size(1280, 900)
    browser.theme("light")
    browser.go((folder / "report.html").as_uri())
    browser.wait(MARKS)
    return browser


def column(page: Browser, number: int) -> list[float]:
    """A column's figures from top to bottom; rows without one are left out."""
    cells = f"[...document.querySelectorAll('{TABLE} tbody tr')].map(row => row.cells[{number}].dataset.value)"
    return [float(value) for value in page.run(cells) if value]


def search(page: Browser, words: str) -> None:
    page.run(
        f"(() => {{ const box = document.querySelector('.filter input'); box.value = '{words}';"
        " box.dispatchEvent(new Event('input', {bubbles: true})); })()"
    )


def test_a_heading_sorts_and_sorts_the_other_way(page: Browser) -> None:
    heads = page.run(f"[...document.querySelectorAll('{TABLE} thead th')].map(head => head.innerText.trim())")
    at = heads.index("p50 ms")
    before = column(page, at)
    page.run(f"document.querySelectorAll('{TABLE} thead button')[{at}].click()")
    assert column(page, at) == sorted(before) != sorted(before, reverse=True)
    page.run(f"document.querySelectorAll('{TABLE} thead button')[{at}].click()")
    assert column(page, at) == sorted(before, reverse=True)
    assert page.run(f"document.querySelectorAll('{TABLE} thead th')[{at}].getAttribute('aria-sort')") == "descending"
    last = f"document.querySelector('{TABLE} tbody').lastElementChild.cells[{at}].className"
    assert page.run(last) == "none"  # what was not measured is last either way


def test_a_filter_narrows_the_table_and_the_plot(page: Browser) -> None:
    rows, marks = page.run(SHOWN), page.run(MARKS)
    search(page, "INT8 onnx")
    assert 0 < page.run(SHOWN) < rows and 0 < page.run(MARKS) < marks
    names = page.run("[...document.querySelectorAll('.explore .mark')].map(mark => mark.getAttribute('aria-label'))")
    assert all("onnx-int8" in name for name in names)
    assert page.run("document.querySelector('.filter output').textContent") == f"{page.run(SHOWN)} of {rows}"
    search(page, "")
    assert (page.run(SHOWN), page.run(MARKS)) == (rows, marks)
    page.run("document.querySelector('.filter button').click()")
    assert page.run(MARKS) < marks


def test_the_axes_are_the_readers_choice(page: Browser) -> None:
    title = "[...document.querySelectorAll('.explore .axis.title')].map(text => text.textContent).join(' | ')"
    before, front = page.run(title), page.run("document.querySelector('.front').textContent")
    page.run(
        "(() => { const axis = document.querySelector('select[data-axis=x]');"
        " axis.selectedIndex = (axis.selectedIndex + 1) % axis.length;"
        " axis.dispatchEvent(new Event('change', {bubbles: true})); })()"
    )
    assert page.run(title) != before and page.run("document.querySelector('.front').textContent") != front
    assert page.run("document.querySelector('.front').textContent").startswith("Pareto front of each model: ")


def test_a_panel_for_each_model_or_one_for_all(page: Browser) -> None:
    panels, front = (
        "document.querySelectorAll('.explore .canvas svg').length",
        "document.querySelector('.front').textContent",
    )
    assert page.run(panels) == 3 and page.run("document.querySelector('select[data-axis=y]').value") == "change_points"
    marks = page.run(MARKS)
    assert "simcnn onnx-int8 (0.0652 ms an image, 0.15 points, a tie)" in page.run(front)
    assert "mobilenetv2 onnx-int8 (0.594 ms an image, -0.38 points);" in page.run(front)
    page.run("document.querySelector('.apart input').click()")
    assert page.run(panels) == 1 and page.run(MARKS) == marks
    assert page.run(front).startswith("Pareto front: ")
    search(page, "lenet")
    assert page.run(panels) == 1 and 0 < page.run(MARKS) < marks


def test_what_is_below_its_floor_is_faint_and_on_no_front(page: Browser) -> None:
    faint = "[...document.querySelectorAll('.explore .mark.faint')].map(mark => mark.getAttribute('aria-label'))"
    (label,) = page.run(faint)
    assert label.startswith("mobilenetv2 prune80-onnx-int8: ")
    axes = "document.querySelector('select[data-axis=x]')"
    for _ in range(page.run(f"{axes}.length")):
        assert "prune80-onnx-int8" not in page.run("document.querySelector('.front').textContent")
        page.run(
            f"(() => {{ const axis = {axes}; axis.selectedIndex = (axis.selectedIndex + 1) % axis.length;"
            " axis.dispatchEvent(new Event('change', {bubbles: true})); })()"
        )


def test_a_point_tells_its_card_to_mouse_and_keyboard(page: Browser) -> None:
    page.run("document.querySelector('.explore').scrollIntoView()")
    x, y = page.run(
        "(() => { const box = document.querySelector('.explore .mark').getBoundingClientRect();"
        " return [box.x + box.width / 2, box.y + box.height / 2]; })()"
    )
    page.call("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)
    told = page.wait("!document.querySelector('.tip').hidden && document.querySelector('.tip').innerText")
    assert "%" in told and "ms" in told and "kB" in told
    page.call("Input.dispatchMouseEvent", type="mouseMoved", x=1, y=1)
    page.wait("document.querySelector('.tip').hidden")
    page.run("document.querySelector('.explore .mark').focus()")
    assert page.run("document.querySelector('.tip').innerText")
    page.enter()
    page.wait(f"document.querySelectorAll('{TABLE} tr.found').length")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_axe_finds_nothing_and_the_page_fits(page: Browser, scheme: str, width: int, tmp_path: Path) -> None:
    page.size(width, 900, phone=width < 600, scale=1)
    page.theme(scheme)
    page.wait(f"document.querySelector('.explore svg').clientWidth <= {width}")
    assert page.run("document.documentElement.scrollWidth") <= width
    assert page.violations() == []
    page.screenshot(Path(os.environ.get("SCREENSHOTS", tmp_path)) / f"report-{scheme}-{width}.png")


def test_it_asks_nobody_and_complains_of_nothing(page: Browser) -> None:
    assert [url for url in page.requested() if not url.startswith(("file:", "data:"))] == []
    assert page.complaints() == []


def test_where_nothing_was_measured_the_reasons_stand_and_no_plot(
    browser: Browser, golden: Results, tmp_path: Path
) -> None:
    gone: dict[str, Any] = {"accuracy": None, "p50_ms": None, "size_bytes": None, "images_per_s_at": {}}
    rows = [dataclasses.replace(row, status="failed", reason="it fell over", **gone) for row in golden.rows]
    write(render(dataclasses.replace(golden, rows=rows, details={}), pictures=False), tmp_path)
    browser.events.clear()
    browser.go((tmp_path / "report.html").as_uri())
    assert browser.wait(SHOWN) == len(rows) and browser.run("document.querySelector('.explore').hidden")
    search(browser, "lenet fell over")
    assert 0 < browser.run(SHOWN) < len(rows) and browser.complaints() == []


@pytest.mark.slow
@lighthouse.installed
def test_lighthouse_gives_the_report_95(folder: Path, tmp_path: Path) -> None:
    with lighthouse.hosting(folder) as address:
        assert lighthouse.below(f"{address}report.html", tmp_path) == []
