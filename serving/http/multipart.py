"""Reads a `multipart/form-data` body that lies in memory (RFC 7578), in a few searches for the boundary.

A streaming parser would look at every byte in Python; the body is bounded already, so this one need not.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from serving.errors import RequestError, quoted

MAX_PARTS = 64
MAX_HEADER_BYTES = 4096  # of one part
MAX_BOUNDARY = 70
_DISPOSITION = re.compile(r"^content-disposition:[ \t]*form-data[ \t]*(;.*)$", re.IGNORECASE | re.MULTILINE)
_PARAMETER = re.compile(r'\s*(?:;\s*)+([^\s;="]+)\s*=\s*(?:"((?:[^"\\\r\n]|\\.)*)"|([^\s;",]*))')  # quoted, or a token


class Part(NamedTuple):
    """One field of a form."""

    name: str
    content: bytes


def parse(content_type: str, body: bytes, max_parts: int = MAX_PARTS) -> list[Part]:
    """The parts, in order. File names and the parts' content types are not read: bytes speak for themselves.

    Raises:
        RequestError: 400 `multipart_invalid`; no boundary, a broken frame, or too many parts.
    """
    boundary = _parameters(content_type).get("boundary", "")
    if not 1 <= len(boundary) <= MAX_BOUNDARY:
        raise _invalid(f"the content type names no boundary of 1 to {MAX_BOUNDARY} characters")
    delimiter = b"\r\n--" + boundary.encode("latin-1")
    at = 0 if body.startswith(delimiter[2:]) else body.find(delimiter) + 2  # a preamble is skipped
    if at == 1:
        raise _invalid("the boundary that the content type names is not in the body")
    at += len(delimiter) - 2
    parts: list[Part] = []
    while not body.startswith(b"--", at):
        if len(parts) == max_parts:
            raise _invalid(f"there are more than {max_parts} parts")
        part, at = _part(body, at, delimiter)
        parts.append(part)
    return parts


def _part(body: bytes, at: int, delimiter: bytes) -> tuple[Part, int]:
    """The part whose delimiter ends at `at`, and where the next delimiter ends."""
    start = body.find(b"\r\n", at, at + 16)  # padding may follow the boundary
    if start < 0 or body[at:start].strip(b" \t"):
        raise _invalid("a boundary is not followed by a line break")
    headers_end = body.find(b"\r\n\r\n", start, start + MAX_HEADER_BYTES)
    if headers_end < 0:
        raise _invalid("a part's headers do not end")
    end = body.find(delimiter, headers_end + 2)
    if end < 0:
        raise _invalid("the last part does not end with the boundary")
    disposition = _DISPOSITION.search(body[start + 2 : headers_end].decode("utf-8", "replace").replace("\r\n", "\n"))
    name = _parameters(disposition[1]).get("name") if disposition else None
    if name is None:
        raise _invalid("a part has no name")
    return Part(name, body[headers_end + 4 : end]), end + len(delimiter)


def _parameters(header: str) -> dict[str, str]:
    """What follows a header's value, by name in small letters; of those that are repeated the first."""
    found: dict[str, str] = {}
    at = len(header.partition(";")[0])
    while match := _PARAMETER.match(header, at):  # one behind the other: a search would look for the end of each again
        found.setdefault(match[1].lower(), match[2] or match[3] or "")
        at = match.end()
    return found


def _invalid(what: str) -> RequestError:
    return RequestError(400, "multipart_invalid", f"the multipart body cannot be read: {what}")


def contents(parts: list[Part], field: str) -> list[bytes]:
    """The contents of a form that has one field any number of times.

    Raises:
        RequestError: 400 `field_missing` or `field_unknown`, naming it.
    """
    for part in parts:
        if part.name != field:
            raise RequestError(400, "field_unknown", f"the form has a field {quoted(part.name)}; it takes {field!r}")
    if not parts:
        raise RequestError(400, "field_missing", f"the form lacks its field {field!r}")
    return [part.content for part in parts]


def only_field(content_type: str, body: bytes, field: str) -> bytes:
    """The content of the one field a form is to have.

    Raises:
        RequestError: 400 `multipart_invalid`, `field_missing`, `field_unknown` or `field_repeated`.
    """
    found = contents(parse(content_type, body), field)
    if len(found) > 1:
        raise RequestError(400, "field_repeated", f"the form has {len(found)} fields {field!r}; it takes one")
    return found[0]
