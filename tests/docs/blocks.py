"""The fenced blocks of the documents: where each stands, what it is, and why no test runs it where none does."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from catalog import ROOT

SHELL = ("bash", "console", "sh", "shell")
DATA = ("json", "promql", "text", "toml", "yaml")
PAGES = sorted(
    [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "deploy" / "README.md", *ROOT.glob("docs/**/*.md")]
)
_FENCE = re.compile(r"^(?P<indent> *)```(?P<language>[\w+-]*)(?P<rest>[^`\n]*)$")
_WHY_NOT = re.compile(r"^<!-- not run: (?P<why>.+) -->$")
_TITLE = re.compile(r'title="([^"]+)"')


@dataclass(frozen=True)
class Block:
    """What stands between two fences; `line` is that of the first, `title` the file it is to be, if it is one."""

    page: Path
    line: int
    language: str
    title: str
    text: str
    why_not: str

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT) if self.page.is_relative_to(ROOT) else self.page.name}:{self.line}"


def blocks(page: Path) -> list[Block]:
    """All of a page, in order.

    Raises:
        ValueError: A fence is not closed.
    """
    return list(_blocks(page, page.read_text(encoding="utf-8").splitlines()))


def _blocks(page: Path, lines: list[str]) -> Iterator[Block]:
    opened: tuple[int, re.Match[str]] | None = None
    for number, line in enumerate(lines):
        match = _FENCE.match(line)
        if match is None:
            continue
        if opened is None:
            opened = number, match
            continue
        start, fence = opened
        inside = "\n".join(line.removeprefix(fence["indent"]) for line in lines[start + 1 : number])
        why = _WHY_NOT.match(lines[start - 1].strip()) if start else None
        title = _TITLE.search(fence["rest"])
        told = title[1] if title else "", inside + "\n", why["why"] if why else ""
        yield Block(page, start + 1, fence["language"], *told)
        opened = None
    if opened:
        raise ValueError(f"{page}:{opened[0] + 1}: this fence is not closed")


def prose(page: Path) -> str:
    """The page without its blocks, comments and code in the line."""
    text = re.sub(r"^( *)```.*?^\1```$", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    return re.sub(r"`[^`\n]*`", "``", re.sub(r"<!--.*?-->", "", text, flags=re.DOTALL))


ALL = [block for page in PAGES for block in blocks(page)]
