"""The life of workers: a death, a crash loop, and ends under load (faults 27 to 31, 34)."""

from __future__ import annotations

import json
import os
import signal
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import numpy as np
import psutil
import pytest

from benchmarks.load import served
from serving.operations import supervisor
from tests.serving import processes, stores
from tests.serving.pictures import plain
from tests.serving.processes import Running

TRUST = httpx.create_ssl_context()  # a client would make its own, which takes longer than what is measured


@pytest.fixture(scope="module")
def slow_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`colours` answers by default; `slow` takes as long as its image is bright."""
    store = tmp_path_factory.mktemp("slow-store")
    stores.write_variant(store, stores.write_model(store, "colours", top1=95), stores.network(32, 32, 10 * np.eye(3)))
    stores.write_variant(store, stores.write_model(store, "slow", top1=50), stores.slow_network(32, 32, 3))
    return store


@pytest.fixture(scope="module")
def two(slow_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A server of two workers, of which a test may cost one."""
    settings = {"MODELKILN_STORE": str(slow_store), "MODELKILN_WORKERS": "2", "MODELKILN_COMPUTE_TIMEOUT_S": "1"}
    settings |= {"MODELKILN_KEEP_ALIVE_S": "3"}
    with processes.serving(tmp_path_factory.mktemp("two"), settings=settings) as running:
        wait_for(lambda: len(events(running, "is ready")) == 2, 60)
        yield running


def events(running: Running, word: str) -> list[dict[str, object]]:
    lines = [json.loads(line) for line in running.log.read_text().splitlines() if line.startswith("{")]
    return [line for line in lines if word in str(line["message"])]


def workers(running: Running) -> list[int]:
    return served.living_children(running.process.pid)


def wait_for(what, within_s: float) -> float:
    begun = time.monotonic()
    while not what():
        assert time.monotonic() - begun < within_s, "waited in vain"
        time.sleep(0.02)
    return time.monotonic() - begun


class Load:
    """Clients that ask again and again, each over its own connection, until nobody listens."""

    def __init__(self, url: str, clients: int = 6) -> None:
        self.seen: Counter[str] = Counter()
        self._url, self._stop = url, threading.Event()
        self._threads = [threading.Thread(target=self._ask, daemon=True) for _ in range(clients)]

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(30)
            assert not thread.is_alive(), "a request hangs"

    def _ask(self) -> None:
        with httpx.Client(timeout=20, verify=TRUST) as client:
            while not self._stop.is_set():
                try:
                    self.seen[str(client.post(f"{self._url}/predict", content=plain()).status_code)] += 1
                except httpx.ConnectError:
                    self.seen["refused"] += 1
                    time.sleep(0.05)
                except httpx.HTTPError as error:
                    self.seen[type(error).__name__] += 1


def test_27_and_29_a_worker_is_killed_and_the_end_under_load(slow_store: Path, tmp_path: Path) -> None:
    settings = {"MODELKILN_STORE": str(slow_store), "MODELKILN_WORKERS": "2", "MODELKILN_DRAIN_S": "1"}
    with processes.serving(tmp_path, settings=settings) as running:
        wait_for(lambda: len(events(running, "is ready")) == 2, 60)
        before = workers(running)
        with Load(running.url) as load:
            time.sleep(0.3)
            os.kill(before[0], signal.SIGKILL)
            wait_for(lambda: set(workers(running)) - set(before), 3)  # BentoML alone takes ten seconds to notice
            wait_for(lambda: len(events(running, "is ready")) == 3, 60)
        assert len(workers(running)) == 2 and before[1] in workers(running)
        lost = sum(count for outcome, count in load.seen.items() if outcome != "200")
        assert lost <= 6 and load.seen["200"] > 50, load.seen  # what the dead worker held, and no more
        assert events(running, f"worker {before[0]} died")

        readiness: list[int] = []
        with Load(running.url) as load, httpx.Client(base_url=running.url, timeout=5) as probe:
            probe.get("/readyz")
            time.sleep(0.3)
            running.process.send_signal(signal.SIGTERM)
            while 503 not in readiness:
                readiness.append(probe.get("/readyz").status_code)
            assert running.process.wait(15) == 0
        assert set(load.seen) <= {"200", "refused"}, load.seen  # every request that was taken was answered
    assert "Traceback" not in running.log.read_text()


def test_29_the_end_is_not_forgotten_while_a_worker_is_replaced(slow_store: Path, tmp_path: Path) -> None:
    settings = {"MODELKILN_STORE": str(slow_store), "MODELKILN_WORKERS": "2"}
    with processes.serving(tmp_path, settings=settings) as running:
        wait_for(lambda: len(events(running, "is ready")) == 2, 60)
        first, second = workers(running)
        os.kill(first, signal.SIGKILL)
        wait_for(lambda: events(running, f"worker {first} died"), 3)
        running.process.send_signal(signal.SIGTERM)  # circus is at it just now, and would refuse
        assert running.process.wait(15) == 0
        assert not psutil.pid_exists(second)


class Busy:
    """A circus that refuses to end while a command of its own runs, on a loop without time."""

    def __init__(self, refusals: float) -> None:
        self.refusals, self.arbiter, self.loop = refusals, self, self
        self.later = list[Callable[[], None]]()
        self._stopping, self._exclusive_running_command = False, "manage_watchers"

    def dispatch(self, job: tuple[None, bytes]) -> None:
        self.refusals -= 1
        if self.refusals < 0 or self._exclusive_running_command is None:
            self._stopping = b'"quit"' in job[1]

    def add_callback_from_signal(self, callback: Callable[[], None]) -> None:
        self.later.append(callback)

    def call_later(self, _: float, callback: Callable[[], None]) -> None:
        self.later.append(callback)


@pytest.mark.parametrize(("refusals", "patience_s"), [(0, 60.0), (3, 60.0), (float("inf"), 0.05)])
def test_29_circus_is_told_to_end_until_it_does(
    monkeypatch: pytest.MonkeyPatch, refusals: float, patience_s: float
) -> None:
    monkeypatch.setattr(supervisor, "_PATIENCE_S", patience_s)
    busy = Busy(refusals)
    asked = supervisor.Asked(busy, lambda *_: busy.dispatch((None, b'{"command": "quit"}')))
    asked(signal.SIGTERM, None)
    deadline = time.monotonic() + 10
    while busy.later:
        assert time.monotonic() < deadline
        busy.later.pop(0)()
    assert busy._stopping


def test_workers_end_when_their_parent_is_killed(slow_store: Path, tmp_path: Path) -> None:
    settings = {"MODELKILN_STORE": str(slow_store), "MODELKILN_WORKERS": "2"}
    with processes.serving(tmp_path, settings=settings) as running:
        wait_for(lambda: len(events(running, "is ready")) == 2, 60)
        left = workers(running)
        with ThreadPoolExecutor(1) as pool:
            held = pool.submit(
                httpx.post, f"{running.url}/predict?model=slow", content=plain((150,) * 3), timeout=20, verify=TRUST
            )
            time.sleep(0.2)
            running.process.kill()
            running.process.wait()
            assert held.result().status_code == 200
        wait_for(lambda: not any(map(psutil.pid_exists, left)), 10)
        assert len(events(running, "parent process is gone")) == 2
        with pytest.raises(httpx.ConnectError):
            httpx.get(f"{running.url}/livez")


def test_an_idle_connection_is_kept_as_long_as_the_setting_says(two: Running) -> None:
    address = httpx.URL(two.url)
    with socket.create_connection((address.host, address.port or 80), timeout=4) as connection:  # BentoML's is 5 s
        connection.sendall(b"GET /livez HTTP/1.1\r\nhost: x\r\n\r\n")
        assert connection.recv(1 << 16).startswith(b"HTTP/1.1 200")
        while connection.recv(1 << 16):  # a timeout where it stays open
            pass


def test_23_what_hangs_on_the_event_loop_costs_its_worker_and_nobody_elses_requests(two: Running) -> None:
    before = workers(two)
    with ThreadPoolExecutor(1) as pool:  # alone, and quick when it was warmed: it is computed on the event loop
        hung = pool.submit(_ask_slow, two.url)
        time.sleep(0.3)
        served = 0
        while not hung.done():
            served += httpx.post(f"{two.url}/predict", content=plain(), timeout=20, verify=TRUST).status_code == 200
    assert hung.result() == "RemoteProtocolError" and served > 0
    wait_for(lambda: len(workers(two)) == 2 and workers(two) != before, 10)
    assert len(set(workers(two)) & set(before)) == 1
    wait_for(lambda: len(events(two, "is ready")) == 3, 60)
    assert events(two, "an inference on the event loop takes longer than 1 s")


def test_29_the_end_of_one_worker_loses_no_request_and_leaves_the_port_open(two: Running) -> None:
    before, born = workers(two), len(events(two, "is ready"))
    with Load(two.url) as load:
        wait_for(lambda: load.seen["200"] > 50, 20)
        os.kill(before[0], signal.SIGTERM)
        wait_for(lambda: before[0] not in workers(two), 20)
        assert httpx.get(f"{two.url}/livez", verify=TRUST).status_code == 200  # over a connection of its own
        wait_for(lambda: len(events(two, "is ready")) == born + 1, 60)
    assert set(load.seen) == {"200"}, load.seen
    assert before[1] in workers(two) and len(workers(two)) == 2
    assert "Traceback" not in two.log.read_text()


@pytest.mark.slow  # the server's start is all it costs, but there are many of those
def test_30_the_end_with_an_inference_that_hangs(slow_store: Path, tmp_path: Path) -> None:
    settings = {"MODELKILN_STORE": str(slow_store), "MODELKILN_GRACE_S": "2", "MODELKILN_DRAIN_S": "0.2"}
    with processes.serving(tmp_path, settings=settings) as running:
        asking = threading.Thread(target=_ask_slow, args=(running.url,), daemon=True)
        asking.start()
        time.sleep(1)
        begun = time.monotonic()
        running.process.send_signal(signal.SIGTERM)
        assert running.process.wait(15) == 0
        assert time.monotonic() - begun < 6
        assert events(running, "still running 2 s after SIGTERM")
        asking.join(5)
        assert not asking.is_alive()


def _ask_slow(url: str) -> str:
    """Asks for what takes half a minute; what came of it."""
    try:
        white = plain((255, 255, 255))
        return str(httpx.post(f"{url}/predict?model=slow", content=white, timeout=30, verify=TRUST).status_code)
    except httpx.HTTPError as error:
        return type(error).__name__


@pytest.mark.parametrize("container", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_28_and_31_a_crash_loop_ends(slow_store: Path, tmp_path: Path, container: bool) -> None:
    settings = {"MODELKILN_STORE": str(slow_store), "MODELKILN_RESTARTS": "1"}
    if container:
        settings["BENTOML_CONTAINERIZED"] = "true"
    with processes.serving(tmp_path, settings=settings) as running:
        (first,) = workers(running)
        os.kill(first, signal.SIGKILL)
        assert httpx.get(f"{running.url}/models", timeout=20).status_code == 200  # it waits for the new worker
        assert workers(running) != [first]
        os.kill(workers(running)[0], signal.SIGKILL)
        assert running.process.wait(15) == 1
        assert events(running, "the service gives up")
        with pytest.raises(httpx.ConnectError):
            httpx.get(running.url)
