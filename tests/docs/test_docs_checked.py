"""Every block of every document is understood, every link leads somewhere, and what is wrong would be found."""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from catalog import ROOT, Policy, from_json
from serving.settings import Settings
from tests.docs import blocks, checks, running
from tests.docs.blocks import ALL, DATA, PAGES, SHELL, Block

LINK = re.compile(r"\]\(([^()\s]+)\)|(?:src|srcset|href)=\"([^\"]+)\"")
METRICS = "\n".join(path.read_text(encoding="utf-8") for path in sorted(ROOT.glob("serving/**/*.py")))
NAMES = [str(page.relative_to(ROOT)) for page in PAGES]


def slugs(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub and MkDocs make them."""
    titles = re.findall(
        r"^#+ (.+)$", re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.M | re.S), re.M
    )
    return {re.sub(r"\s+", "-", re.sub(r"[^\w\s-]", "", title.lower()).strip()) for title in titles}


def broken_links(page: Path, text: str) -> list[str]:
    found = []
    for target in (one or other for one, other in LINK.findall(text)):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        leads = (page.parent / path).resolve() if path else page
        if not leads.exists() or (anchor and leads.suffix == ".md" and anchor not in slugs(leads)):
            found.append(target)
    return found


@pytest.mark.parametrize("block", ALL, ids=str)
def test_a_block_is_understood(block: Block) -> None:
    assert block.language in (*SHELL, *DATA, "python", ""), f"what is {block.language!r}?"
    wrong = checks.settings(block.text)
    if block.language in SHELL:
        wrong += [problem for command in checks.typed(block.text) for problem in checks.problems(command)]
        assert any(checks.typed(block.text)), "there is no command in it"
    elif block.language == "python":
        compile(block.text, str(block), "exec")
    elif block.language == "json":
        from_json(Policy, json.loads(block.text))
    elif block.language == "yaml":
        yaml.safe_load(block.text)
    elif block.language == "toml":
        assert set(tomllib.loads(block.text)) <= set(Settings.__dataclass_fields__)
    elif block.language == "promql":
        for metric in re.findall(r"modelkiln_\w+?(?=_bucket|_total|\W)", block.text):
            assert metric in METRICS, f"the service has no metric {metric}"
    assert not wrong, f"{block}: " + "; ".join(wrong)


@pytest.mark.parametrize("block", [b for b in ALL if b.language in (*SHELL, "python")], ids=str)
def test_a_block_is_run_or_says_why_not(block: Block) -> None:
    name = str(block.page.relative_to(ROOT))
    if block.why_not:
        assert len(block.why_not) > 10, "say why in a few words"
    else:
        assert name in (*running.QUICK, *running.LONG), f"no test runs {block}; put <!-- not run: why --> above it"


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_links_lead_somewhere(page: Path) -> None:
    assert broken_links(page, blocks.prose(page)) == []


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_variables_are_settings(page: Path) -> None:
    assert checks.settings(page.read_text(encoding="utf-8")) == []


def test_the_pages_that_are_run_are_pages() -> None:
    assert {*running.QUICK, *running.LONG} <= set(NAMES)
    for name in (*running.QUICK, *running.LONG):
        assert running.runnable(ROOT / name), f"nothing in {name} would be run"


def test_there_is_something_to_check() -> None:
    commands = [command for block in ALL if block.language in SHELL for command in checks.typed(block.text)]
    programs = [command.words[0] for command in commands if command.words]
    assert len(ALL) >= 40 and len(commands) >= 60
    assert programs.count("python") >= 30 and programs.count("make") >= 2 and programs.count("bentoml") >= 4
    assert len(PAGES) >= 20 and sum(bool(LINK.findall(blocks.prose(page))) for page in PAGES) >= 10


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("python -m training lenet --datset digits", "datset"),
        ("python -m training lenet --dataset digit", "no dataset 'digit'"),
        ("python -m training lenet --recipe best", "no recipe 'best'"),
        ("python -m training lenet --epochs none", "epochs"),
        ("python -m training sweep lenet --search everything", "search"),
        ("python -m training", "python -m training"),
        ("python -m trainings lenet", "none of"),
        ("python -m export simcnn --transforms cluster16+prune80", "in this order"),
        ("python -m export simcnn --transforms prune81", "no transform"),
        ("python -m export simcnn --objective accuracy", "objective"),
        ("python -m benchmarks choose --objective latency", "argument"),
        ("python -m benchmarks compare --agianst a.json", "agianst"),
        ("python -m serving predict a.png --jobs 100", "jobs"),
        ("python -m pytest tests/none.py", "not there"),
        ("make benchmrak", "no target"),
        ("make train MODLE=lenet", "no variable"),
        ("bentoml serve --prot 3001", "prot"),
        ("bentoml sreve", "sreve"),
        ("curl -F image=@a.png localhost:3000/predictions", "no route"),
        ("curl localhost:3000/predict?modle=lenet", "no 'modle'"),
        ("MODELKILN_WOKRERS=2 bentoml serve", "no setting"),
        ("pyhton -m training lenet", "no program"),
        ("make help && make hlep", "'hlep'"),
        ("python -m training list | make lsit", "'lsit'"),
        ("until make hlep; do sleep 1; done", "'hlep'"),
        ("python -m training \\\n  lenet --datset digits", "datset"),
    ],
)
def test_a_mistake_is_found(line: str, words: str) -> None:
    found = [problem for command in checks.typed(line) for problem in checks.problems(command)]
    assert any(words in problem for problem in found), found


@pytest.mark.parametrize(
    "line",
    [
        "python -m training lenet --seed 1  # a comment with --unknown words",
        "KERAS_BACKEND=jax python -m training all --models lenet,simcnn > log.txt",
        ".venv/bin/python -m benchmarks",
        "python -m benchmarks choose --help",
        "bentoml serve --port 3001 &",
        "curl --data-binary @a.png 'localhost:3000/predict?model=lenet&top=3'",
        "make train-all DATASET=folder ROOT=pictures",
    ],
)
def test_what_is_right_is_let_through(line: str) -> None:
    assert [problem for command in checks.typed(line) for problem in checks.problems(command)] == []


def test_blocks_are_read_as_they_stand(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        '# Title\n\n<!-- not run: for a reason -->\n```bash\nmake a\n```\n\n```python title="x/y.py"\nz = 1\n```\n'
        "- item\n\n  ```text\n  b\n  ```\n\n<!-- not run: too far away -->\n\n```bash\nmake c\n```\n"
    )
    told: list[tuple[Any, ...]] = [(b.language, b.title, b.text, b.why_not, b.line) for b in blocks.blocks(page)]
    assert told == [
        ("bash", "", "make a\n", "for a reason", 4),
        ("python", "x/y.py", "z = 1\n", "", 8),
        ("text", "", "b\n", "", 13),
        ("bash", "", "make c\n", "", 19),
    ]
    page.write_text("```bash\nmake a\n")
    with pytest.raises(ValueError, match=r"page\.md:1: this fence is not closed"):
        blocks.blocks(page)


def test_a_broken_link_is_found(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        '# One two\n\n[a](page.md#one-two) [b](page.md#three) [c](none.md) [d](#one-two) <img src="e.png">\n'
    )
    assert broken_links(page, blocks.prose(page)) == ["page.md#three", "none.md", "e.png"]
