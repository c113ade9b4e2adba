"""Turns requests away where their bytes arrive, while a worker has all it can do.

A request that reaches the application has been parsed, has a scope and a task of its own; refusing it there costs a
fifth of answering it, and three times the capacity would leave little for the answers. What arrives whole, in one piece
and without peculiarities is refused here for a third of that; everything else goes the usual way and is refused there.

uvicorn takes the class of its connections from its configuration, for each connection anew; that is the way in.
"""

from __future__ import annotations

import asyncio
import re
from typing import Any, NamedTuple, Protocol

_HEADER = re.compile(
    rb"\r\n(x-request-id|traceparent|origin|authorization|content-length|connection|transfer-encoding|expect|upgrade)"
    rb"[ \t]*:[ \t]*([^\r\n]*?)[ \t]*(?=\r\n)",
    re.IGNORECASE,
)
_PECULIAR = frozenset((b"transfer-encoding", b"expect", b"upgrade"))


class Head(NamedTuple):
    """What a refusal has to know of a request: its method, its path without the query, and some headers by name."""

    method: str
    path: str
    headers: dict[bytes, bytes]


class Gate(Protocol):
    """What the door asks, and tells of requests that were taken but not yet begun."""

    coming: int

    def full(self) -> bool:
        """Whether there is no room for another request."""

    def refusal(self, head: Head) -> bytes | None:
        """The whole answer to a request, or None where it must not be refused."""


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
    return Head(line[0].decode("latin-1"), line[1].partition(b"?")[0].decode("latin-1"), headers)


def behind(base: type[Any], gate: Gate) -> type[Any]:
    """The class of uvicorn's connections with a door in front.

    A class that is not uvicorn's httptools one is given back as it is.
    """
    from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

    if not issubclass(base, HttpToolsProtocol):
        return base

    class Door(base):  # type: ignore[misc]  # it is known when the server runs
        """A connection that looks at a request before it is parsed, if there is no room for it."""

        _within = False  # a message that was begun and is not whole

        def data_received(self, data: bytes) -> None:
            """Refuses a whole request, or hands the bytes on."""
            if gate.full() and self._between() and (head := head_of(data)) and (said := gate.refusal(head)):
                self._unset_keepalive_if_required()
                self.transport.write(said)
                loop: asyncio.AbstractEventLoop = self.loop
                self.timeout_keep_alive_task = loop.call_later(self.timeout_keep_alive, self.timeout_keep_alive_handler)
            else:
                before = len(self.tasks)
                super().data_received(data)
                gate.coming += len(self.tasks) - before

        def _between(self) -> bool:
            """Whether the next byte begins a request."""
            return not self._within and (self.cycle is None or self.cycle.response_complete)

        def on_message_begin(self) -> None:
            self._within = True
            super().on_message_begin()

        def on_message_complete(self) -> None:
            self._within = False
            super().on_message_complete()

    return Door
