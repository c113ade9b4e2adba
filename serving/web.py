"""The few lines between the ASGI server and a handler: a request, an answer, and a table of routes.

BentoML's own API layer and Starlette's middlewares cost several times the inference of a small network; this costs a
few microseconds. A handler takes a `Request` and returns an `Answer`, or raises `RequestError`.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, NamedTuple
from urllib.parse import parse_qsl

from serving.errors import RequestError, quoted

Scope = dict[str, Any]
Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]
Observe = Callable[[str, int, float], None]

MAX_HEADERS = 100
MAX_QUERY_FIELDS = 20
_DRAIN_S = 1.0

logger = logging.getLogger("bentoml.modelkiln")


class Disconnected(Exception):
    """The client left before its request was whole."""


@dataclass
class Request:
    """One HTTP request; `params` are the parts of the path that the route leaves open."""

    scope: Scope
    receive: Receive
    params: dict[str, str] = field(default_factory=dict)

    def header(self, name: bytes) -> str:
        """A header's value by its name in small letters, or an empty string."""
        return next((value.decode("latin-1") for key, value in self.scope["headers"] if key == name), "")

    def query(self, *allowed: str) -> dict[str, str]:
        """The query's fields that are not empty.

        Raises:
            RequestError: 400 `query_unknown`, `query_repeated` or `query_invalid`, naming the field.
        """
        raw: bytes = self.scope["query_string"]
        if not raw:
            return {}
        try:
            pairs = parse_qsl(raw.decode("ascii"), errors="strict", max_num_fields=MAX_QUERY_FIELDS)
        except ValueError:
            raise RequestError(
                400, "query_invalid", f"the query is not UTF-8, or has more than {MAX_QUERY_FIELDS} fields"
            ) from None
        for name, _ in pairs:
            if name not in allowed:
                known = ", ".join(allowed) or "none"
                raise RequestError(400, "query_unknown", f"the query has a field {quoted(name)}; known are: {known}")
        if len(found := dict(pairs)) < len(pairs):
            raise RequestError(400, "query_repeated", "a field of the query is repeated")
        return found

    async def body(self, limit: int, timeout_s: float) -> bytes:
        """The whole body, of at most `limit` bytes, within `timeout_s`.

        Raises:
            RequestError: 413 `body_too_large`, as soon as that is known, or 408 `body_timeout`.
            Disconnected: The client left.
        """
        declared = self.header(b"content-length")
        if declared.isdecimal() and int(declared[:20]) > limit:
            raise _too_large(limit)
        body, more = bytearray(), True
        try:
            async with asyncio.timeout(timeout_s):
                while more:
                    message = await self.receive()
                    if message["type"] == "http.disconnect":
                        raise Disconnected
                    body += message.get("body", b"")
                    if len(body) > limit:
                        raise _too_large(limit)
                    more = message.get("more_body", False)
        except TimeoutError:
            sentence = f"the body did not arrive within {timeout_s:g} seconds"
            raise RequestError(408, "body_timeout", sentence, {"connection": "close"}) from None
        return bytes(body)


def _too_large(limit: int) -> RequestError:
    return RequestError(413, "body_too_large", f"the body is larger than {limit} bytes", {"connection": "close"})


@dataclass(frozen=True)
class Answer:
    """What a handler returns: `content` becomes JSON."""

    content: Any
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)


Handler = Callable[[Request], Awaitable[Answer]]


class Route(NamedTuple):
    """A method, a path whose `{name}` segments are open, and what answers there."""

    method: str
    path: str
    handler: Handler


class Router:
    """An ASGI application over a table of routes, whose every error has the one body of `serving.errors`."""

    def __init__(self, routes: Iterable[Route], observe: Observe | None = None) -> None:
        """Takes the table; `observe(path, status, seconds)` sees every answer."""
        self._fixed: dict[str, dict[str, Handler]] = {}
        self._open: list[tuple[list[str], str]] = []
        self._observe = observe or (lambda path, status, seconds: None)
        for route in routes:
            if "{" in route.path and route.path not in self._fixed:
                self._open.append((route.path.split("/"), route.path))
            self._fixed.setdefault(route.path, {})[route.method] = route.handler
        self._known = ", ".join(self._fixed)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers one HTTP request; a WebSocket is turned away."""
        if scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1000})
            return
        begun = time.perf_counter()
        request = Request(scope, receive)
        path = "other"
        try:
            path, methods = self._resolve(request)
            answer = await _handler(scope["method"], path, methods, request)(request)
        except RequestError as error:
            answer = _refusal(error)
        except Disconnected:
            return
        except Exception:
            logger.exception("an error in %s %s", scope["method"], path)
            answer = _refusal(RequestError(500, "internal", "the service failed; its log says why"))
        await _respond(answer, request, send)
        self._observe(path, answer.status, time.perf_counter() - begun)

    def _resolve(self, request: Request) -> tuple[str, dict[str, Handler]]:
        path: str = request.scope["path"]
        if (methods := self._fixed.get(path)) is not None and "{" not in path:
            return path, methods
        segments = path.split("/")
        for template, name in self._open:
            if len(template) != len(segments):
                continue
            pairs = list(zip(template, segments, strict=True))
            if all(part == segment or (part[:1] == "{" and segment) for part, segment in pairs):
                request.params = {part[1:-1]: segment for part, segment in pairs if part[:1] == "{"}
                return name, self._fixed[name]
        raise RequestError(404, "route_unknown", f"there is nothing at {quoted(path)}; there are: {self._known}")


def _handler(method: str, path: str, methods: dict[str, Handler], request: Request) -> Handler:
    found = methods.get("GET" if method == "HEAD" else method)
    if found is None:
        allowed = ", ".join(methods)
        raise RequestError(
            405, "method_not_allowed", f"{path} takes {allowed}, not {quoted(method)}", {"allow": allowed}
        )
    if len(request.scope["headers"]) > MAX_HEADERS:
        raise RequestError(400, "headers_too_many", f"the request has more than {MAX_HEADERS} headers")
    if "pickle" in request.header(b"content-type").lower():
        raise RequestError(415, "content_type_unsupported", "pickles are not read here")
    return found


def _refusal(error: RequestError) -> Answer:
    return Answer({"error": error.error, "code": error.code}, error.status, error.headers)


async def _respond(answer: Answer, request: Request, send: Send) -> None:
    body = json.dumps(answer.content, ensure_ascii=False, separators=(",", ":")).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    headers += [(name.encode(), value.encode("latin-1", "replace")) for name, value in answer.headers.items()]
    await send({"type": "http.response.start", "status": answer.status, "headers": headers})
    if answer.headers.get("connection") != "close":
        await send({"type": "http.response.body", "body": body})
        return
    await send({"type": "http.response.body", "body": body, "more_body": True})
    await _drain(request)
    await send({"type": "http.response.body", "body": b""})


async def _drain(request: Request) -> None:
    """Reads on for a moment: closing on a client that still writes would lose it the answer to a reset."""
    if request.header(b"expect"):  # it waits for leave to write, which it will not get
        return
    try:
        async with asyncio.timeout(_DRAIN_S):
            while (await request.receive()).get("more_body", False):
                pass
    except TimeoutError:
        return
