"""The load generator against servers of known slowness, and rows that cannot be measured."""

from __future__ import annotations

import asyncio
import dataclasses
import functools
import json
import os
import subprocess
import sys
import time
from array import array
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import psutil
import pytest

from benchmarks.load import held, page, rows, served, wire
from benchmarks.load.plan import Plan, Row
from benchmarks.load.rows import overload, process
from catalog import KilnError, Store
from serving.models import repository
from serving.settings import Settings
from tests.serving import stores

TAKES_S = 0.02
CONTENT = wire.request("/", b"")


async def slow(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """A server whose connections take `TAKES_S` for each request."""
    with suppress(asyncio.IncompleteReadError, ConnectionError):
        while await reader.readuntil(b"\r\n\r\n"):
            await asyncio.sleep(TAKES_S)
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")
    writer.close()


def under(loaded: Callable[[int], Awaitable[wire.Seen]]) -> wire.Seen:
    """What a load on the slow server comes to, given its port."""

    async def whole() -> wire.Seen:
        server = await asyncio.start_server(slow, "127.0.0.1", 0)
        async with server:
            seen = await loaded(server.sockets[0].getsockname()[1])
            await asyncio.sleep(2 * TAKES_S)  # its connections end too
        return seen

    return asyncio.run(whole())


def overloaded(patience_s: float) -> wire.Seen:
    """Five times what two connections can do, for a quarter of a second."""
    return under(lambda port: wire.open_loop(port, [CONTENT], 10 / TAKES_S, 2, 0.25, patience_s=patience_s))


def test_requests_that_wait_for_a_connection_are_not_forgotten() -> None:
    seen = overloaded(patience_s=10)
    assert seen.offered == len(seen.good) > 80 and not seen.lost  # 25 of them in time
    assert seen.ms(99) > 500  # the last one due was answered last
    assert seen.rate <= 1.2 * 2 / TAKES_S and seen.after > len(seen.good) / 2  # what came afterwards is no goodput


def test_requests_that_are_not_answered_in_the_end_are_lost() -> None:
    seen = overloaded(patience_s=0.1)
    assert seen.lost > 20 and seen.offered == len(seen.good) + seen.lost


def test_a_closed_load_offers_what_it_sends() -> None:
    seen = under(lambda port: wire.closed(port, [CONTENT], 2, 0.2))
    assert seen.offered == len(seen.good) > 2 and not seen.lost and not seen.after


def test_no_answer_of_an_open_loop_is_quicker_than_the_server() -> None:
    """Timers are of whole milliseconds: what goes out before it is due does not gain by it."""
    seen = under(lambda port: wire.open_loop(port, [CONTENT], 2000, 128, 0.3))
    assert len(seen.good) > 400 and min(seen.good) >= 0.99 * TAKES_S


def test_an_open_loop_that_is_late_ends_early() -> None:
    """Ten of the thousand requests may take longer than the limit, which all do."""
    seen = under(lambda port: wire.open_loop(port, [CONTENT], 200, 64, 5.0, limit_s=TAKES_S / 2))
    assert seen.late > 10 and seen.seconds < 2 and len(seen.good) == seen.offered < 300
    whole = under(lambda port: wire.open_loop(port, [CONTENT], 200, 64, 0.3, limit_s=50 * TAKES_S))
    assert not whole.late and whole.seconds >= 0.3


def test_one_connection_asks_one_by_one() -> None:
    answers: list[tuple[wire.Seen, list[bytes]]] = []

    async def loaded(port: int) -> wire.Seen:
        answers.append(await wire.one_by_one(port, CONTENT, 5, 10.0))
        answers.append(await wire.one_by_one(port, CONTENT, 1000, 5 * TAKES_S))
        return answers[0][0]

    under(loaded)
    (whole, bodies), (short, _) = answers
    assert len(whole.good) == whole.offered == 5 and bodies == [b""] * 5 and min(whole.good) >= 0.99 * TAKES_S
    assert 3 <= len(short.good) <= 6 and not whole.lost and not short.lost


def test_a_connection_that_ends_is_no_answer() -> None:
    async def loaded() -> tuple[wire.Seen, list[bytes]]:
        server = await asyncio.start_server(lambda _, writer: writer.close(), "127.0.0.1", 0)
        async with server:
            return await wire.one_by_one(server.sockets[0].getsockname()[1], CONTENT, 5, 10.0)

    seen, bodies = asyncio.run(loaded())
    assert seen.lost == 1 and not seen.good and not bodies


@pytest.mark.parametrize("error", [KilnError("no zoo"), psutil.NoSuchProcess(7), ConnectionRefusedError("refused")])
def test_a_row_that_cannot_be_measured_says_why(
    error: Exception, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def fails(plan: Plan) -> Row:
        raise error

    plan = Plan(Store(tmp_path), 1.0, 1, 1, "lenet", "simcnn")
    kept = Row("kept", 1.0, "", "", True, {})
    monkeypatch.setattr(rows, "ROWS", {"memory": fails, "kept": lambda plan: kept})
    row, other = rows.measure(plan, ["memory", "kept"])
    assert row.met is None and row.detail["reason"] == str(error) and other == kept


def test_what_was_refused_or_lost_is_no_load_held() -> None:
    class Server:
        name = "modelkiln"

    seen = wire.Seen(1.0, statuses=Counter({200: 9}))
    assert held.answered(Server(), seen) is seen  # type: ignore[arg-type]
    for wrong in (wire.Seen(statuses=Counter({200: 9, 429: 1})), wire.Seen(lost=1, statuses=Counter({200: 9}))):
        with pytest.raises(KilnError, match=r"modelkiln answered .*200.* and lost [01] requests"):
            held.answered(Server(), wrong)  # type: ignore[arg-type]
    assert overload.broken(Counter({200: 5, 429: 4, 500: 3, 502: 2, 503: 9})) == 5


class Server:
    """One that has used a tenth of a second more whenever it is looked at."""

    name, port, used = "modelkiln", 0, 0.0

    def cpu_s(self) -> float:
        self.used += 0.1
        return self.used


def test_the_processor_time_of_both_sides_is_noted() -> None:
    async def busy() -> wire.Seen:
        sum(range(2_000_000))
        return wire.Seen(1.0)

    seen = held.cost(Server(), busy())  # type: ignore[arg-type]
    assert seen.cpu_s == pytest.approx(0.1) and 0.005 < seen.own_s < 5


def _seen(good: int, refused: int = 0, cpu_s: float = 0.0) -> wire.Seen:
    return wire.Seen(1.0, array("d", [0.01] * good), array("d", [0.001] * refused), offered=good + refused, cpu_s=cpu_s)


def test_goodput_is_of_the_most_that_the_open_loop_came_to() -> None:
    near = {0.8: _seen(80), 1.0: _seen(100), 1.2: _seen(90, 30)}
    told = overload._overloaded(_seen(120, cpu_s=0.12), near, _seen(95, 200, cpu_s=0.105))
    assert told["peak_per_s"] == 100 and told["goodput"] == 0.95 and told["p99_ratio"] == 1
    assert told["cpu_us_per_answer"] == pytest.approx(1000) and told["cpu_us_per_refusal"] == pytest.approx(50)
    assert [one["offered_per_s"] for one in told["near_capacity"]] == [80, 100, 120]


def test_a_row_of_an_overload_is_made_of_its_rounds(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked: list[float] = []

    def offer(server: object, contents: list[bytes], rate: float, connections: int, seconds: float) -> wire.Seen:
        asked.append(rate)
        return _seen(round(min(rate, 100)), round(max(0, rate - 100)))

    monkeypatch.setattr(Plan, "service", lambda plan: nullcontext(Server()))
    monkeypatch.setattr(overload, "hold", lambda *_: _seen(100, cpu_s=0.1))
    monkeypatch.setattr(overload, "offer", offer)
    monkeypatch.setattr(time, "sleep", lambda _: None)
    rows = overload.overload(Plan(Store(tmp_path), 1.0, 2, 1, "lenet", "simcnn"))
    assert asked == pytest.approx([80, 90, 100, 110, 120, 300] * 2)
    assert [row.met for row in rows] == [True] * 4 and rows[1].value == 1


def test_a_start_is_one_with_four_models(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    started: list[tuple[list[str], dict[str, str]]] = []

    @contextmanager
    def service(plan: Plan, **settings: str) -> Iterator[Any]:
        served = repository.load(Settings(store=plan.store.root, zoo=Path(settings["zoo"])))
        started.append((list(served.models), settings))
        yield SimpleNamespace(ready_s=2.0)

    for name in ("a", "b", "c"):
        card = stores.write_model(tmp_path, name)
        stores.write_variant(tmp_path, card, stores.network(32, 32, np.eye(3)))
    plan = Plan(Store(tmp_path), 1.0, 2, 1, "a", "a")
    monkeypatch.setattr(Plan, "service", service)
    monkeypatch.setattr(Plan, "file", lambda plan, model: tmp_path)
    monkeypatch.setattr(served, "bentoml", lambda *_, **__: nullcontext(SimpleNamespace(ready_s=1.0)))
    row = process.start(plan)
    assert row.met and row.value == 2.0 and row.detail["plain_bentoml_s"] == 1.0
    assert [models for models, _ in started] == [["a", "a-3", "b", "c"]] * 2
    assert not Path(started[0][1]["zoo"]).exists()  # nor is there anything else


def _run(*rows: Row) -> dict[str, Any]:
    machine = {"cpu": "a processor", "logical_cores": 2}
    plan = {"seconds": 5.0, "rounds": 3}
    told = {"created": "2026-01-01T00:00:00Z", "commit": "0123456789ab", "plan": plan, "machine": machine}
    return {**told, "load_before": [0.25, 0, 0], "rows": [dataclasses.asdict(row) for row in rows]}


def test_a_page_tells_the_last_of_each_row_and_what_was_missed(tmp_path: Path) -> None:
    first = _run(Row("start", 3.0, "s", "<= 4", True, {}), Row("tail", 1.5, "x", "<= 2", True, {}))
    second = _run(Row("tail", 2.5, "x", "<= 2", False, {}, "5 and 2 ms"))
    lines = page.page([first, second]).splitlines()
    assert "| start | ≤ 4 | 3 s | met |  | 1 |" in lines
    assert "| tail | ≤ 2 | 2.5 x | **MISSED** | 5 and 2 ms | 2 |" in lines
    assert [line for line in lines if line.startswith("| tail")] == [lines[-6]]
    assert lines[-2].startswith("1. 2026-01-01") or lines[-1].startswith("2. 2026-01-01")


def test_a_report_of_another_version_is_named(tmp_path: Path) -> None:
    file = tmp_path / "load.json"
    for content in ("{}", "no JSON", json.dumps({**_run(), "rows": [{"title": "start"}]})):
        file.write_text(content)
        with pytest.raises(KilnError, match=r"load\.json .* run: make load"):
            page.write([file])


def test_a_worker_that_ends_while_it_is_asked_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    waits = functools.partial(subprocess.Popen, [sys.executable, "-c", "input()"], stdin=subprocess.PIPE, text=True)
    with waits() as ends, waits() as lives:
        listed = [psutil.Process(ends.pid), psutil.Process(lives.pid)]
        ends.communicate("\n")
        monkeypatch.setattr(psutil.Process, "children", lambda self: listed)
        assert served.living_children(os.getpid()) == [lives.pid]
        lives.communicate("\n")
