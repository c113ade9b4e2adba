"""The page at `/` in a headless Chromium: every way in, keyboard, screen reader, phone, both colour schemes."""

from __future__ import annotations

import base64
import os
from pathlib import Path

import httpx
import pytest

from tests import browser as chromium
from tests import lighthouse
from tests.browser import Browser
from tests.serving.pictures import BLUE, GREEN, RED, plain
from tests.serving.processes import Running

pytestmark = pytest.mark.skipif(chromium.binary() is None, reason="there is no Chromium on the PATH")
ARTICLES = "document.querySelectorAll('#answers article').length"
STATUS = "document.getElementById('status').textContent"


@pytest.fixture
def page(browser: Browser, server: Running) -> Browser:
    browser.events.clear()
    browser.size(1200, 900)
    browser.theme("light")
    browser.go(server.url)
    browser.wait("document.querySelectorAll('#figures tbody tr').length")
    return browser


def image(colour: tuple[int, int, int]) -> str:
    """JavaScript for a File that holds a PNG."""
    data = base64.b64encode(plain(colour)).decode()
    return f"new File([Uint8Array.from(atob('{data}'), c => c.charCodeAt(0))], 'x.png', {{type: 'image/png'}})"


def given(event: str, holder: str, colour: tuple[int, int, int]) -> str:
    kind = {"clipboardData": "ClipboardEvent", "dataTransfer": "DragEvent"}[holder]
    transfer = f"const t = new DataTransfer(); t.items.add({image(colour)});"
    return f"(() => {{ {transfer} document.dispatchEvent(new {kind}('{event}', {{{holder}: t, bubbles: true}})); }})()"


def test_models_variants_and_figures_are_shown(page: Browser) -> None:
    assert page.run("document.getElementById('model').value") == "colours"
    rows = page.run("[...document.querySelectorAll('#figures tbody tr')].map(row => row.innerText)")
    assert len(rows) == 4 and "onnx-int8\t94.20" in rows[2]
    assert page.run("document.querySelector('#figures .default td').textContent") in ("onnx-fp32", "onnx-int8")
    assert page.run("[...document.querySelectorAll('#variants input')].map(box => box.checked)") == [True, True]


def test_an_image_that_is_dropped_pasted_or_picked(page: Browser, tmp_path: Path) -> None:
    page.run(given("drop", "dataTransfer", RED))
    assert page.wait(f"{STATUS}.includes('red') && {STATUS}")
    assert page.run(ARTICLES) == 2
    page.run(given("paste", "clipboardData", BLUE))
    page.wait(f"{STATUS}.includes('blue')")
    (tmp_path / "green.png").write_bytes(plain(GREEN))
    node = page.call("DOM.querySelector", nodeId=page.call("DOM.getDocument")["root"]["nodeId"], selector="#file")
    page.call("DOM.setFileInputFiles", files=[str(tmp_path / "green.png")], nodeId=node["nodeId"])
    page.wait(f"{STATUS}.includes('green')")
    article = page.run("document.querySelector('#answers article').innerText")
    for word in ("green", "red", "blue", "%", "compute", "total", "ms"):
        assert word in article
    widths = page.run("[...document.querySelectorAll('#answers .fill')].map(f => parseFloat(f.style.width))")
    assert max(widths) > 99 and min(widths) < 1


def test_the_keyboard_alone_is_enough(page: Browser) -> None:
    """Tab to a sample, Enter, Tab on to a variant's box, Space."""
    reached: list[str] = []
    for _ in range(30):
        page.press("Tab", 9)
        reached.append(page.run("document.activeElement.id || document.activeElement.tagName"))
        if page.run("!!document.activeElement.closest('#samples')"):
            break
    assert reached[0] == "A" and "file" in reached  # the link to the answers is first
    page.enter()
    page.wait(f"{ARTICLES} == 2")
    page.run("document.querySelector('#variants input').focus()")
    page.call("Input.dispatchKeyEvent", type="keyDown", key=" ", text=" ", windowsVirtualKeyCode=32)
    page.call("Input.dispatchKeyEvent", type="keyUp", key=" ", windowsVirtualKeyCode=32)
    page.wait(f"{ARTICLES} == 1")


def test_a_screen_reader_finds_names_for_everything(page: Browser) -> None:
    nodes = page.call("Accessibility.getFullAXTree")["nodes"]
    told = [(node["role"]["value"], node.get("name", {}).get("value", "")) for node in nodes if not node.get("ignored")]
    for role, name in told:
        if role in ("button", "checkbox", "combobox", "link", "image", "table", "region", "group", "columnheader"):
            assert name or role == "table", (role, name)
    roles = [role for role, _ in told]
    assert {"status", "main", "heading", "combobox", "checkbox", "table"} <= set(roles)
    assert page.run("document.documentElement.lang") == "en"
    assert page.violations() == []


def test_errors_are_told_in_the_services_words(page: Browser) -> None:
    page.run("document.getElementById('hint')")
    broken = "const t = new DataTransfer(); t.items.add(new File(['junk junk junk'], 'x.png', {type: 'image/png'}));"
    page.run(f"(() => {{ {broken} document.dispatchEvent(new DragEvent('drop', {{dataTransfer: t}})); }})()")
    assert "no image" in page.wait(f"document.querySelector('#status.error') && {STATUS}")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_fits_a_phone_in_both_colour_schemes(page: Browser, scheme: str, tmp_path: Path) -> None:
    page.size(360, 740, phone=True, scale=2)
    page.theme(scheme)
    page.run("document.querySelector('#samples button').click()")
    page.wait(f"{ARTICLES} == 2")
    assert page.run("document.documentElement.scrollWidth") <= 360
    heights = page.run("[...document.querySelectorAll('button, select, label.button')].map(e => e.offsetHeight)")
    assert all(height >= 40 for height in heights if height)  # a finger needs as much; what is hidden has none
    assert page.run(_CONTRAST) >= 4.5 and page.violations() == []
    page.screenshot(Path(os.environ.get("SCREENSHOTS", tmp_path)) / f"page-{scheme}.png")


_CONTRAST = """(() => {
  const light = (text) => { const [r, g, b] = text.match(/\\d+/g).slice(0, 3).map((v) => v / 255)
    .map((v) => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
  const ground = light(getComputedStyle(document.querySelector('section')).backgroundColor);
  return Math.min(...[...document.querySelectorAll('p, dt, td, th, h1, h2, h3, label, small, .value, a:not(.skip)')]
    .map((e) => light(getComputedStyle(e).color))
    .map((ink) => (Math.max(ink, ground) + 0.05) / (Math.min(ink, ground) + 0.05)));
})()"""


def test_nobody_else_is_asked_and_nothing_is_complained_of(page: Browser, server: Running) -> None:
    page.run("document.querySelector('#samples button').click()")
    page.wait(f"{ARTICLES} == 2")
    asked = page.requested()
    assert len(asked) > 5
    assert [url for url in asked if not url.startswith((server.url, f"blob:{server.url}", "data:"))] == []
    assert page.complaints() == []
    policy = httpx.get(server.url).headers["content-security-policy"]
    assert "default-src 'none'" in policy and "http" not in policy


@pytest.mark.slow
@lighthouse.installed
def test_lighthouse_gives_the_page_95(server: Running, tmp_path: Path) -> None:
    assert lighthouse.below(server.url, tmp_path) == []
