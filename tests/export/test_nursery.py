"""Workers that are forks of one process: what they are born with, how they end, and what happens when that one does."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from catalog import ROOT
from export import nursery, process
from export.nursery import Nursery, Worker
from export.worker import Convert

pytestmark = pytest.mark.skipif(not nursery.SUPPORTED, reason="workers are forked on Linux only")
TOLD = "tests.export.told_worker"


@pytest.fixture(autouse=True)
def keras(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """One that is imported at once; the other tests of exports have the real one."""
    path = tmp_path / "stubs" / "keras.py"
    path.parent.mkdir()
    path.touch()
    monkeypatch.setenv("PYTHONPATH", str(path.parent))
    monkeypatch.setattr(process, "_nurseries", [])
    return path


@pytest.fixture
def server(keras: Path) -> Iterator[Nursery]:
    server = Nursery({**os.environ, "TOLD": "here"})
    yield server
    server.close()


def begun(server: Nursery, log: Path, line: str) -> Worker:
    with log.open("wb") as output:
        worker = Worker(server, TOLD, output)
    worker.stdin.write(f"{line}\n".encode())
    worker.stdin.flush()
    return worker


def said(log: Path) -> str:
    deadline = time.monotonic() + 30
    while not (text := log.read_text()).count("\n"):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return text


def test_every_worker_is_a_process_of_its_own_that_has_keras(server: Nursery, tmp_path: Path) -> None:
    told = []
    for place in range(3):
        log = tmp_path / str(place)
        worker = begun(server, log, "exit 0")
        assert worker.wait(30) == 0 and worker.wait() == 0
        worker.stdin.close()
        pid, parent, session, *rest = said(log).split()
        assert int(pid) == worker.pid == int(session) and rest == ["True", "here"]
        told.append((pid, parent))
    assert len({pid for pid, _ in told}) == 3 and len({parent for _, parent in told}) == 1


@pytest.mark.parametrize(
    ("line", "status"), [("exit 3", 3), (f"signal {signal.SIGSEGV}", -signal.SIGSEGV), ("raise enough", 1)]
)
def test_how_a_worker_ended_is_told(server: Nursery, tmp_path: Path, line: str, status: int) -> None:
    worker = begun(server, tmp_path / "log", line)
    assert worker.wait(30) == status
    worker.stdin.close()
    assert ("ValueError: enough" in said(tmp_path / "log")) == line.startswith("raise")


def test_a_worker_that_goes_on_is_waited_for_and_ended(server: Nursery, tmp_path: Path) -> None:
    worker = begun(server, tmp_path / "log", "sleep")
    with pytest.raises(subprocess.TimeoutExpired):
        worker.wait(0.05)
    worker.send_signal(signal.SIGTERM)
    assert worker.wait(30) == -signal.SIGTERM
    worker.send_signal(signal.SIGTERM)  # there is none any more
    worker.stdin.close()


def test_an_export_goes_on_when_the_server_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "WORKER", "tests.export.misbehaving_worker")
    request = Convert("model.keras", str(tmp_path), str(tmp_path), "keras", "fp32", 1)
    assert process.ask(request, timeout=0.3).error == "took longer than 0.3 s"
    (first,) = process._nurseries
    watched = list[psutil.Process]()

    def kill() -> None:
        watched.extend(psutil.Process(first._process.pid).children() if not watched else [])
        first._process.kill()

    error = process.ask(request, timeout=20, watch=kill).error
    assert error == "the converter's process ended with status 1 and no reply"
    _, alive = psutil.wait_procs(watched, timeout=10)
    assert len(watched) == 1 and not alive  # the worker went with it
    assert process.ask(request, timeout=0.3).error == "took longer than 0.3 s"
    (second,) = process._nurseries
    assert second is not first and second.alive and not first.alive


def test_where_no_server_starts_a_worker_starts_by_itself(
    keras: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process, "WORKER", "tests.export.misbehaving_worker")
    keras.write_text("import os; os.abort()\n")
    request = Convert("model.keras", str(tmp_path), str(tmp_path), "litert", "fp32", 1)
    error = process.ask(request, timeout=60).error
    assert "SIGSEGV" in error and "about to fall over" in error


def test_nothing_is_left_of_an_export_that_is_killed(tmp_path: Path) -> None:
    code = (
        "from export import process; from export.worker import Convert\n"
        f"process.WORKER = {TOLD!r}\n"
        f"process.ask(Convert('model.keras', {str(tmp_path)!r}, {str(tmp_path)!r}, 'keras', 'fp32', 1), 600)\n"
    )
    asker = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT)
    deadline = time.monotonic() + 60
    while len(family := psutil.Process(asker.pid).children(recursive=True)) < 2:  # the server and its worker
        assert time.monotonic() < deadline and asker.poll() is None
        time.sleep(0.05)
    time.sleep(0.5)  # time for the worker to be asked
    asker.kill()
    asker.wait()
    _, alive = psutil.wait_procs(family, timeout=20)
    assert not alive
