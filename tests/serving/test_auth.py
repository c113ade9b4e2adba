"""Tokens, other origins, identities and the log: the gate and its parts without a server."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Callable
from typing import Any

import pytest

from serving.errors import RequestError
from serving.http.auth import Guard
from serving.http.gate import Gate
from serving.http.record import Record
from serving.http.web import Answer, Request, Route, Router
from serving.operations import logs
from serving.settings import Settings

TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


class Tally:
    """Stands in for the metrics, which can be made only once a process."""

    def __init__(self) -> None:
        self.seen: list[tuple[int, str, str]] = []
        self.most = 0
        self.on_flush: Callable[[], None] = lambda: None

    def answered(self, record: Record, seconds: float) -> None:
        assert seconds >= 0
        self.seen.append((record.status, record.code, record.route))

    def refused(self, record: Record, count: int) -> None:
        self.seen += [(record.status, record.code, record.route)] * count

    def flush(self) -> None:
        self.on_flush()

    def inflight(self, count: int) -> None:
        self.most = max(self.most, count)


def gated(settings: Settings, *routes: Route, draining: bool = False) -> tuple[Gate, Tally]:
    tally = Tally()
    return Gate(Router(routes), settings, tally, lambda: draining), tally  # type: ignore[arg-type]


async def asked(gate: Gate, path: str = "/x", method: str = "GET", **headers: str) -> tuple[int, dict[str, str], Any]:
    sent: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    pairs = [(name.replace("_", "-").encode(), value.encode("latin-1")) for name, value in headers.items()]
    scope = {"type": "http", "method": method, "path": path, "query_string": b"", "headers": pairs}
    await gate(scope, receive, send)
    body = b"".join(message.get("body", b"") for message in sent)
    told = {name.decode(): value.decode("latin-1") for name, value in sent[0]["headers"]}
    return sent[0]["status"], told, json.loads(body) if body else None


async def fine(request: Request) -> Answer:
    return Answer({"ok": True})


ROUTES = (
    Route("GET", "/x", fine),
    Route("GET", "/livez", fine),
    Route("GET", "/metrics", fine),
    Route("GET", "/", fine),
)


@pytest.mark.parametrize("given", ["Bearer wrong", "Bearer ", "Bearer secre", "Bearer secret2", "Bearer sécret"])
def test_a_wrong_token(given: str) -> None:
    gate, tally = gated(Settings(token="secret"), *ROUTES)
    status, headers, body = asyncio.run(asked(gate, authorization=given))
    assert (status, body["code"]) == (401, "token_wrong")
    assert headers["www-authenticate"].startswith("Bearer") and tally.seen == [(401, "token_wrong", "other")]


@pytest.mark.parametrize("given", [{}, {"authorization": "Basic c2VjcmV0"}, {"authorization": "secret"}])
def test_a_missing_token(given: dict[str, str]) -> None:
    gate, _ = gated(Settings(token="secret"), *ROUTES)
    assert asyncio.run(asked(gate, **given))[2]["code"] == "token_missing"


def test_the_right_token_and_the_open_routes() -> None:
    gate, _ = gated(Settings(token="secret"), *ROUTES)
    assert asyncio.run(asked(gate, authorization="bearer secret"))[0] == 200
    assert asyncio.run(asked(gate, "/livez"))[0] == 200
    assert asyncio.run(asked(gate, "/"))[0] == 200
    assert asyncio.run(asked(gate, "/metrics"))[0] == 200
    assert asyncio.run(asked(gate, "/models"))[0] == 401
    assert "secret" not in repr(Settings(token="secret"))


def test_tokens_are_compared_in_constant_time(monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[tuple[bytes, bytes]] = []

    def compare(given: bytes, right: bytes) -> bool:
        compared.append((given, right))
        return given == right

    monkeypatch.setattr("hmac.compare_digest", compare)
    with pytest.raises(RequestError):
        Guard("secret").admit("/x", b"Bearer guess")
    assert compared == [(b"guess", b"secret")]


def test_other_origins_are_off_unless_named() -> None:
    origin = {"origin": "https://a.example"}
    gate, _ = gated(Settings(), *ROUTES)
    status, headers, _ = asyncio.run(asked(gate, method="OPTIONS", **origin))
    assert status == 405 and not [name for name in headers if name.startswith("access-control")]
    gate, _ = gated(Settings(cors_origins="https://a.example, https://b.example", token="t"), *ROUTES)
    status, headers, _ = asyncio.run(asked(gate, method="OPTIONS", **origin))
    assert status == 204 and headers["access-control-allow-origin"] == "https://a.example"
    allowed = headers["access-control-allow-headers"].split(", ")
    assert {"authorization", "content-encoding", "inference-header-content-length"} <= set(allowed)
    status, headers, _ = asyncio.run(asked(gate, authorization="Bearer t", **origin))
    assert (status, headers["vary"]) == (200, "origin")
    assert "inference-header-content-length" in headers["access-control-expose-headers"].split(", ")
    _, headers, _ = asyncio.run(asked(gate, authorization="Bearer t", origin="https://evil.example"))
    assert "access-control-allow-origin" not in headers


def test_more_than_the_admitted_are_refused_at_once_and_probes_are_not() -> None:
    async def scenario() -> None:
        released = asyncio.Event()

        async def slow(request: Request) -> Answer:
            await released.wait()
            return Answer({})

        gate, tally = gated(Settings(max_inflight=3, retry_after_s=2), Route("GET", "/slow", slow), *ROUTES)
        taken = [asyncio.create_task(asked(gate, "/slow")) for _ in range(3)]
        await asyncio.sleep(0)
        status, headers, body = await asked(gate, "/x")
        assert (status, headers["retry-after"], body["code"]) == (429, "2", "overloaded")
        assert tally.most == 3  # told while they are being answered
        assert [(await asked(gate, path))[0] for path in ("/livez", "/metrics")] == [200, 200]
        released.set()
        assert [answer[0] for answer in await asyncio.gather(*taken)] == [200] * 3
        await asyncio.sleep(0)
        assert (await asked(gate, "/x"))[0] == 200
        assert (429, "overloaded", "other") in tally.seen

    asyncio.run(scenario())


def test_those_that_wait_for_their_turn_count() -> None:
    """The first is answered at once, within its turn; five wait for theirs; there is no room for more."""

    async def scenario() -> None:
        gate, _ = gated(Settings(max_inflight=5), *ROUTES)
        answers = await asyncio.gather(*(asked(gate, "/x") for _ in range(9)))
        assert [answer[0] for answer in answers] == [200] * 6 + [429] * 3

    asyncio.run(scenario())


def test_a_place_is_freed_whatever_happens() -> None:
    async def scenario() -> None:
        async def breaks(request: Request) -> Answer:
            raise RuntimeError

        async def waits(request: Request) -> Answer:
            await asyncio.sleep(60)
            return Answer({})

        routes = (Route("GET", "/breaks", breaks), Route("GET", "/waits", waits), *ROUTES)
        gate, _ = gated(Settings(max_inflight=1), *routes)
        logging.getLogger(logs.LOGGER).disabled = True
        assert (await asked(gate, "/breaks"))[0] == 500
        logging.getLogger(logs.LOGGER).disabled = False
        await asyncio.sleep(0)
        cancelled = asyncio.create_task(asked(gate, "/waits"))
        await asyncio.sleep(0)
        cancelled.cancel()
        await asyncio.gather(cancelled, return_exceptions=True)
        await asyncio.sleep(0)
        assert (await asked(gate, "/x"))[0] == 200

    asyncio.run(scenario())


def test_a_draining_worker_asks_its_clients_to_go() -> None:
    gate, _ = gated(Settings(), *ROUTES, draining=True)
    assert asyncio.run(asked(gate))[1]["connection"] == "close"


# --- identities and the log ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "kept"),
    [("abc-1:2", True), ("a b", False), ("a\nb", False), ("x" * 129, False), ("é", False), ("", False)],
)
def test_request_ids(given: str, kept: bool) -> None:
    gate, _ = gated(Settings(), *ROUTES)
    headers = asyncio.run(asked(gate, x_request_id=given))[1]
    assert (headers["x-request-id"] == given) is kept
    assert headers["x-request-id"] != asyncio.run(asked(gate))[1]["x-request-id"]


@pytest.mark.parametrize(
    ("given", "valid"),
    [
        (f"00-{TRACE}-{SPAN}-01", True),
        (f"00-{TRACE}-{SPAN}-fe", True),
        (f"01-{TRACE}-{SPAN}-03-extra", True),
        (f"00-{TRACE}-{SPAN}-01-extra", False),
        (f"00-{TRACE}-{SPAN}-01-", False),
        (f"01-{TRACE}-{SPAN}-01extra", False),
        (f"ff-{TRACE}-{SPAN}-01", False),
        (f"00-{'0' * 32}-{SPAN}-01", False),
        (f"00-{TRACE}-{'0' * 16}-01", False),
        (f"00-{TRACE.upper()}-{SPAN}-01", False),
        ("junk", False),
    ],
)
def test_a_trace_goes_on_under_a_span_of_our_own(given: str, valid: bool) -> None:
    record, passed_on = logs.Identity().of(b"", given.encode())
    assert (record.trace == TRACE) is valid
    if valid:
        version, trace, span, flags = passed_on.decode().split("-")
        assert (version, trace, span) == ("00", TRACE, record.span) and span != SPAN
        assert int(flags, 16) == int(given.split("-")[3], 16) & 1  # the others are not ours to pass on
    else:
        assert passed_on == b""


def test_a_log_line_is_one_json_object_whatever_it_holds() -> None:
    fields = {"request_id": "r", "name": 'a\n{"forged": true}\x1b[31m'}
    entry = logging.LogRecord(logs.LOGGER, logging.ERROR, "x", 1, "broken %s", ("\r\nline",), None)
    entry.fields = fields
    line = logs.JsonFormatter().format(entry)
    assert "\n" not in line and "\x1b" not in line and "\r" not in line
    told = json.loads(line)
    assert told["name"] == fields["name"] and told["message"] == "broken \r\nline" and told["level"] == "error"
    assert told["time"].endswith("Z")


@pytest.mark.parametrize(("which", "lines"), [("all", 2), ("errors", 1), ("none", 0)])
def test_which_requests_are_logged(which: str, lines: int, monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[dict[str, Any]] = []
    monkeypatch.setattr("serving.http.gate.logger.log", lambda level, message, extra: written.append(extra["fields"]))
    gate, _ = gated(Settings(access_log=which), *ROUTES)
    for path in ("/x", "/made%0aup"):
        asyncio.run(asked(gate, path, traceparent=f"00-{TRACE}-{SPAN}-01"))
    assert len(written) == lines
    for fields in written:
        assert fields["trace_id"] == TRACE and fields["request_id"] and "made" not in json.dumps(fields)
