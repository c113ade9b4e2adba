"""Refusals at the door, short turns of the event loop, and logs that a flood does not fill."""

from __future__ import annotations

import asyncio
import itertools
import json
import logging
import re
import socket
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from benchmarks.load import wire
from serving.errors import RequestError
from serving.http import door, refusals, turns
from serving.http.gate import Gate
from serving.http.refusals import Head, Heads, head_of
from serving.http.turns import Turns
from serving.operations.logs import LOGGER, Few
from serving.operations.series import FLUSH_S
from serving.settings import Settings
from tests.serving import processes, stores
from tests.serving.pictures import plain
from tests.serving.processes import Running
from tests.serving.test_auth import Tally, asked, gated

WHOLE = b"POST /predict?top=1 HTTP/1.1\r\nHost: a\r\nX-Request-ID:  mine \r\nContent-Length: 3\r\n\r\nabc"

TRUST = httpx.create_ssl_context()  # a client would make its own, which takes as long as a place is held


def test_a_whole_request_is_read() -> None:
    told = {b"x-request-id": b"mine", b"content-length": b"3"}
    assert head_of(WHOLE) == Head("POST", "/predict", told, 3)
    assert head_of(b"GET /models HTTP/1.1\r\n\r\n") == Head("GET", "/models", {})
    kept = b"GET / HTTP/1.1\r\nConnection: Keep-Alive\r\n\r\n"
    assert head_of(kept) == Head("GET", "/", {b"connection": b"Keep-Alive"})


@pytest.mark.parametrize(
    "data",
    [
        b"",
        WHOLE[:20],
        WHOLE[:-1],
        WHOLE + b"G",
        WHOLE + WHOLE,
        WHOLE.replace(b"HTTP/1.1", b"HTTP/1.0"),
        WHOLE.replace(b"top=1", b"top= 1"),
        WHOLE.replace(b"Length: 3", b"Length: +3"),
        WHOLE.replace(b"Length: 3", b"Length: 0x3"),
        WHOLE.replace(b"Host: a", b"Content-Length: 3"),
        WHOLE.replace(b"Host: a", b"Transfer-Encoding: chunked"),
        WHOLE.replace(b"Host: a", b"TRANSFER-ENCODING : chunked"),
        WHOLE.replace(b"Host: a", b"Expect: 100-continue"),
        WHOLE.replace(b"Host: a", b"Upgrade: h2c"),
        WHOLE.replace(b"Host: a", b"Connection: close"),
        b"\x16\x03\x01\x02\x00\r\n\r\n",
    ],
)
def test_anything_else_goes_the_usual_way(data: bytes) -> None:
    assert head_of(data) is None


def _house(**settings: Any) -> tuple[Gate, Tally]:
    """A gate whose places are all taken."""
    gate, tally = gated(Settings(**settings))
    gate.house.taken = gate.house.places
    return gate, tally


def _asking(method: str, path: str, **headers: str) -> bytes:
    lines = [f"{method} {path} HTTP/1.1", *(f"{name}: {value}" for name, value in headers.items())]
    return ("\r\n".join(lines) + "\r\n\r\n").encode()


def _read(said: bytes | None) -> tuple[int, dict[str, str], Any]:
    assert said is not None
    head, _, body = said.partition(b"\r\n\r\n")
    status, *lines = head.decode().split("\r\n")
    return int(status.split()[1]), dict(line.split(": ", 1) for line in lines), json.loads(body or b"null")


@pytest.mark.parametrize("method", ["POST", "HEAD"])
def test_a_refusal_is_what_the_gate_would_have_said(method: str) -> None:
    gate, tally = _house(token="t", cors_origins="https://a.example", retry_after_s=1.2)
    trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    headers = {"authorization": "Bearer t", "x-request-id": "mine", "traceparent": trace, "origin": "https://a.example"}
    wanted_status, wanted, wanted_body = asyncio.run(asked(gate, "/predict", method, **headers))
    status, told, body = _read(gate.refusal(_asking(method, "/predict", **headers), [(b"date", b"now")]))
    assert status == wanted_status == 429 and told.pop("date") == "now"
    assert told.pop("traceparent").rpartition("-")[0] != wanted.pop("traceparent").rpartition("-")[0]  # a span each
    assert told == wanted and told["retry-after"] == "2"
    assert body == (wanted_body if method == "POST" else None)
    assert tally.seen == [(429, "overloaded", "other")] * 2


@pytest.mark.parametrize("method", ["POST", "HEAD"])
def test_refusals_that_lie_ready_are_the_same(method: str) -> None:
    gate, tally = _house(token="t")
    headers = {"authorization": "Bearer t"}
    wanted_status, wanted, wanted_body = asyncio.run(asked(gate, "/predict", method, **headers))
    seen, asking, now = set(), _asking(method, "/predict?top=1", **headers), [(b"date", b"now")]
    for always, date in ((now, "now"), (now, "now"), ([(b"date", b"then")], "then")):
        status, told, body = _read(gate.refusal(asking, always))
        assert status == wanted_status == 429 and told.pop("date") == date
        seen.add(told.pop("x-request-id"))
        assert told == {name: value for name, value in wanted.items() if name != "x-request-id"}
        assert body == (wanted_body if method == "POST" else None)
    assert len(seen) == 3 and wanted["x-request-id"] not in seen
    assert len(tally.seen) == 1  # they are counted together
    tally.flush()
    tally.flush()
    assert tally.seen == [(429, "overloaded", "other")] * 4


def test_those_turned_away_are_handed_over_soon() -> None:
    async def scenario() -> int:
        gate, tally = _house()
        for _ in range(100):
            assert gate.refusal(_asking("GET", "/models"), [])
        await asyncio.sleep(2 * FLUSH_S)
        return len(tally.seen)

    assert asyncio.run(scenario()) == 100


def test_known_heads_are_few_and_of_whole_requests(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(refusals, "MAX_HEADS", 3)
    heads, plain_one = Heads(), WHOLE.replace(b"X-Request-ID", b"X-Other")
    for data, alike in ((WHOLE, False), (plain_one, True), (plain_one.replace(b"Host", b"Origin"), False)):
        head = head_of(data)
        assert head is not None and heads.learn(data, head) == alike == (heads.find(data) is not None)
    assert heads.find(plain_one[:-3] + b"xyz") == head_of(plain_one)  # another body
    assert heads.find(plain_one[:-1]) is heads.find(plain_one + b"G") is heads.find(b"") is None
    for number in range(20):
        data = _asking("GET", f"/{number}")
        assert heads.learn(data, Head("GET", f"/{number}", {})) and heads.find(data) and len(heads._known) <= 3
    long = _asking("GET", "/" + "x" * refusals.MAX_HEAD)
    assert not heads.learn(long, Head("GET", "/", {})) and heads.find(long) is None


def test_what_the_door_leaves_to_the_gate() -> None:
    gate, _ = _house(token="t", cors_origins="https://a.example")
    right, origin = {"authorization": "Bearer t"}, {"origin": "https://a.example"}
    for method, path, headers in (
        ("GET", "/readyz", {}),
        ("GET", "/metrics", {}),
        ("POST", "/predict", {}),
        ("POST", "/predict", {"authorization": "Bearer wrong"}),
        ("OPTIONS", "/predict", {**right, **origin}),  # which is answered, however much there is to do
    ):
        for _ in range(2):  # it is not learnt either
            assert gate.refusal(_asking(method, path, **headers), []) is None
    assert asyncio.run(asked(gate, "/predict", "OPTIONS", origin="https://a.example"))[0] == 204
    draining, _ = gated(Settings(), draining=True)
    assert draining.refusal(_asking("GET", "/predict"), []) is None


def test_another_servers_connections_are_left_alone() -> None:
    assert door.behind(asyncio.Protocol, gated(Settings())[0], 10.0) is asyncio.Protocol


# --- turns -----------------------------------------------------------------------------------------------------------


def test_turns_are_short_and_first_come_first_served(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turns, "TURN_S", 0.02)
    order: list[int] = []
    looks: list[int] = []  # how many were answered when the event loop looked around

    async def request(own: Turns, number: int) -> None:
        await own.mine()
        time.sleep(0.002)
        order.append(number)

    async def scenario() -> None:
        own, loop = Turns(), asyncio.get_running_loop()

        def look() -> None:
            looks.append(len(order))
            if len(order) < 120:
                loop.call_soon(look)

        loop.call_soon(look)
        await asyncio.gather(*(request(own, number) for number in range(120)))

    asyncio.run(scenario())
    assert order == list(range(120))
    together = [after - before for before, after in itertools.pairwise(looks)]
    assert 2 <= max(together) <= 20 and len(looks) >= 10


def test_who_gave_up_waiting_costs_nobody_a_turn() -> None:
    async def scenario() -> int:
        own, answered = Turns(), 0

        async def request() -> None:
            nonlocal answered
            await own.mine()
            answered += 1

        tasks = [asyncio.create_task(request()) for _ in range(50)]
        await asyncio.sleep(0)
        for task in tasks[10:30]:
            task.cancel()
        await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), 5)
        await own.mine()
        return answered

    assert asyncio.run(scenario()) == 30


# --- the log ---------------------------------------------------------------------------------------------------------


def test_a_flood_gets_a_few_lines_and_their_number(caplog: pytest.LogCaptureFixture) -> None:
    few = Few(logging.getLogger("flood"), 429, lines=3)
    with caplog.at_level(logging.INFO, "flood"):
        assert [few.may() for _ in range(10)] == [True] * 3 + [False] * 7
        few.tell()
        few.tell()
    assert [record.fields for record in caplog.records] == [{"status": 429, "refused": 7}]  # type: ignore[attr-defined]


def test_a_flood_of_any_kind_gets_a_few_lines(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate, _ = gated(Settings(token="t"))

    async def scenario() -> None:
        for path, headers in (("/x", {}), ("/x", {"authorization": "Bearer t"})) * 50:
            assert (await asked(gate, path, **headers))[0] in (401, 404)
        for _ in range(50):
            gate.broken(RequestError(431, "head_too_large", "it is long"), [])

    monkeypatch.setattr(logging.getLogger(LOGGER), "propagate", True)
    with caplog.at_level(logging.INFO, LOGGER):
        asyncio.run(scenario())
    lines = Counter(record.fields["status"] for record in caplog.records)  # type: ignore[attr-defined]
    assert set(lines) == {401, 404, 431} and max(lines.values()) <= 30


# --- against a real server -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def narrow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A server that answers two requests at a time."""
    tmp = tmp_path_factory.mktemp("narrow")
    store = stores.write_colours(tmp / "store")
    stores.write_variant(store, stores.write_model(store, "slow", top1=50), stores.slow_network(32, 32, 3), top1=50)
    settings = {"MODELKILN_STORE": str(store), "MODELKILN_MAX_INFLIGHT": "2", "MODELKILN_COMPUTE_TIMEOUT_S": "1"}
    settings["MODELKILN_INLINE_MS"] = "0.001"  # the slow model is computed in a thread
    with processes.serving(tmp, settings=settings) as running:
        yield running


def _exchange(connection: socket.socket, data: bytes) -> tuple[int, dict[str, str], bytes]:
    connection.sendall(data)
    received = b""
    while b"\r\n\r\n" not in received:
        received += connection.recv(65536)
    head, _, body = received.partition(b"\r\n\r\n")
    status, *lines = head.decode().split("\r\n")
    headers = dict(line.lower().split(": ", 1) for line in lines)
    while len(body) < int(headers["content-length"]):
        body += connection.recv(65536)
    return int(status.split()[1]), headers, body


def _counted(running: Running, status: str) -> int:
    """Answers of a status so far, by the metrics."""
    found = re.findall(rf'modelkiln_requests_total{{code="{status}"[^}}]*}} ([\d.]+)', processes.metrics(running.url))
    return int(sum(map(float, found)))


def _slowly(url: str) -> int:
    """Takes a place for as long as an answer may take; asks again where somebody else has it for a moment."""
    with httpx.Client(base_url=url, timeout=20, verify=TRUST) as client:
        while (status := client.post("/predict?model=slow", content=plain((80, 80, 80))).status_code) == 429:
            time.sleep(0.01)
    return status


def _until_full(connection: socket.socket, ask: bytes) -> None:
    """Asks until all places are taken; one refusal does not say that: a place is lent while a body is on its way."""
    refused, deadline = 0, time.monotonic() + 30
    while refused < 5:
        assert time.monotonic() < deadline, "there was always room"
        refused = refused + 1 if _exchange(connection, ask)[0] == 429 else 0
        time.sleep(0.01)


def test_21_what_is_too_much_is_refused_and_the_connection_serves_on(narrow: Running) -> None:
    """Before the load, within it and after it, on one connection, whole requests and ones in pieces."""
    host, port = narrow.url.removeprefix("http://").split(":")
    image = plain((255, 0, 0))
    ask = b"POST /predict?model=colours HTTP/1.1\r\nhost: a\r\ncontent-length: %d\r\n\r\n" % len(image) + image

    with socket.create_connection((host, int(port)), timeout=10) as connection, ThreadPoolExecutor(2) as pool:
        assert _exchange(connection, ask)[0] == 200
        busy = [pool.submit(_slowly, narrow.url) for _ in range(2)]
        _until_full(connection, ask)
        for _ in range(5):
            status, headers, body = _exchange(connection, ask)
            assert (status, headers["retry-after"], json.loads(body)["code"]) == (429, "1", "overloaded")
        connection.sendall(ask[:40])  # goes the usual way, in pieces, and is refused there
        time.sleep(0.05)
        assert _exchange(connection, ask[40:])[0] == 429
        assert httpx.get(f"{narrow.url}/readyz").status_code == 200
        assert sorted(job.result() for job in busy) == [504, 504]
        assert _exchange(connection, ask)[0] == 200
    text = httpx.get(f"{narrow.url}/metrics").text
    assert 'modelkiln_requests_total{code="429",pid' in text or 'code="429",route="other"' in text


def test_as_many_clients_as_are_admitted_are_never_refused(tmp_path: Path) -> None:
    """Two clients that ask again the moment they are answered, where two are admitted."""
    store = stores.write_colours(tmp_path / "store")
    settings = {"MODELKILN_STORE": str(store), "MODELKILN_MAX_INFLIGHT": "2"}
    with processes.serving(tmp_path, settings=settings) as running:
        content = wire.request("/predict?model=colours", plain((255, 0, 0)))
        seen = asyncio.run(wire.closed(int(running.url.rpartition(":")[2]), [content], 2, 2.0))
    assert set(seen.statuses) == {200} and not seen.lost


def test_a_flood_of_refusals_writes_few_lines(narrow: Running, tmp_path: Path) -> None:
    host, port = narrow.url.removeprefix("http://").split(":")
    ask = b"GET /models HTTP/1.1\r\nhost: a\r\nx-request-id: flood\r\n\r\n"
    nameless = ask.replace(b"x-request-id: flood\r\n", b"")
    before = _counted(narrow, "429")

    with socket.create_connection((host, int(port)), timeout=10) as connection, ThreadPoolExecutor(2) as pool:
        busy = [pool.submit(_slowly, narrow.url) for _ in range(2)]
        _until_full(connection, ask)
        asked_at = len(narrow.log.read_text())
        refused = sum(_exchange(connection, one)[0] == 429 for one in [ask, nameless] * 200)
        assert [job.result() for job in busy] == [504, 504]
    assert refused == 400
    assert _counted(narrow, "429") - before >= 400
    time.sleep(1.2)
    lines = [json.loads(line) for line in narrow.log.read_text()[asked_at:].splitlines() if line.startswith("{")]
    written = sum(line.get("request_id") == "flood" for line in lines)
    assert 0 < written < 100
    assert written + sum(line.get("refused", 0) for line in lines if line.get("status") == 429) >= 400
