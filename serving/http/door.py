"""Turns requests away where their bytes arrive: while a worker has all it can do, and when they never end.

A request that reaches the application has been parsed, has a scope and a task of its own; refusing it there costs a
fifth of answering it, and three times the capacity would leave little for the answers. What arrives whole, in one piece
and without peculiarities is refused here for a small part of that (`serving.http.refusals`); everything else goes the
usual way and is refused there.

The server keeps all it reads of a head until that is whole, and waits without limit for clients that do not read: here
both have an end.

uvicorn takes the class of its connections from its configuration, for each connection anew; that is the way in.
"""

from __future__ import annotations

import asyncio
import re
from typing import Any, Protocol

from serving.errors import RequestError
from serving.http.admission import House
from serving.http.auth import Headers

MAX_HEAD_BYTES = 65_536  # of a request's line and headers, or of anything else between pieces of bodies
_LINGER_S = 1.0
_CLOSE = {"connection": "close"}
_TOO_LONG = RequestError(431, "head_too_large", f"line and headers are longer than {MAX_HEAD_BYTES} bytes", _CLOSE)
_NO_REQUEST = RequestError(400, "http_invalid", "these bytes are no HTTP/1.1 request", _CLOSE)
_Connection: Any = object  # before the server's own class, which is known when it runs
_UPGRADE = re.compile(rb"(?<![^\n])upgrade(?=:)(?!:[ \t]*websocket[ \t]*\r)", re.IGNORECASE)


class Gate(Protocol):
    """What the door asks, and tells of requests that were taken but not yet begun."""

    house: House

    def refusal(self, data: bytes, always: Headers) -> bytes | None:
        """The answer to a request that there is no room for, or None where it must not be refused here."""

    def broken(self, error: RequestError, always: Headers) -> bytes:
        """The answer to bytes that are no request."""


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
    timeout_keep_alive_task: asyncio.TimerHandle | None  # uvicorn's
    _within = False  # a message that was begun and is not whole
    _reading = False  # what of it follows its head
    _fruitless = 0  # bytes since the last that completed a head or brought some of a body
    _ended = False  # the last thing was said
    _rested = 0.0  # since when, by the event loop's clock, it had nothing to do but to be refused
    _unread: asyncio.TimerHandle | None = None  # how long the client may go on not to read

    def data_received(self, data: bytes) -> None:
        """Refuses a whole request, or hands the bytes on."""
        if self._ended:
            return
        if self.gate.house.full() and self._between() and self._refused(data):
            return
        self._fruitless += len(data)
        super().data_received(data if self._reading else _without_upgrade(data))
        if self._fruitless > MAX_HEAD_BYTES:
            self._end(_TOO_LONG)

    def _between(self) -> bool:
        """Whether the next byte begins a request."""
        return not self._within and (self.cycle is None or self.cycle.response_complete)

    def _refused(self, data: bytes) -> bool:
        said = self.gate.refusal(data, self.server_state.default_headers)
        if said is None:
            return False
        if self.flow.write_paused:
            self.transport.abort()  # answers that nobody reads would only pile up
        else:
            self.transport.write(said)
            self._rest()
        return True

    def _rest(self) -> None:
        """Gives a connection between requests its time, from now on; a timer that runs already is left alone."""
        self._rested = self.loop.time()
        if self.timeout_keep_alive_task is None:
            loop: asyncio.AbstractEventLoop = self.loop
            self.timeout_keep_alive_task = loop.call_later(self.timeout_keep_alive, self.timeout_keep_alive_handler)

    def timeout_keep_alive_handler(self) -> None:
        """Closes, unless the connection was refused something since the timer began."""
        if (left := self._rested + self.timeout_keep_alive - self.loop.time()) > 0:
            self.timeout_keep_alive_task = self.loop.call_later(left, self.timeout_keep_alive_handler)
        else:
            super().timeout_keep_alive_handler()

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
        self.transport.write(self.gate.broken(error, self.server_state.default_headers))
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
