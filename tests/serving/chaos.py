"""`make chaos`: every fault of the service made to happen against real servers, and docs/faults.md written from it.

python -m tests.serving.chaos                  all of them, then 10,000 cases of schemathesis
python -m tests.serving.chaos --only 21,27     some, without touching the document
"""

from __future__ import annotations

import contextlib
import functools
import os
import re
import signal
import socket
import statistics
import subprocess
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import httpx
import psutil
import typer

import catalog
import console
from catalog import ROOT, Store
from tests.serving import faults, processes, stores, test_openapi
from tests.serving.pictures import RED, plain
from tests.serving.processes import Running
from tests.serving.test_drain import TRUST, Load, _ask_slow, events, wait_for, workers

DOCUMENT = ROOT / "docs" / "faults.md"
CASES = 10_000
MAX_GROWN_MB = 10.0  # of a worker that is fuzzed, between the first round and the last
Seen = str


@dataclass(frozen=True)
class Place:
    """Where a fault is made: an empty folder, and a store with `colours`, `wide`, `brittle` and `slow`."""

    tmp: Path
    store: Path

    def serving(self, **settings: str) -> Any:
        """A server with these settings (`workers="2"`)."""
        told = {f"MODELKILN_{name.upper()}": value for name, value in settings.items()}
        return processes.serving(self.tmp, settings={"MODELKILN_STORE": str(self.store), **told})


def grey(level: int) -> bytes:
    """An image that the model `slow` takes an eighth of a second a level for."""
    return plain((level,) * 3)


def post(url: str, body: bytes, query: str = "", **headers: str) -> tuple[int, str, float, str]:
    """Status, word, seconds and Retry-After of a prediction."""
    with httpx.Client(base_url=url, timeout=60, verify=TRUST, headers=headers) as client:
        client.get("/livez")
        begun = time.monotonic()
        answer = client.post(f"/predict{query}", content=body)
        taken = time.monotonic() - begun
    return answer.status_code, answer.json().get("code", ""), taken, answer.headers.get("retry-after", "")


def together(count: int, work: Callable[[], Any]) -> list[Any]:
    """The results of so many threads doing the same at once."""
    with ThreadPoolExecutor(count) as pool:
        return [future.result() for future in [pool.submit(work) for _ in range(count)]]


def p99(url: str, path: str, count: int = 200) -> float:
    """Milliseconds of the slowest hundredth of requests, one after another."""
    with httpx.Client(base_url=url, timeout=20, verify=TRUST) as client:
        times = []
        for _ in range(count):
            begun = time.perf_counter()
            client.get(path).raise_for_status()
            times.append(1000 * (time.perf_counter() - begun))
    return sorted(times)[int(0.99 * count)]


# --- what needs a server of its own ----------------------------------------------------------------------------------


def token(place: Place) -> Seen:
    with place.serving(token="secret") as running:
        missing, wrong = post(running.url, plain()), post(running.url, plain(), authorization="Bearer guess")
        right = post(running.url, plain(), authorization="Bearer secret")
    assert (missing[0], wrong[0], right[0]) == (401, 401, 200)
    return f"missing 401 `{missing[1]}`, wrong 401 `{wrong[1]}`, right 200"


def admission(place: Place) -> Seen:
    with place.serving(max_inflight="4") as running:
        post(running.url, grey(4), "?model=slow")  # it learns that this model is slow
        seen = together(24, lambda: post(running.url, grey(4), "?model=slow"))
    refused = [one for one in seen if one[0] == 429]
    assert len(refused) >= 8 and {one[0] for one in seen} == {200, 429} and all(one[3] for one in refused)
    fastest, slowest = (1000 * of(one[2] for one in refused) for of in (min, max))
    assert slowest < 50 * _busy(), slowest
    told = f"{len(refused)} of 24 got 429 `overloaded` with Retry-After, in {fastest:.0f} to {slowest:.0f} ms"
    return told + _over(slowest, 50, "ms")


def deadline(place: Place) -> Seen:
    with place.serving(deadline_s="0.3", batch_images="1") as running:
        seen = together(6, lambda: post(running.url, grey(12), "?model=slow"))
        computed = _computed(running.url)
    late = [one for one in seen if one[:2] == (503, "deadline_passed")]
    assert late and all(one[3] for one in late) and computed == 6 - len(late), seen
    return f"{len(late)} of 6 got 503 `deadline_passed` with Retry-After; {computed} were computed"


def _computed(url: str) -> int:
    """Batches of the model `slow` that a runtime was called for."""
    found = re.search(r'modelkiln_batch_images_count\{model="slow"[^}]*\} (\d+)', processes.metrics(url))
    return int(found[1]) if found else 0


def slow_inference(place: Place) -> Seen:
    with place.serving(compute_timeout_s="1", inline_ms="0.001") as running:  # nothing on the event loop
        hung = together(2, lambda: post(running.url, grey(160), "?model=slow"))
        again = post(running.url, grey(0), "?model=slow")
        other = post(running.url, plain(RED))
    statuses = Counter(f"{one[0]} {one[1]}".strip() for one in hung)
    assert set(statuses) == {"504 inference_timeout"} and (again[0], other[0]) == (200, 200), (hung, again, other)
    seen = f"in the thread {dict(statuses)}; the next request for the same model 200, another model 200"
    return f"{seen}; {_slow_on_the_event_loop(place)}"


def _slow_on_the_event_loop(place: Place) -> Seen:
    with place.serving(compute_timeout_s="1", workers="2") as running, ThreadPoolExecutor(1) as pool:
        wait_for(lambda: len(events(running, "is ready")) == 2, 60)
        begun = time.monotonic()
        hung = pool.submit(_ask_slow, running.url)  # alone, and quick when it was warmed
        time.sleep(0.3)
        served = 0
        while not hung.done():
            served += post(running.url, plain(RED))[0] == 200
        ended = time.monotonic() - begun
        wait_for(lambda: len(events(running, "is ready")) == 3, 60)
        assert hung.result() == "RemoteProtocolError" and served and events(running, "ends to be replaced")
    return f"on the event loop the worker is replaced after {ended:.1f} s, {served} meanwhile answered by the other"


def health(place: Place) -> Seen:
    with place.serving() as running, Load(running.url, 24) as load:
        time.sleep(0.5)
        taken = p99(running.url, "/livez")
    assert load.seen["200"] > 50 and taken < 100 * _busy(), taken
    return f"/livez 200 under 24 clients, p99 {taken:.0f} ms{_over(taken, 100, 'ms')}"


def recovery(place: Place) -> Seen:
    with place.serving(max_inflight="8") as running:
        before = p99(running.url, "/models")
        with Load(running.url, 48) as load:
            time.sleep(2)
        ended = time.monotonic()
        while (after := p99(running.url, "/models", 50)) > 2 * before + 5:
            assert time.monotonic() - ended < 5
    return f"{dict(load.seen)}; p99 {before:.1f} ms before, {after:.1f} ms {time.monotonic() - ended:.1f} s afterwards"


def leaving(place: Place) -> Seen:
    with place.serving(inline_ms="0.001", batch_images="1", deadline_s="30") as running:  # in the thread, one by one
        post(running.url, grey(0), "?model=slow")
        worker = psutil.Process(workers(running)[0])
        before = (worker.num_fds(), worker.num_threads(), _computed(running.url))
        with ThreadPoolExecutor(1) as pool:
            busy = pool.submit(post, running.url, grey(64), "?model=slow")
            time.sleep(0.3)
            _leave_together(running.url, 60)
            assert not busy.done(), "the request that they left behind was answered before they left"
            assert busy.result()[0] == post(running.url, grey(0), "?model=slow")[0] == 200
        wait_for(lambda: worker.num_fds() <= before[0], 30)
        assert worker.num_threads() <= before[1] + 4 and "Traceback" not in running.log.read_text()
        computed = _computed(running.url) - before[2] - 2  # without the one before and the one behind
    assert computed <= 1, computed  # the thread may have had the next one already
    seen = "60 left while another request was computed, half of them within the body: of the whole ones"
    return f"{seen} {computed} of 30 was computed, no descriptor stays open"


def _leave_together(url: str, count: int) -> None:
    """Clients that have sent a request for `slow`, every other only a part of it, and then leave."""
    address = httpx.URL(url)
    head = f"POST /predict?model=slow HTTP/1.1\r\nhost: x\r\ncontent-length: {len(grey(2))}\r\n\r\n".encode()
    with contextlib.ExitStack() as stack:
        for number in range(count):
            connection = socket.create_connection((address.host, address.port or 80), timeout=5)
            stack.enter_context(connection).sendall(head + (grey(2) if number % 2 else grey(2)[:20]))
        time.sleep(0.3)


def killed(place: Place) -> Seen:
    with place.serving(workers="2") as running, Load(running.url) as load:
        wait_for(lambda: len(events(running, "is ready")) == 2, 60)
        times = [_killed(running, worker) for worker in (3, 4, 5)]
    lost = sum(count for word, count in load.seen.items() if word != "200")
    spawned, ready = (statistics.median(one) for one in zip(*times, strict=True))
    assert lost <= 6 * len(times) and ready < 2 * 3 * _busy(), (load.seen, times)
    asked, late = sum(load.seen.values()), _over(ready, 3, "s")
    figures = f"replaced in {spawned:.2f} s, ready in {ready:.1f} s{late}, the medians of three"
    return f"{lost} requests in flight failed of {asked}; {figures}"


def _killed(running: Running, worker: int) -> tuple[float, float]:
    """Seconds from the end of one until another is there, and until that, number `worker` of all, is ready."""
    victim = workers(running)[0]
    time.sleep(0.5)
    os.kill(victim, signal.SIGKILL)
    spawned = wait_for(lambda: len(workers(running)) == 2 and victim not in workers(running), 30)
    return spawned, spawned + wait_for(lambda: len(events(running, "is ready")) == worker, 60)


def all_dead(place: Place) -> Seen:
    with place.serving() as running:
        os.kill(workers(running)[0], signal.SIGKILL)
        begun = time.monotonic()
        status, taken = post(running.url, plain())[0], time.monotonic() - begun
    assert status == 200 and taken < 10 * _busy(), taken
    return f"a request sent meanwhile was answered by the next worker, 200 after {taken:.1f} s"


def ending(place: Place) -> Seen:
    with place.serving(workers="2", drain_s="1") as running:
        wait_for(lambda: len(events(running, "is ready")) == 2, 60)
        readiness: list[int] = []
        with Load(running.url) as load, httpx.Client(base_url=running.url, timeout=5, verify=TRUST) as probe:
            time.sleep(0.5)
            running.process.send_signal(signal.SIGTERM)
            while 503 not in readiness:
                readiness.append(probe.get("/readyz").status_code)
            status = running.process.wait(30)
    assert set(load.seen) <= {"200", "refused"} and status == 0, load.seen
    return f"/readyz 503 first; {load.seen['200']} answered, 0 lost, later connections refused; exit {status}"


def ending_hung(place: Place) -> Seen:
    with place.serving(grace_s="2", drain_s="0.2") as running:
        asking = threading.Thread(target=_ask_slow, args=(running.url,), daemon=True)
        asking.start()
        time.sleep(1)
        begun = time.monotonic()
        running.process.send_signal(signal.SIGTERM)
        status = running.process.wait(30)
        taken = time.monotonic() - begun
        assert events(running, "still running") and taken < 3 * _busy()
        asking.join(10)
    seen = f"the worker ends at its grace time of 2 s and says why, the service {taken:.1f} s after SIGTERM"
    return f"{seen}{_over(taken, 3, 's')}; exit {status}"


def crash_loop(place: Place) -> Seen:
    with place.serving(restarts="2") as running:
        dead: set[int] = set()
        while running.process.poll() is None:
            for pid in set(workers(running)) - dead:
                os.kill(pid, signal.SIGKILL)
                dead.add(pid)
            time.sleep(0.05)
        status = running.process.wait()
        assert status == 1 and len(dead) == 3 and events(running, "gives up")
    return f"{len(dead)} deaths with restarts=2: exit {status}, one line says why"


def full_disk(place: Place) -> Seen:
    with place.serving() as running:
        worker = psutil.Process(workers(running)[0])
        worker.rlimit(psutil.RLIMIT_FSIZE, (0, worker.rlimit(psutil.RLIMIT_FSIZE)[1]))
        statuses = Counter(post(running.url, plain(), f"?model={name}")[0] for name in ("colours", "wide") * 10)
        lines = running.log.read_text().count("cannot be written")
    assert set(statuses) == {200} and lines <= 1
    seen = f"no file may grow: {statuses[200]} predictions of two models 200, {lines} log lines"
    return f"{seen}; a start where none may: {_refused_start(place, processes.no_file_may_grow)}"


def _refused_start(place: Place, limit: Callable[[], None] | None = None, port: int | None = None) -> str:
    """What a start that ends with status 1 says, in one line and without what differs from machine to machine."""
    command = processes.command(port or processes.free_port())
    environment = processes.environment(place.tmp, MODELKILN_STORE=str(place.store))
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=90, preexec_fn=limit
    )
    (line,) = (done.stdout + done.stderr).strip().splitlines()
    assert done.returncode == 1, line
    return f"exit 1, `{re.sub(r'port [0-9]+', 'port …', line.replace(str(place.tmp), '…'))}`"


def port_in_use(place: Place) -> Seen:
    with socket.create_server(("127.0.0.1", 0)) as holder:
        return _refused_start(place, port=holder.getsockname()[1])


def failed_reload(place: Place) -> Seen:
    with place.serving(watch_s="0.2") as running:
        with Load(running.url) as load:
            time.sleep(0.5)
            stores.write_variant(place.store, Store(place.store).card("colours"), b"junk", top1=95.0)
            wait_for(lambda: events(running, "colours stays as it is"), 30)
            time.sleep(1)
        answer = httpx.post(f"{running.url}/predict", content=plain(RED)).json()
    assert set(load.seen) == {"200"} and answer["predictions"][0]["class"] == "red", load.seen
    seen = f"a model's file and its card's hash were replaced by junk's: {load.seen['200']} answered meanwhile, 0 lost"
    return f"{seen}, the old version stays, one log line says why"


def out_of_memory(place: Place) -> Seen:
    """The worker may have little more address space: what asks for more fails, and once it may again, all is well."""
    large = plain(size=(5000, 5000))
    with place.serving() as running:
        worker = psutil.Process(workers(running)[0])
        before = worker.rlimit(psutil.RLIMIT_AS)
        assert post(running.url, large)[0] == 200  # the threads that decode are there from now on
        worker.rlimit(psutil.RLIMIT_AS, (worker.memory_info().vms + (4 << 20), before[1]))
        statuses = Counter(post(running.url, large)[0] for _ in range(5))
        small = Counter(post(running.url, plain())[0] for _ in range(20))
        worker.rlimit(psutil.RLIMIT_AS, before)
        assert post(running.url, large)[0] == 200 and workers(running) == [worker.pid]
    assert set(statuses) == {500} and set(small) == {200}, (statuses, small)
    seen = "no more address space: 5 images of 25 megapixels 500, 20 small ones 200, and all 200 once there is, by the"
    return f"{seen} same worker; where the kernel kills it: {killed(place)}"


@dataclass(frozen=True)
class Case:
    """A row whose fault has a server of its own."""

    number: int
    case: str
    wanted: str
    make: Callable[[Place], Seen]


CASES_OF_THE_PROCESS = (
    Case(19, "missing or wrong token, where one is configured", "401, constant-time comparison", token),
    Case(21, "more than the admitted concurrency", "429 with `Retry-After`, in < 50 ms", admission),
    Case(22, "waited past its deadline", "503, the work not started", deadline),
    Case(23, "slow inference", "504, and the slot really freed; on the event loop a new worker", slow_inference),
    Case(24, "health during saturation", "200, p99 < 100 ms", health),
    Case(25, "the overload ends", "baseline p99 within 5 s", recovery),
    Case(26, "the client leaves", "its work is dropped, nothing leaks", leaving),
    Case(27, "SIGKILL of a worker under load", "only its in-flight requests fail; a new one within 3 s", killed),
    Case(28, "every worker dead", "a fast refusal or 503, never a hang", all_dead),
    Case(29, "SIGTERM under load", "readiness 503 first, every accepted request answered, exit 0", ending),
    Case(30, "SIGTERM with hung inference", "exit within the grace time", ending_hung),
    Case(31, "crash loop", "gives up after N tries, non-zero exit, says why", crash_loop),
    Case(32, "disk full, no folder to write to", "inference goes on, one log line", full_disk),
    Case(33, "port in use", "exit 1, one line", port_in_use),
    Case(34, "out of memory", "as 27", out_of_memory),
    Case(38, "a reload that fails", "the old version stays, no request dropped", failed_reload),
)


def _busy() -> float:
    """By how much other work on this machine may stretch a limit of time: 1 on an idle one."""
    return max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1))


def _over(seen: float, limit: float, unit: str) -> str:
    """The mark of a figure that misses what was asked for and was let through, as the machine may have been slow."""
    return f" (**over {limit:g} {unit}**)" if seen > limit else ""


def _write_store(folder: Path) -> Path:
    store = stores.write_colours(folder)
    stores.write_variant(store, stores.write_model(store, "slow", top1=50), stores.slow_network(32, 32, 3))
    return store


def _of_requests(only: set[int], rows: dict[int, tuple[str, str, str]]) -> None:
    chosen = [fault for fault in faults.FAULTS if not only or fault.number in only]
    if not chosen:
        return
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        store = _write_store(Path(folder) / "store")
        settings = {"MODELKILN_STORE": str(store), **faults.SETTINGS}
        with processes.serving(Path(folder), settings=settings) as running:
            for fault in chosen:
                rows[fault.number] = (fault.case, fault.wanted, _seen(functools.partial(_words, fault, running)))


def _words(fault: faults.Fault, running: Running) -> Seen:
    return ", ".join(faults.in_words(faults.made(fault, running.url)))


def _of_processes(only: set[int], rows: dict[int, tuple[str, str, str]]) -> None:
    with console.progress() as bar:
        chosen = [case for case in CASES_OF_THE_PROCESS if not only or case.number in only]
        task = bar.add_task("faults", total=len(chosen))
        for case in chosen:
            with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
                place = Place(Path(folder), _write_store(Path(folder) / "store"))
                rows[case.number] = (case.case, case.wanted, _seen(functools.partial(case.make, place)))
            bar.advance(task)


def _seen(make: Callable[[], Seen]) -> Seen:
    try:
        return make()
    except Exception as error:  # a fault that is not met is a row of the table, not the end of it
        return f"**MISSED**: {type(error).__name__} {str(error)[:300]}".replace("\n", " ").replace("|", "/")


def _fuzz(cases: int) -> Seen:
    """Schemathesis until it has made so many cases, and what became of the worker's memory."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        tmp = Path(folder)
        settings = {"MODELKILN_STORE": str(stores.write_colours(tmp / "store")), **faults.SETTINGS}
        with processes.serving(tmp, settings=settings) as running:
            (pid,) = workers(running)
            made, memory = 0, list[float]()
            while made < cases:
                done = test_openapi.fuzz(running.url, 60, tmp, seed=1 + len(memory))
                assert done.returncode == 0, done.stdout[-2000:]
                made += int(re.search(r"([\d,]+) generated", done.stdout)[1].replace(",", ""))  # type: ignore[index]
                memory.append(psutil.Process(pid).memory_info().rss / 1e6)
            assert workers(running) == [pid] and "Traceback" not in running.log.read_text()
    assert memory[-1] < memory[0] + MAX_GROWN_MB, memory
    grown = f"{memory[0]:.0f} MB after the first round and {memory[-1]:.0f} after the last"
    return f"{made:,} cases, no finding, one worker throughout, {grown}"


def document(rows: dict[int, tuple[str, str, str]], fuzzed: Seen) -> str:
    """The table as Markdown."""
    lines = [
        "# Faults, and what was seen",
        "",
        "Written by `make chaos`; do not edit. Every row was made to happen against a real server on loopback. An",
        'error body is always `{"error": "<one sentence>", "code": "<word>"}` and holds no path of the machine; after',
        "each fault the next good request got 200 from the same workers, but where workers are what it kills.",
        "",
        f"{catalog.now()[:10]}, commit {catalog.commit()}; {catalog.processor()[0]}, {os.cpu_count()} cores, load"
        f" average {os.getloadavg()[0]:.1f}. Other work that runs beside",
        "stretches the limits of time; a figure over the limit of an idle machine is marked in **bold**.",
        "",
        "| # | case | asked for | seen |",
        "|--:|---|---|---|",
    ]
    lines += [f"| {number} | {' | '.join(rows[number])} |" for number in sorted(rows)]
    return "\n".join([*lines, "", f"Schemathesis: {fuzzed}.", ""])


def main(
    only: Annotated[str, typer.Option(help="numbers of faults, separated by commas; the document stays")] = "",
    cases: Annotated[int, typer.Option(help="of schemathesis; 0 leaves it out")] = CASES,
) -> None:
    """Makes the faults happen; exits 1 if one was not met as asked."""
    chosen = {int(number) for number in only.split(",") if number.strip()}
    rows: dict[int, tuple[str, str, str]] = {}
    _of_requests(chosen, rows)
    _of_processes(chosen, rows)
    for number in sorted(rows):
        console.out.print(f"{number:>3} {rows[number][0]}: {rows[number][2]}", highlight=False, markup=False)
    fuzzed = "not run"
    if not chosen:
        catalog.write_atomic(DOCUMENT, document(rows, fuzzed))
    if cases and not chosen:
        fuzzed = _seen(lambda: _fuzz(cases))
        console.out.print(f"schemathesis: {fuzzed}", highlight=False, markup=False)
        catalog.write_atomic(DOCUMENT, document(rows, fuzzed))
    if any("MISSED" in row[2] for row in rows.values()) or "MISSED" in fuzzed:
        raise typer.Exit(1)


if __name__ == "__main__":
    application = console.app("Makes faults happen.")
    application.command("run")(main)
    console.run(application)
