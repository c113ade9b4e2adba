"""Makes the comment behind a field its description in the reference, and a record's fields one table.

    epochs: int = 10  # of the whole run

mkdocstrings loads this as an extension of Griffe, which reads sources and imports nothing.
"""

from __future__ import annotations

import io
import tokenize
from collections.abc import Iterator
from typing import Any

import griffe


class Comments(griffe.Extension):
    """Gives constants the comment behind them as docstring, and dataclasses a table of their fields."""

    def on_attribute(self, *, attr: griffe.Attribute, **_: Any) -> None:
        """Called for every field and constant that was read."""
        if attr.docstring or attr.endlineno is None:
            return
        if told := comment("\n".join(attr.lines)):
            attr.docstring = griffe.Docstring(told, lineno=attr.endlineno, parent=attr)

    def on_package(self, *, pkg: griffe.Module, **_: Any) -> None:
        """Called once all of a package was read."""
        for cls in _classes(pkg):
            if any("dataclass" in str(decorator.value) for decorator in cls.decorators):
                _tabulate(cls)


def comment(source: str) -> str:
    """The comment that ends a statement; empty where none does or the statement is not whole."""
    try:
        tokens = list(tokenize.generate_tokens(io.StringIO(source.strip()).readline))
    except (tokenize.TokenError, IndentationError, SyntaxError):
        return ""
    last = source.strip().count("\n") + 1
    told = [token.string for token in tokens if token.type == tokenize.COMMENT and token.start[0] == last]
    return told[0].lstrip("# ").strip() if told else ""


def _classes(holder: griffe.Module | griffe.Class) -> Iterator[griffe.Class]:
    for member in holder.members.values():
        if isinstance(member, griffe.Class):
            yield member
        if isinstance(member, griffe.Module | griffe.Class):
            yield from _classes(member)


def _tabulate(cls: griffe.Class) -> None:
    """Moves the fields of a dataclass from its members into a section of its docstring."""
    members = [member for member in cls.members.values() if isinstance(member, griffe.Attribute)]
    fields = [one for one in members if one.annotation is not None and "property" not in one.labels and one.is_public]
    if not fields or cls.docstring is None:
        return
    rows = [griffe.DocstringAttribute(one.name, annotation=one.annotation, description=_told(one)) for one in fields]
    cls.docstring.parsed.append(griffe.DocstringSectionAttributes(rows, title="Fields"))
    for one in fields:
        del cls.members[one.name]


def _told(field: griffe.Attribute) -> str:
    """A field's description and its default."""
    said = field.docstring.value if field.docstring else comment("\n".join(field.lines))
    default = "" if field.value is None else f"`{field.value}`"
    return f"{said}. Default: {default}" if said and default else f"Default: {default}" if default else said
