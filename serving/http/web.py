"""The few lines between the ASGI server and a handler: a request, an answer, and a table of routes.

BentoML's own API layer and Starlette's middlewares cost several times the inference of a small network; this costs a
few microseconds. A handler takes a `Request` and returns an `Answer`, or raises `RequestError`.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable, Iterable
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any, NamedTuple
from urllib.parse import parse_qsl

from serving.errors import RequestError, quoted
from serving.http.admission import CROWDED_S, Place
from serving.http.record import Record

Scope = dict[str, Any]
Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]

RAW_TYPES = (  # of a body that says nothing of itself; the last is curl's for --data-binary
    "",
    "application/octet-stream",
    "application/x-www-form-urlencoded",
)
MAX_HEADERS = 100
MAX_QUERY_FIELDS = 20
MAX_PATHS, MAX_PATH_LENGTH = 256, 256  # of those that the router remembers
_DRAIN_S = 1.0

logger = logging.getLogger("bentoml.modelkiln")


class Disconnected(Exception):
    """The client left before its request was whole, or was answered."""


@dataclass
class Request:
    """One HTTP request; `params` are the parts of the path that the route leaves open."""

    scope: Scope
    receive: Receive
    params: dict[str, str] = field(default_factory=dict)
    _headers: dict[bytes, bytes] | None = None

    @property
    def record(self) -> Record:
        """What is known of this request for metrics and log; handlers add what they learn."""
        found: Record | None = self.scope.get("modelkiln")
        if found is None:
            found = self.scope["modelkiln"] = Record()
        return found

    def gone(self) -> bool:
        """Whether the client has left, where the server tells: uvicorn's request does, without being asked to wait."""
        return bool(getattr(getattr(self.receive, "__self__", None), "disconnected", False))

    def header(self, name: bytes) -> str:
        """A header's value by its name in small letters, or an empty string."""
        if self._headers is None:
            self._headers = dict(reversed(list(self.scope["headers"])))  # of those that are repeated the first
        return self._headers.get(name, b"").decode("latin-1")

    def media(self, allowed: tuple[str, ...], send: str) -> str:
        """The content type in small letters, without its parameters, if it is allowed; `image/*` is any image.

        Raises:
            RequestError: 415 `content_type_unsupported`, which ends with what to `send`.
        """
        kind = self.header(b"content-type").partition(";")[0].strip().lower()
        if kind not in allowed and kind[: kind.find("/") + 1] + "*" not in allowed:
            raise RequestError(415, "content_type_unsupported", f"the content type is {quoted(kind)}; {send}")
        return kind

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
            RequestError: 413 `body_too_large`, as soon as that is known, 408 `body_timeout`, or 429 `overloaded`; it
                was not quick while many others were on their way.
            Disconnected: The client left.
        """
        declared = self.header(b"content-length")
        if declared.isdecimal() and int(declared[:20]) > limit:
            raise _too_large(limit)
        place: Place | None = self.scope.get("modelkiln.place")
        body, more = bytearray(), True
        with place or nullcontext(False) as crowded:
            try:
                async with asyncio.timeout(min(timeout_s, CROWDED_S) if crowded else timeout_s):
                    while more:
                        message = await self.receive()
                        if message["type"] == "http.disconnect":
                            raise Disconnected
                        body += message.get("body", b"")
                        if len(body) > limit:
                            raise _too_large(limit)
                        more = message.get("more_body", False)
            except TimeoutError:
                if crowded and place is not None:
                    raise place.house.overloaded({"connection": "close"}) from None
                sentence = f"the body did not arrive within {timeout_s:g} seconds"
                raise RequestError(408, "body_timeout", sentence, {"connection": "close"}) from None
        return bytes(body)


def _too_large(limit: int) -> RequestError:
    return RequestError(413, "body_too_large", f"the body is larger than {limit} bytes", {"connection": "close"})


@dataclass(frozen=True)
class Answer:
    """What a handler returns: bytes are sent as they are, any other `content` becomes JSON."""

    content: Any
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    media: str = "application/json"


Handler = Callable[[Request], Awaitable[Answer]]


class Route(NamedTuple):
    """A method, a path whose `{name}` segments are open, and what answers there."""

    method: str
    path: str
    handler: Handler


class Router:
    """An ASGI application over a table of routes, whose every error has the one body of `serving.errors`."""

    def __init__(self, routes: Iterable[Route]) -> None:
        self._fixed: dict[str, dict[str, Handler]] = {}
        self._open: list[tuple[list[str], str]] = []
        self._found: dict[str, tuple[str, dict[str, str]]] = {}  # paths that were asked for, and where they lead
        for route in routes:
            if "{" in route.path and route.path not in self._fixed:
                self._open.append((route.path.split("/"), route.path))
            self._fixed.setdefault(route.path, {})[route.method] = route.handler
        shortened = dict.fromkeys("/v2/…" if path.startswith("/v2/") else path for path in self._fixed)
        self._known = ", ".join(shortened)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers one HTTP request; a WebSocket is turned away."""
        if scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1000})
            return
        request = Request(scope, receive)
        record = request.record
        try:
            record.route, methods = self._resolve(request)
            answer = await _handler(scope["method"], record.route, methods, request)(request)
        except RequestError as error:
            await refuse(error, request, send)
            return
        except Disconnected:
            return
        except Exception:
            logger.exception("an error", extra={"fields": {"request_id": record.id, "route": record.route}})
            await refuse(RequestError(500, "internal", "the service failed; its log says why"), request, send)
            return
        await _respond(answer, request, send)

    def _resolve(self, request: Request) -> tuple[str, dict[str, Handler]]:
        path: str = request.scope["path"]
        if (methods := self._fixed.get(path)) is not None and "{" not in path:
            return path, methods
        if (found := self._found.get(path)) is not None:
            name, request.params = found
            return name, self._fixed[name]
        segments = path.split("/")
        for template, name in self._open:
            if len(template) != len(segments):
                continue
            pairs = list(zip(template, segments, strict=True))
            if all(part == segment or (part[:1] == "{" and segment) for part, segment in pairs):
                request.params = {part[1:-1]: segment for part, segment in pairs if part[:1] == "{"}
                if len(self._found) >= MAX_PATHS:
                    self._found.clear()
                if len(path) < MAX_PATH_LENGTH:
                    self._found[path] = name, request.params
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


async def refuse(error: RequestError, request: Request, send: Send) -> None:
    """Sends the one body that errors have, and notes its word."""
    request.record.code = error.code
    await _respond(Answer(body_of(error), error.status, error.headers), request, send)


def body_of(error: RequestError) -> bytes:
    """The one body that errors have."""
    return _json({"error": error.error, "code": error.code})


_compact = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode  # dumps() would make one every time


def _json(content: Any) -> bytes:
    return _compact(content).encode()


async def _respond(answer: Answer, request: Request, send: Send) -> None:
    content = answer.content
    body = content if isinstance(content, bytes) else _json(content)
    headers = [(b"content-type", answer.media.encode()), (b"content-length", str(len(body)).encode())]
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
