"""What every request passes before a route sees it, and what is said of it afterwards.

An identity (request id, trace), the token, other origins, and admission: a worker answers so many requests at a time
and turns more away at once, so that those it takes stay quick. Most of those are turned away at the door
(`serving.http.door`), before they cost anything. Then the metrics and the line in the log.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from serving.errors import RequestError
from serving.http.admission import House
from serving.http.auth import METHODS, PROBES, Guard, Headers
from serving.http.record import Record
from serving.http.refusals import Head, Heads, Refusal, head_of
from serving.http.turns import Turns
from serving.http.web import Receive, Request, Scope, Send, refuse
from serving.operations.logs import LOGGER, Few, Identity, access_fields
from serving.operations.metrics import Metrics
from serving.operations.series import FLUSH_S
from serving.settings import Settings

App = Callable[[Scope, Receive, Send], Awaitable[None]]
_TOLD = frozenset((b"authorization", b"x-request-id", b"traceparent", b"origin"))
CLIENT_LEFT = 499  # nginx's status for an answer that nobody waited for

logger = logging.getLogger(LOGGER)


class Gate:
    """An ASGI application around another, of one worker."""

    def __init__(self, app: App, settings: Settings, metrics: Metrics, draining: Callable[[], bool]) -> None:
        self._app, self._metrics, self._draining = app, metrics, draining
        self._guard = Guard(settings.token, settings.cors_origins)
        self._identity = Identity()
        self._access = settings.access_log
        self._few: dict[int, Few] = {}  # by status
        self._turns = Turns()
        self.house = House(settings)
        self._overloaded, self._heads = Refusal(self.house.overloaded()), Heads()
        self._turned_away = 0  # at the door, by answers that are alike, and not handed over yet
        metrics.on_flush = self._hand_over

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers one HTTP request, or has it answered."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        begun = time.perf_counter()
        self.house.coming = max(0, self.house.coming - 1)
        told = {name: value for name, value in scope["headers"] if name in _TOLD}
        record, extra = self._begin(scope["method"], told)
        scope["modelkiln"] = record

        async def answer(message: dict[str, Any]) -> None:
            if message["type"] == "http.response.start":
                if (place := scope.get("modelkiln.place")) is not None:
                    place.leave()
                record.status = message["status"]
                message["headers"] = [*message.get("headers", ()), *extra]
            await send(message)

        if _is_preflight(scope["method"], told) and METHODS in extra:
            record.route = "preflight"
            await answer({"type": "http.response.start", "status": 204, "headers": []})
            await answer({"type": "http.response.body", "body": b""})
        else:
            await self._admitted(scope, receive, answer, told.get(b"authorization", b""))
        self._observe(record, scope["method"], time.perf_counter() - begun)

    def _begin(self, method: str, headers: Mapping[bytes, bytes]) -> tuple[Record, Headers]:
        """A request's record, and what every answer to it has in its head."""
        record, parent = self._identity.of(headers.get(b"x-request-id", b""), headers.get(b"traceparent", b""))
        extra: Headers = [(b"x-request-id", record.id.encode())]
        if parent:
            extra.append((b"traceparent", parent))
        if origin := headers.get(b"origin", b""):
            extra += self._guard.cors(origin, _is_preflight(method, headers))
        if self._draining():
            extra.append((b"connection", b"close"))
        return record, extra

    async def _admitted(self, scope: Scope, receive: Receive, send: Send, authorization: bytes) -> None:
        path = scope["path"]
        if path in PROBES:
            await self._app(scope, receive, send)
            return
        try:
            self._guard.admit(path, authorization)
            place = scope["modelkiln.place"] = self.house.enter()
        except RequestError as error:
            await refuse(error, Request(scope, receive), send)
            return
        self._metrics.inflight(self.house.taken)
        try:
            await self._turns.mine()
            await self._app(scope, receive, send)
        finally:
            place.leave()
            self._metrics.inflight(self.house.taken)

    def refusal(self, data: bytes, always: Headers) -> bytes | None:
        """What is said to a request that there is no room for; None where the usual way may have another answer."""
        if self._draining():
            return None
        head = self._heads.find(data)
        if head is None:
            head = head_of(data)
            if head is None or not self._refusable(head):
                return None
            if not self._heads.learn(data, head):
                return self._refused(self._overloaded, head.method, head.headers, always)
        if not self._turned_away:
            with contextlib.suppress(RuntimeError):  # no event loop: the next flush of the metrics hands over
                asyncio.get_running_loop().call_later(FLUSH_S, self._metrics.flush)
        self._turned_away += 1
        return self._overloaded.ready(head.method, always, self._identity.new())

    def _refusable(self, head: Head) -> bool:
        if head.path in PROBES or _is_preflight(head.method, head.headers):
            return False
        try:
            self._guard.admit(head.path, head.headers.get(b"authorization", b""))
        except RequestError:
            return False
        return True

    def _hand_over(self) -> None:
        """Counts those that were turned away since the last time, and has the log tell how many."""
        count, self._turned_away = self._turned_away, 0
        if count:
            said = self._overloaded
            self._metrics.refused(Record(status=said.status, code=said.code), count)
            if self._access != "none":
                self._few_of(said.status).keep(count)

    def broken(self, error: RequestError, always: Headers) -> bytes:
        """What is said to bytes that are no request, or none that is read."""
        return self._refused(Refusal(error), "", {}, always)

    def _refused(self, said: Refusal, method: str, headers: Mapping[bytes, bytes], always: Headers) -> bytes:
        record, extra = self._begin(method, headers)
        record.status, record.code = said.status, said.code
        self._observe(record, method, 0.0)
        return said.whole(method, always, extra)

    def _observe(self, record: Record, method: str, seconds: float) -> None:
        record.status = record.status or CLIENT_LEFT
        self._metrics.answered(record, seconds)
        failed = record.status >= 400
        if self._access == "all" or (failed and self._access == "errors"):
            if failed and not self._few_of(record.status).may():
                return
            level = logging.ERROR if record.status >= 500 else logging.INFO
            logger.log(level, "answered", extra={"fields": access_fields(record, method, seconds)})

    def _few_of(self, status: int) -> Few:
        if status not in self._few:
            self._few[status] = Few(logger, status)
        return self._few[status]


def _is_preflight(method: str, headers: Mapping[bytes, bytes]) -> bool:
    return method == "OPTIONS" and b"origin" in headers
