"""Turns requests away where their bytes arrive: while a worker has all it can do, and when they never end.

A request that reaches the application has been parsed, has a scope and a task of its own; refusing it there costs a
fifth of answering it, and three times the capacity would leave little for the answers. What arrives whole, in one piece
and without peculiarities is refused here for a third of that; everything else goes the usual way and is refused there.

The server keeps all it reads of a head until that is whole, and waits without limit for clients that do not read: here
both have an end.

uvicorn takes the class of its connections from its configuration, for each connection anew; that is the way in.
"""

from __future__ import annotations

import asyncio
import re
from http import HTTPStatus
from typing import Any, NamedTuple, Protocol

from serving.errors import RequestError
from serving.http.admission import House
from serving.http.auth import Headers

MAX_HEAD_BYTES = 65_536  # of a request's line and headers, or of anything else between pieces of bodies
_LINGER_S = 1.0
_CLOSE = {"connection": "close"}
_TOO_LONG = RequestError(431, "head_too_large", f"line and headers are longer than {MAX_HEAD_BYTES} bytes", _CLOSE)
_NO_REQUEST = RequestError(400, "http_invalid", "these bytes are no HTTP/1.1 request", _CLOSE)
_Connection: Any = object  # before the server's own class, which is known when it runs
_LINES = {status.value: f"HTTP/1.1 {status.value} {status.phrase}\r\n".encode() for status in HTTPStatus}
_HEADER = re.compile(
    rb"\r\n(x-request-id|traceparent|origin|authorization|content-length|connection|transfer-encoding|expect|upgrade)"
    rb"[ \t]*:[ \t]*([^\r\n]*?)[ \t]*(?=\r\n)",
    re.IGNORECASE,
)
_PECULIAR = frozenset((b"transfer-encoding", b"expect", b"upgrade"))
_UPGRADE = re.compile(rb"(?<![^\n])upgrade(?=:)(?!:[ \t]*websocket[ \t]*\r)", re.IGNORECASE)


class Head(NamedTuple):
    """What a refusal has to know of a request: its method, its path without the query, and some headers by name."""

    method: str
    path: str
    headers: dict[bytes, bytes]


class Refusal(NamedTuple):
    """An answer that is given at the door."""

    status: int
    code: str
    headers: Headers
    body: bytes

    def whole(self, always: Headers) -> bytes:
        """Its bytes, with headers that every answer of the server has (its date)."""
        lines = [b"%s: %s\r\n" % header for header in (*always, *self.headers)]
        return b"".join((_LINES[self.status], *lines, b"\r\n", self.body))


class Gate(Protocol):
    """What the door asks, and tells of requests that were taken but not yet begun."""

    house: House

    def refusal(self, head: Head) -> Refusal | None:
        """The answer to a request that there is no room for, or None where it must not be refused here."""

    def broken(self, error: RequestError) -> Refusal:
        """The answer to bytes that are no request."""


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


def _without_upgrade(data: bytes) -> bytes:
    """The same, whose head asks for no other protocol: a server may ignore it (RFC 9110, 7.8), the parser drops bodies.

    Only a WebSocket may be asked for, which is turned away.
    """
    end = data.find(b"\r\n\r\n")
    head = data if end < 0 else data[: end + 2]
    if b"\nupgrade:" not in b"\n" + head.lower():
        return data
    return _UPGRADE.sub(b"ignored", head) + data[len(head) :]


class Door(_Connection):  # type: ignore[misc]
    """A connection that looks at a request before it is parsed, if there is no room for it."""

    gate: Gate
    write_timeout_s: float
    _within = False  # a message that was begun and is not whole
    _reading = False  # what of it follows its head
    _fruitless = 0  # bytes since the last that completed a head or brought some of a body
    _ended = False  # the last thing was said
    _unread: asyncio.TimerHandle | None = None  # how long the client may go on not to read

    def data_received(self, data: bytes) -> None:
        """Refuses a whole request, or hands the bytes on."""
        if self._ended:
            return
        if self.gate.house.full() and self._between() and (head := head_of(data)) and self._refused(head):
            return
        self._fruitless += len(data)
        super().data_received(data if self._reading else _without_upgrade(data))
        if self._fruitless > MAX_HEAD_BYTES:
            self._end(_TOO_LONG)

    def _between(self) -> bool:
        """Whether the next byte begins a request."""
        return not self._within and (self.cycle is None or self.cycle.response_complete)

    def _refused(self, head: Head) -> bool:
        if self.flow.write_paused:
            self.transport.abort()  # answers that nobody reads would only pile up
            return True
        if (said := self.gate.refusal(head)) is None:
            return False
        self.transport.write(said.whole(self.server_state.default_headers))
        self._rest()
        return True

    def _rest(self) -> None:
        """Gives a connection between requests its time, from now on."""
        self._unset_keepalive_if_required()
        loop: asyncio.AbstractEventLoop = self.loop
        self.timeout_keep_alive_task = loop.call_later(self.timeout_keep_alive, self.timeout_keep_alive_handler)

    def _end(self, error: RequestError) -> None:
        """Says a last thing, where no answer is under way, and closes.

        It reads on for a moment: closing on a client that still writes would lose it the answer to a reset.
        """
        if self._ended:
            return
        cycle = self.cycle
        answering = cycle is not None and not cycle.response_complete
        if self.flow.write_paused or self.pipeline or (answering and cycle.response_started):
            self.transport.abort()
            return
        self._ended = True
        if answering:  # it waits for a body that will not be whole
            cycle.disconnected = True
            cycle.message_event.set()
        self.transport.write(self.gate.broken(error).whole(self.server_state.default_headers))
        if self.transport.can_write_eof():
            self.transport.write_eof()
        self.flow.resume_reading()
        self.loop.call_later(_LINGER_S, self.transport.close)

    def send_400_response(self, msg: str) -> None:
        """Says it as every error is said here; the server would say it in plain text."""
        self._end(_NO_REQUEST)

    def _start_asgi_task(self, cycle: Any, app: Any) -> None:
        self.gate.house.coming += 1
        super()._start_asgi_task(cycle, app)

    def on_message_begin(self) -> None:
        """Notes that what comes now belongs to a message."""
        self._within = True
        self._unset_keepalive_if_required()
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        """Begins to count anew."""
        self._reading, self._fruitless = True, 0
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """Begins to count anew: how much of a body is read, the application bounds."""
        self._fruitless = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        """Notes that the next byte begins a message, for which there is time even if this one was answered before."""
        self._within, self._reading, self._fruitless = False, False, 0
        super().on_message_complete()
        if self.cycle is not None and self.cycle.response_complete and not self.transport.is_closing():
            self._rest()

    def pause_writing(self) -> None:
        """Gives the client its time to read on."""
        super().pause_writing()
        self._unread = self.loop.call_later(self.write_timeout_s, self.transport.abort)

    def resume_writing(self) -> None:
        """Notes that it did."""
        super().resume_writing()
        self._forget()

    def connection_lost(self, exc: Exception | None) -> None:
        """Waits no more for it to read."""
        super().connection_lost(exc)
        self._forget()

    def _forget(self) -> None:
        if self._unread is not None:
            self._unread.cancel()
            self._unread = None


def behind(base: type[Any], gate: Gate, write_timeout_s: float) -> type[Any]:
    """The class of uvicorn's connections with a door in front.

    A class that is not uvicorn's httptools one is given back as it is.
    """
    from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

    if not issubclass(base, HttpToolsProtocol):
        return base
    return type("Door", (Door, base), {"gate": gate, "write_timeout_s": write_timeout_s})
