"""What every request passes before a route sees it, and what is said of it afterwards.

An identity (request id, trace), the token, other origins, and admission: a worker answers so many requests at a time
and turns more away at once, so that those it takes stay quick. Most of those are turned away at the door
(`serving.http.door`), before they cost anything. Then the metrics and the line in the log.
"""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Awaitable, Callable
from typing import Any

from serving.errors import RequestError
from serving.http.auth import METHODS, PROBES, Guard, Headers
from serving.http.door import Head
from serving.http.record import Record
from serving.http.turns import Turns
from serving.http.web import Receive, Request, Scope, Send, refuse
from serving.operations.logs import LOGGER, Few, Identity, access_fields
from serving.operations.metrics import Metrics
from serving.settings import Settings

App = Callable[[Scope, Receive, Send], Awaitable[None]]
_TOLD = frozenset((b"authorization", b"x-request-id", b"traceparent", b"origin"))
CLIENT_LEFT = 499  # nginx's status for an answer that nobody waited for
_OVERLOADED = ("overloaded", "the service has all it can do; try again")

logger = logging.getLogger(LOGGER)


class Gate:
    """An ASGI application around another, of one worker."""

    def __init__(self, app: App, settings: Settings, metrics: Metrics, draining: Callable[[], bool]) -> None:
        self._app, self._metrics, self._draining = app, metrics, draining
        self._guard = Guard(settings.token, settings.cors_origins)
        self._identity = Identity()
        self._limit, self._retry_after = settings.max_inflight, str(math.ceil(settings.retry_after_s))
        self._access, self._few = settings.access_log, Few(logger)
        self._inflight = 0  # requests being answered, or waiting for their turn
        self.coming = 0  # that the server has taken since the gate last saw one of them
        self._turns = Turns()
        self._body = json.dumps({"error": _OVERLOADED[1], "code": _OVERLOADED[0]}).encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers one HTTP request, or has it answered."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        begun = time.perf_counter()
        self.coming = max(0, self.coming - 1)
        told = {name: value for name, value in scope["headers"] if name in _TOLD}
        record, parent = self._identity.of(told.get(b"x-request-id", b""), told.get(b"traceparent", b""))
        scope["modelkiln"] = record
        extra: Headers = [(b"x-request-id", record.id.encode())]
        if parent:
            extra.append((b"traceparent", parent))
        preflight = scope["method"] == "OPTIONS" and b"origin" in told
        if b"origin" in told:
            extra += self._guard.cors(told[b"origin"], preflight)
        if self._draining():
            extra.append((b"connection", b"close"))

        async def answer(message: dict[str, Any]) -> None:
            if message["type"] == "http.response.start":
                record.status = message["status"]
                message["headers"] = [*message.get("headers", ()), *extra]
            await send(message)

        if preflight and METHODS in extra:
            record.route = "preflight"
            await answer({"type": "http.response.start", "status": 204, "headers": []})
            await answer({"type": "http.response.body", "body": b""})
        else:
            await self._admitted(scope, receive, answer, told.get(b"authorization", b""))
        self._observe(record, scope["method"], time.perf_counter() - begun)

    async def _admitted(self, scope: Scope, receive: Receive, send: Send, authorization: bytes) -> None:
        path = scope["path"]
        if path in PROBES:
            await self._app(scope, receive, send)
            return
        try:
            self._guard.admit(path, authorization)
            if self._inflight >= self._limit:
                raise RequestError(429, *_OVERLOADED, {"retry-after": self._retry_after})
        except RequestError as error:
            await refuse(error, Request(scope, receive), send)
            return
        self._inflight += 1
        self._metrics.inflight(self._inflight)
        try:
            await self._turns.mine()
            await self._app(scope, receive, send)
        finally:
            self._inflight -= 1
            self._metrics.inflight(self._inflight)

    def present(self) -> int:
        """Requests that are being answered, wait for their turn, or have arrived."""
        return self._inflight + self.coming

    def full(self) -> bool:
        """Whether there is no room for another request."""
        return self.present() >= self._limit

    def refusal(self, head: Head) -> bytes | None:
        """The whole answer to a request that there is no room for; None where it is a probe, or not to be told that."""
        if head.path in PROBES or self._draining():
            return None
        try:
            self._guard.admit(head.path, head.headers.get(b"authorization", b""))
        except RequestError:
            return None
        record, parent = self._identity.of(
            head.headers.get(b"x-request-id", b""), head.headers.get(b"traceparent", b"")
        )
        record.status, record.code = 429, _OVERLOADED[0]
        lines = [
            b"HTTP/1.1 429 Too Many Requests\r\ncontent-type: application/json\r\nretry-after: ",
            self._retry_after.encode(),
            b"\r\ncontent-length: %d\r\nx-request-id: " % len(self._body),
            record.id.encode(),
        ]
        extra: Headers = [(b"traceparent", parent)] if parent else []
        if b"origin" in head.headers:
            extra += self._guard.cors(head.headers[b"origin"], False)
        lines += [b"\r\n%s: %s" % header for header in extra]
        self._observe(record, head.method, 0.0)
        return b"".join((*lines, b"\r\n\r\n", b"" if head.method == "HEAD" else self._body))

    def _observe(self, record: Record, method: str, seconds: float) -> None:
        record.status = record.status or CLIENT_LEFT
        self._metrics.answered(record, seconds)
        failed = record.status >= 400
        if self._access == "all" or (failed and self._access == "errors"):
            if record.status == 429 and not self._few.may():
                return
            level = logging.ERROR if record.status >= 500 else logging.INFO
            logger.log(level, "answered", extra={"fields": access_fields(record, method, seconds)})
