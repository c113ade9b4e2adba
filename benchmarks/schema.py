"""The JSON schema of results.json, derived from its records; published as docs/results.schema.json.

A record's docstring describes it, and the comment behind a field describes the field.
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import io
import json
import textwrap
import tokenize
import typing
from typing import Any, Literal

from benchmarks.results import SCHEMA, Results
from catalog import ROOT

PATH = ROOT / "docs" / "results.schema.json"
ID = f"urn:modelkiln:results:{SCHEMA}"


def schema() -> dict[str, Any]:
    """JSON Schema 2020-12 of this version's results."""
    definitions: dict[str, Any] = {}
    reference = _schema_of(Results, definitions)
    definitions["Results"]["properties"]["schema"] = {"const": SCHEMA}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": ID,
        "title": f"results of modelkiln's benchmarks, schema {SCHEMA}",
        **reference,
        "$defs": dict(sorted(definitions.items())),
    }


def text() -> str:
    """The schema as it is committed."""
    return json.dumps(schema(), indent=2, ensure_ascii=False) + "\n"


def _schema_of(kind: Any, definitions: dict[str, Any]) -> dict[str, Any]:
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if type(None) in arguments:
        return {"anyOf": [*(_schema_of(a, definitions) for a in arguments if a is not type(None)), {"type": "null"}]}
    if origin is Literal:
        return {"enum": list(arguments)}
    if origin is list:
        return {"type": "array", "items": _schema_of(arguments[0], definitions)}
    if origin is dict:
        return {"type": "object", "additionalProperties": _schema_of(arguments[1], definitions)}
    if dataclasses.is_dataclass(kind) and isinstance(kind, type):
        return _reference(kind, definitions)
    return {"type": {str: "string", bool: "boolean", int: "integer", float: "number"}[kind]}


def _reference(kind: type, definitions: dict[str, Any]) -> dict[str, Any]:
    if kind.__name__ not in definitions:
        definitions[kind.__name__] = {}  # a place for it, should it hold itself
        hints, fields = typing.get_type_hints(kind), dataclasses.fields(kind)
        missing, told = dataclasses.MISSING, comments(kind)
        definitions[kind.__name__] = {
            "type": "object",
            "description": " ".join((kind.__doc__ or "").split()),
            "properties": {
                f.name: {**_schema_of(hints[f.name], definitions), **_description(told.get(f.name))} for f in fields
            },
            "required": [f.name for f in fields if f.default is f.default_factory is missing],
            "additionalProperties": False,
        }
    return {"$ref": f"#/$defs/{kind.__name__}"}


def _description(told: str | None) -> dict[str, str]:
    return {"description": told} if told else {}


def comments(kind: type) -> dict[str, str]:
    """What stands as a comment behind the fields of a record, by field."""
    source = textwrap.dedent(inspect.getsource(kind))
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    by_line = {token.start[0]: token.string.lstrip("# ") for token in tokens if token.type == tokenize.COMMENT}
    record = ast.parse(source).body[0]
    assert isinstance(record, ast.ClassDef)
    fields = [node for node in record.body if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)]
    return {ast.unparse(node.target): by_line[node.end_lineno] for node in fields if node.end_lineno in by_line}
