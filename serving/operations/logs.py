"""One JSON object a line: what happened, when, to which request. Names are escaped by being JSON strings."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import logging
import os
import re
import sys
import time
from typing import Any, TextIO

from serving.http.record import Record

LOGGER = "bentoml.modelkiln"
_OTHERS = ("bentoml", "uvicorn", "uvicorn.error", "circus")  # some have handlers of their own, of plain text
_REQUEST_ID = re.compile(r"[A-Za-z0-9._:/+=-]{1,128}")
_TRACEPARENT = re.compile(  # more may follow in versions to come, not in 00
    r"(?!ff)(?!00.{54})[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-(?!0{16})[0-9a-f]{16}-([0-9a-f]{2})(?:-.*)?"
)


class JsonFormatter(logging.Formatter):
    """A log record as one JSON object; what `extra={"fields": {…}}` holds becomes fields of it."""

    def format(self, record: logging.LogRecord) -> str:
        """One line, whatever the message holds: control characters and line breaks are escaped."""
        line: dict[str, Any] = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "message": record.getMessage(),
            "pid": record.process,
        }
        line |= getattr(record, "fields", {})
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


class _Handler(logging.StreamHandler[TextIO]):
    """Writes to standard error; a disk that is full costs lines, not answers."""

    def handleError(self, record: logging.LogRecord) -> None:
        """Keeps quiet: there is nowhere to say it."""


def _json_lines() -> _Handler:
    handler = _Handler(sys.stderr)
    handler.setFormatter(JsonFormatter())
    return handler


def configure() -> logging.Logger:
    """The service's logger, writing JSON lines to standard error and handing nothing on to BentoML's handlers."""
    logger = logging.getLogger(LOGGER)
    if not any(isinstance(handler, _Handler) for handler in logger.handlers):
        logger.addHandler(_json_lines())
        logger.setLevel(logging.INFO)
        logger.propagate = False
    return logger


def take_over() -> None:
    """Has BentoML, uvicorn and circus write their lines as the service does; to be called where it serves."""
    handler = _json_lines()
    handler.addFilter(_worth_a_line)
    for logger in map(logging.getLogger, _OTHERS):
        logger.handlers, logger.propagate = [handler], False


def _worth_a_line(record: logging.LogRecord) -> bool:
    """All but what uvicorn says of bytes that are no request: they are answered, and that has a line of its own."""
    return record.msg != "Invalid HTTP request received."


class Few:
    """Lets so many lines of a kind through each second and says how many it kept back.

    A flood of refusals must not cost what the answers need, nor fill a disk.
    """

    def __init__(self, logger: logging.Logger, status: int, lines: int = 10) -> None:
        self._logger, self._status, self._lines = logger, status, lines
        self._second, self._written, self._kept = 0.0, 0, 0

    def may(self) -> bool:
        """Whether the next line is one of the few."""
        now = time.monotonic()
        if now - self._second >= 1:
            self.tell()
            self._second, self._written = now, 0
        self._written += 1
        if self._written <= self._lines:
            return True
        self.keep(1)
        return False

    def keep(self, count: int) -> None:
        """Keeps back so many, and tells of them within a second."""
        if not self._kept:
            with contextlib.suppress(RuntimeError):  # no event loop: the next line tells
                asyncio.get_running_loop().call_later(1.0, self.tell)
        self._kept += count

    def tell(self) -> None:
        """Says how many lines were kept back, if any."""
        kept, self._kept = self._kept, 0
        if kept:
            fields = {"status": self._status, "refused": kept}
            self._logger.info("refused more requests than there are lines for", extra={"fields": fields})


class Identity:
    """Gives requests their ids: the client's own where it sends good ones, else new ones, unique to this worker."""

    def __init__(self) -> None:
        self._worker = os.urandom(6).hex()
        self._numbers = itertools.count(1)
        self._span = int.from_bytes(os.urandom(8), "big") | 1

    def new(self) -> str:
        """An id for a request that has none."""
        return f"{self._worker}-{next(self._numbers):x}"

    def of(self, request_id: bytes, traceparent: bytes) -> tuple[Record, bytes]:
        """A new record with its ids, and the `traceparent` to pass on (empty where the request has none).

        The trace goes on under a span of our own (W3C Trace Context); a malformed header is dropped, as it says.
        """
        number = next(self._numbers)
        given = request_id.decode("latin-1")
        record = Record(id=given if _REQUEST_ID.fullmatch(given) else f"{self._worker}-{number:x}")
        if not traceparent:
            return record, b""
        found = _TRACEPARENT.fullmatch(traceparent.decode("latin-1"))
        if found is None:
            return record, b""
        record.trace = found[1]
        record.span = f"{(self._span + number) & (2**64 - 1) or 1:016x}"
        sampled = int(found[2], 16) & 1  # the only flag that version 00 has
        return record, f"00-{record.trace}-{record.span}-{sampled:02x}".encode()


def access_fields(record: Record, method: str, seconds: float) -> dict[str, Any]:
    """What the log says of an answer; the path is the route's, so that no name a client made up reaches it."""
    fields: dict[str, Any] = {
        "request_id": record.id,
        "method": method[:16],
        "route": record.route,
        "status": record.status,
        "ms": round(1000 * seconds, 3),
    }
    if record.trace:
        fields |= {"trace_id": record.trace, "span_id": record.span}
    if record.code:
        fields["code"] = record.code
    if record.model:
        fields |= {"model": record.model, "version": record.version}
    if record.images:
        fields |= {
            "images": record.images,
            "decode_ms": round(1000 * record.decode_s, 3),
            "queue_ms": round(1000 * record.queue_s, 3),
            "compute_ms": round(1000 * record.compute_s, 3),
        }
    return fields
