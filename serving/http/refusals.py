"""Answers that are given before a request is parsed: what has to be known of it, and their bytes.

Under overload most of what arrives is refused, and clients send the same heads again and again. So a head that was once
found to be refusable is known by its bytes, and its refusal lies ready but for the request's id.
"""

from __future__ import annotations

import re
from http import HTTPStatus
from typing import NamedTuple

from serving.errors import RequestError
from serving.http.auth import Headers
from serving.http.web import body_of

MAX_HEADS, MAX_HEAD = 256, 2048  # heads that are known, and the bytes of each
_LINES = {status.value: f"HTTP/1.1 {status.value} {status.phrase}\r\n".encode() for status in HTTPStatus}
_HEADER = re.compile(
    rb"\r\n(x-request-id|traceparent|origin|authorization|content-length|connection|transfer-encoding|expect|upgrade)"
    rb"[ \t]*:[ \t]*([^\r\n]*?)[ \t]*(?=\r\n)",
    re.IGNORECASE,
)
_PECULIAR = frozenset((b"transfer-encoding", b"expect", b"upgrade"))
_OWN = frozenset((b"x-request-id", b"traceparent", b"origin"))  # what an answer repeats


class Head(NamedTuple):
    """What a refusal has to know of a request: its method, its path without the query, and some headers by name."""

    method: str
    path: str
    headers: dict[bytes, bytes]
    length: int = 0  # of its body


def head_of(data: bytes) -> Head | None:
    """Reads bytes that are exactly one whole HTTP/1.1 request to be kept alive; None if they are anything else."""
    end = data.find(b"\r\n\r\n")
    if end < 0:
        return None
    line = data[: data.find(b"\r\n")].split(b" ")
    if len(line) != 3 or line[2] != b"HTTP/1.1":
        return None
    found = [(name.lower(), value) for name, value in _HEADER.findall(data[: end + 2])]
    headers = dict(found)
    length = headers.get(b"content-length", b"0")
    whole = length.isdigit() and len(length) < 10 and end + 4 + int(length) == len(data)
    if not whole or len(headers) < len(found) or not _PECULIAR.isdisjoint(headers):
        return None
    if headers.get(b"connection", b"keep-alive").lower() != b"keep-alive":
        return None
    return Head(line[0].decode("latin-1"), line[1].partition(b"?")[0].decode("latin-1"), headers, int(length))


class Heads:
    """Heads of requests that are refused alike, by their bytes."""

    def __init__(self) -> None:
        self._known: dict[bytes, Head] = {}

    def find(self, data: bytes) -> Head | None:
        """The head of a request that is whole, if it is known."""
        end = data.find(b"\r\n\r\n") + 4
        head = self._known.get(data[:end]) if 4 <= end <= MAX_HEAD else None
        return head if head is not None and end + head.length == len(data) else None

    def learn(self, data: bytes, head: Head) -> bool:
        """Whether the answers to such requests are alike; then they are known from now on."""
        end = len(data) - head.length
        if end > MAX_HEAD or not _OWN.isdisjoint(head.headers):
            return False
        if len(self._known) >= MAX_HEADS:
            self._known.clear()
        self._known[data[:end]] = head
        return True


class Refusal:
    """An error as an answer that is given at the door."""

    def __init__(self, error: RequestError) -> None:
        self.status, self.code, self._body = error.status, error.code, body_of(error)
        headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(self._body))]
        self._headers = headers + [(name.encode(), value.encode()) for name, value in error.headers.items()]
        self._always: Headers | None = None
        self._begin = b""

    def whole(self, method: str, always: Headers, extra: Headers) -> bytes:
        """Its bytes, with headers that every answer of the server has, and with others."""
        lines = [b"%s: %s\r\n" % header for header in (*always, *self._headers, *extra)]
        return b"".join((_LINES[self.status], *lines, b"\r\n", b"" if method == "HEAD" else self._body))

    def ready(self, method: str, always: Headers, identity: str) -> bytes:
        """The same where a request's id is all that differs; `always` is looked at again once it is another list."""
        if always is not self._always:
            self._always, self._begin = always, self.whole("HEAD", always, [])[:-2]
        body = b"" if method == "HEAD" else self._body
        return b"%bx-request-id: %b\r\n\r\n%b" % (self._begin, identity.encode(), body)
