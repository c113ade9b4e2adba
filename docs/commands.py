"""The command reference, made of the applications themselves when the site is built; MkDocs runs this as a hook.

In a page, `<!-- commands -->` becomes every command with its arguments and options, `<!-- targets -->` every target of
the Makefile. Applications are imported but not run; none of them imports a framework before it runs.
"""

from __future__ import annotations

import functools
import importlib
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("training", "export", "benchmarks", "serving", "tests")
TARGET = re.compile(r"^([a-z-]+):.*?## (.*)$", re.MULTILINE)


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Fills in what a page's markers stand for."""
    if "<!-- commands -->" in markdown:
        markdown = markdown.replace("<!-- commands -->", reference())
    return markdown.replace("<!-- targets -->", "\n".join(targets()))


@functools.cache
def applications() -> dict[str, str]:
    """What a user types behind `python`, and the module that holds the application: all files that run one."""
    files = [path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*.py"))]
    found = {}
    for path in [*files, *sorted(ROOT.glob("*.py"))]:
        if "\n    console.run(" in path.read_text(encoding="utf-8"):
            parts = path.relative_to(ROOT).with_suffix("").parts
            module = ".".join(parts)
            found[f"-m {module.removesuffix('.__main__')}" if len(parts) > 1 else path.name] = module
    return found


def application(module: str) -> Any:
    """The command, or group of commands, that running the module would run."""
    if str(ROOT) not in sys.path:
        sys.path.insert(0, str(ROOT))
    loaded = importlib.import_module(module)
    found = next((one for one in vars(loaded).values() if isinstance(one, typer.Typer)), None)
    if found is None:  # it is put together when the module is run
        found = typer.Typer(add_completion=False)
        found.command()(loaded.main)
    return typer.main.get_command(found)


def reference() -> str:
    """Every command as Markdown."""
    lines: list[str] = []
    for typed, module in applications().items():
        found = application(module)
        lines += ["", f"## `python {typed}`", "", *_paragraphs(found.help)]
        commands = getattr(found, "commands", None)
        if commands is None:
            lines += _command(f"python {typed}", found)
            continue
        default = next(iter(commands))  # of console.DefaultGroup, which every group here is
        for name, command in commands.items():
            lines += ["", f"### `python {typed} {name}`", "", *_paragraphs(command.help)]
            if name == default and f"`{name}`" not in (command.help or ""):
                lines += [f"The word `{name}` may be left out.", ""]
            lines += _command(f"python {typed} {name}", command)
    return "\n".join(lines)


def targets() -> Iterator[str]:
    """The Makefile's targets as a table."""
    yield from ("| target | |", "|---|---|")
    for name, told in TARGET.findall((ROOT / "Makefile").read_text(encoding="utf-8")):
        yield f"| `make {name}` | {_cell(told)} |"


def _paragraphs(text: str | None) -> list[str]:
    return [(text or "").strip().replace("\n    ", "\n"), ""]


def _command(typed: str, command: Any) -> list[str]:
    context = command.make_context(typed, [], resilient_parsing=True)
    usage = " ".join(command.collect_usage_pieces(context))
    lines = ["```text", f"{typed} {usage}", "```", ""]
    rows = [record for parameter in command.params if (record := parameter.get_help_record(context))]
    if not rows:
        return lines
    return [*lines, "| | |", "|---|---|", *(f"| `{_cell(left)}` | {_cell(right)} |" for left, right in rows), ""]


def _cell(text: str) -> str:
    """Text for a table; no path of the machine the site is built on."""
    return " ".join(re.sub(r"([|\[\]])", r"\\\1", text.replace(f"{ROOT}/", "")).split())
