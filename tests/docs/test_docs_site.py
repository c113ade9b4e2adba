"""The site: it builds strictly without a network, holds every command and field, and explains the whole report."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import results, schema
from benchmarks.judging import compare
from benchmarks.reporting.columns import COLUMNS
from catalog import ROOT
from docs import commands, comments
from tests import lighthouse

REPORT = (ROOT / "docs" / "how-to" / "read-the-report.md").read_text(encoding="utf-8")
GOLDEN = sorted((ROOT / "tests" / "benchmarks" / "golden").glob("results*.json"))


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built site; no address can be reached while it is built."""
    folder = tmp_path_factory.mktemp("site")
    code = (
        "import runpy, socket, sys\n"
        "def refuse(*_): raise OSError('no network here')\n"
        "socket.socket.connect = socket.getaddrinfo = refuse\n"
        "sys.argv[0] = 'mkdocs'\n"
        "try: runpy.run_module('mkdocs', run_name='__main__')\n"
        "finally: print(sorted({'tensorflow', 'keras', 'bentoml', 'onnxruntime'} & set(sys.modules)))"
    )
    command = [sys.executable, "-c", code, "build", "--strict", "--quiet", "--site-dir", str(folder)]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.strip() == "[]", "a framework was imported"
    return folder


def text_of(site: Path, page: str) -> str:
    return re.sub(r"<[^>]+>", "", (site / page).read_text(encoding="utf-8"))


def test_every_page_is_in_the_site(site: Path) -> None:
    pages = {path.relative_to(ROOT / "docs").with_suffix(".html") for path in ROOT.glob("docs/**/*.md")}
    assert pages and all((site / page).is_file() for page in pages)
    assert not list(site.rglob("*.py")) and not list(site.rglob("scale-check.json"))


def test_the_schema_is_in_the_site_and_linked(site: Path) -> None:
    assert (site / "results.schema.json").read_text(encoding="utf-8") == schema.text()
    for page in ("reference/benchmarks.html", "how-to/read-the-report.html"):
        assert 'href="../results.schema.json"' in (site / page).read_text(encoding="utf-8"), page


def test_nothing_is_fetched_from_elsewhere(site: Path) -> None:
    loaded = re.compile(
        r"<(?:script|img|source|iframe)[^>]+(?:src|srcset)=[\"']?(https?:)?//|<link[^>]+stylesheet[^>]+//"
    )
    for page in site.rglob("*.html"):
        assert not loaded.search(page.read_text(encoding="utf-8")), page


def test_no_path_of_this_machine_is_in_it(site: Path) -> None:
    for page in site.rglob("*.html"):
        assert str(ROOT) not in page.read_text(encoding="utf-8"), page


def test_the_command_reference_has_every_option(site: Path) -> None:
    shown = text_of(site, "reference/commands.html")
    for typed, module in commands.applications().items():
        found = commands.application(module)
        for name, command in (getattr(found, "commands", None) or {"": found}).items():
            assert f"python {typed} {name}".strip() in shown
            for parameter in command.params:
                assert all(option in shown for option in parameter.opts if option.startswith("-")), (typed, name)


def test_the_applications_are_found() -> None:
    main = {"-m training", "-m export", "-m benchmarks", "-m serving", "quickstart.py"}
    more = {"-m export.zoo", "-m benchmarks.scale", "-m benchmarks.load", "-m tests.serving.chaos"}
    assert main | more <= set(commands.applications())


def test_fields_are_explained_by_their_comments(site: Path) -> None:
    assert "the peak, where the schedule has one" in text_of(site, "reference/catalog.html")
    assert "images in one request" in text_of(site, "reference/serving.html")


@pytest.mark.parametrize(
    ("source", "told"),
    [
        ("epochs: int = 10  # of the whole run", "of the whole run"),
        ("word: str = 'a # b'", ""),
        ("word: str = 'a # b'  # c", "c"),
        ("many = (  # of all\n    1,\n)", ""),
        ("many = (\n    1,  # the first\n)  # all", "all"),
        ("many = (", ""),
    ],
)
def test_a_comment_is_that_behind_the_statement(source: str, told: str) -> None:
    assert comments.comment(source) == told


def test_the_page_about_the_report_explains_every_column() -> None:
    for column in COLUMNS:
        assert f"`{column.name}`" in REPORT, column.name
    template = (ROOT / "benchmarks" / "reporting" / "templates" / "report.html.j2").read_text(encoding="utf-8")
    heads = {column.head for column in COLUMNS} | set(re.findall(r'<th scope="col">([^<{]+)</th>', template))
    assert len(heads) > 20
    words = set(re.findall(r"[\w%/-]+", REPORT))
    for head in heads:
        assert set(re.findall(r"[\w%/-]+", head)) <= words, head


def test_the_page_about_the_report_explains_every_verdict() -> None:
    made = [
        line.verdict
        for path in GOLDEN
        for group in compare.groups(results.read(path))
        for line in group.lines
        if line.measured
    ]
    said = {part.strip() for verdict in made for part in verdict.split(", ")}
    assert len(said) > 5
    speed = "((perhaps )?(faster|slower)|as fast)"
    for part in said | {"less robust", "not offered to serving", "unstable: latency had not settled"}:
        if not re.fullmatch(f"{speed} one by one and {speed} in batches", part):
            assert part in REPORT, part


@pytest.mark.slow
@lighthouse.installed
@pytest.mark.parametrize("page", ["index.html", "how-to/read-the-report.html", "reference/catalog.html"])
def test_lighthouse_gives_the_site_95(site: Path, page: str, tmp_path: Path) -> None:
    with lighthouse.hosting(site) as address:
        assert lighthouse.below(address + page, tmp_path) == []
