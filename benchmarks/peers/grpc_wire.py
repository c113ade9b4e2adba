"""One gRPC call after another over HTTP/2, as lean as `benchmarks.load.wire`: frames prepared as bytes.

A generator that shares the machine must cost little, and Python's gRPC client costs more than many a server. What is
written and read here is what a unary call needs: RFC 9113 (frames), RFC 7541 (headers, as literals without a table) and
the gRPC protocol over HTTP/2. An answer without a message is an error, whatever its trailers say.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

from benchmarks.load import wire
from catalog import KilnError

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY, WINDOW_UPDATE = 0, 1, 3, 4, 6, 7, 8
ACK = END_STREAM = 0x1
END_HEADERS = 0x4
WINDOW = 65_535  # octets that may be sent before the server allows more
LARGEST_WINDOW = 2**31 - 1
LARGEST_FRAME = 16_384


def frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    """A frame with its nine octets of header."""
    return len(payload).to_bytes(3, "big") + bytes((kind, flags)) + stream.to_bytes(4, "big") + payload


def call(path: str, message: bytes) -> bytes:
    """The frames of a unary call, for stream 0: `Caller` puts in each call's own.

    Raises:
        KilnError: The message does not fit into one frame.
    """
    names = {":method": "POST", ":scheme": "http", ":path": path, ":authority": "localhost"}
    names |= {"content-type": "application/grpc", "te": "trailers"}
    block = b"".join(b"\0" + _text(name) + _text(value) for name, value in names.items())
    framed = b"\0" + len(message).to_bytes(4, "big") + message
    if len(framed) > LARGEST_FRAME:
        raise KilnError(
            f"a gRPC message of {len(message)} bytes is more than one frame; take a network of small images"
        )
    return frame(HEADERS, END_HEADERS, 0, block) + frame(DATA, END_STREAM, 0, framed)


def _text(value: str) -> bytes:
    return bytes((len(value),)) + value.encode()  # lengths below 127 take one octet


class Caller(wire.Connection):
    """A connection that makes one call at a time; its `body` reads like an answer over HTTP/1.1."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._stream = -1
        self._credit = WINDOW
        self._held = b""
        self._message = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Opens HTTP/2 and allows the server to send as much as it wants."""
        super().connection_made(transport)
        settings = (4).to_bytes(2, "big") + LARGEST_WINDOW.to_bytes(4, "big")  # SETTINGS_INITIAL_WINDOW_SIZE
        more = (LARGEST_WINDOW - WINDOW).to_bytes(4, "big")
        self._write(PREFACE + frame(SETTINGS, 0, 0, settings) + frame(WINDOW_UPDATE, 0, 0, more))

    def ask(self, content: bytes, begun: float | None = None) -> None:
        """Makes a call; where the server has not yet allowed as much, when it does."""
        self._stream += 2
        stream = self._stream.to_bytes(4, "big")
        second = 9 + int.from_bytes(content[:3], "big")
        self._message = b""
        self._held = content[:5] + stream + content[9 : second + 5] + stream + content[second + 9 :]
        super().ask(b"", begun)
        self._send()

    def _send(self) -> None:
        needed = len(self._held)  # a little more than counts: headers are free
        if needed and needed <= self._credit:
            self._credit -= needed
            self._write(self._held)
            self._held = b""

    def _write(self, content: bytes) -> None:
        assert self.transport is not None
        self.transport.write(content)

    def data_received(self, data: bytes) -> None:
        """Takes frames apart and answers those that want an answer."""
        self._buffer = self._buffer + data if self._buffer else data
        at = 0
        while len(self._buffer) - at >= 9:
            size = int.from_bytes(self._buffer[at : at + 3], "big")
            if len(self._buffer) - at < 9 + size:
                break
            kind, flags = self._buffer[at + 3], self._buffer[at + 4]
            stream = int.from_bytes(self._buffer[at + 5 : at + 9], "big")
            self._take(kind, flags, stream, self._buffer[at + 9 : at + 9 + size])
            at += 9 + size
        self._buffer = self._buffer[at:]

    def _take(self, kind: int, flags: int, stream: int, payload: bytes) -> None:
        if kind == SETTINGS and not flags & ACK:
            self._write(frame(SETTINGS, ACK, 0, b""))
        elif kind == PING and not flags & ACK:
            self._write(frame(PING, ACK, 0, payload))
        elif kind == WINDOW_UPDATE and stream == 0:
            self._credit += int.from_bytes(payload, "big")
            self._send()
        elif kind == GOAWAY:
            assert self.transport is not None
            self.transport.close()
        elif stream == self._stream and self.busy:
            if kind == DATA:
                self._message += payload
            if kind == RST_STREAM or (kind in (DATA, HEADERS) and flags & END_STREAM):
                self._answered()

    def _answered(self) -> None:
        message, rest = self._message[5:], self._buffer
        status = b"200" if self._message else b"500"
        self._buffer = b"HTTP/2.0 " + status + b"\r\n\r\n" + message
        self._finish()
        self._buffer = rest


# --- the messages of the Open Inference Protocol V2, by field number of its .proto -----------------------------------


def infer(model: str, name: str, shape: tuple[int, ...], datatype: str, raw: bytes) -> bytes:
    """A ModelInferRequest with one tensor, its content raw."""
    dimensions = b"".join(_varint(size) for size in shape)
    tensor = _field(1, name.encode()) + _field(2, datatype.encode()) + _field(3, dimensions)
    return _field(1, model.encode()) + _field(5, tensor) + _field(7, raw)


def floats(message: bytes) -> bytes:
    """The float32 of a ModelInferResponse's first output, raw or in `fp32_contents`."""
    fields = dict(reversed(list(_fields(message))))
    if 6 in fields:  # raw_output_contents
        return fields[6]
    contents = dict(_fields(dict(_fields(fields[5]))[5]))
    return contents[6]


def _field(number: int, content: bytes) -> bytes:
    return _varint(number << 3 | 2) + _varint(len(content)) + content


def _varint(value: int) -> bytes:
    out = b""
    while value > 0x7F:
        out += bytes((value & 0x7F | 0x80,))
        value >>= 7
    return out + bytes((value,))


def _fields(message: bytes) -> Iterator[tuple[int, bytes]]:
    """The fields that have a length; numbers are passed over.

    Raises:
        ValueError: It is no message.
    """
    at = 0

    def number() -> int:
        nonlocal at
        value = shift = 0
        while True:
            if at >= len(message):
                raise ValueError("the message ends within a number")
            value |= (message[at] & 0x7F) << shift
            at += 1
            if not message[at - 1] & 0x80:
                return value
            shift += 7

    while at < len(message):
        key = number()
        if key & 7 == 2:
            size = number()
            yield key >> 3, message[at : at + size]
            at += size
        elif key & 7 == 0:
            number()
        elif key & 7 in (1, 5):
            at += 8 if key & 7 == 1 else 4
        else:
            raise ValueError(f"wire type {key & 7}")
