"""Servers under load: `bentoml serve` and its peers as processes of their own, on loopback and a free port."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from catalog import ROOT, KilnError

READY_WITHIN_S = 90
STOP_WITHIN_S = 30


@dataclass
class Server:
    """A server that is ready."""

    name: str
    port: int
    process: subprocess.Popen[bytes]
    log: Path
    ready_s: float  # from its start
    ports: dict[str, int] = field(default_factory=dict)  # of other protocols, by name

    @property
    def url(self) -> str:
        """Where it answers."""
        return f"http://127.0.0.1:{self.port}"

    def workers(self) -> list[int]:
        """Process ids of the workers that live, or of the server itself where it has none."""
        return living_children(self.process.pid) or [self.process.pid]

    def cpu_s(self) -> float:
        """Processor seconds that its processes have used."""
        import psutil

        spent = 0.0
        for process in tree(self.process.pid):
            with suppress(psutil.NoSuchProcess):
                times = process.cpu_times()
                spent += times.user + times.system
        return spent

    def events(self, word: str) -> list[dict[str, object]]:
        """Lines of its log that are JSON and whose message holds a word."""
        lines = [json.loads(line) for line in self.log.read_text().splitlines() if line.startswith('{"time"')]
        return [line for line in lines if word in str(line["message"])]


def living_children(pid: int) -> list[int]:
    """Process ids of a process's children that live, sorted; one may end while it is asked."""
    import psutil

    living = []
    for child in psutil.Process(pid).children():
        with suppress(psutil.NoSuchProcess):
            if child.status() != psutil.STATUS_ZOMBIE:
                living.append(child.pid)
    return sorted(living)


def tree(pid: int) -> list[Any]:
    """A process and all below it that live."""
    import psutil

    try:
        root = psutil.Process(pid)
        return [root, *root.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _bentoml_serve(*service: str) -> list[str]:
    bentoml = str(Path(sys.executable).with_name("bentoml"))
    return [bentoml, "serve", *service, "--host", "127.0.0.1", "--port", "{port}"]


@contextmanager
def ours(store: Path, **settings: str) -> Iterator[Server]:
    """The service as a user starts it, with these settings (`workers="2"`) over its defaults."""
    command = _bentoml_serve()
    told = {f"MODELKILN_{name.upper()}": value for name, value in settings.items()}
    with running("modelkiln", command, "/readyz", {"MODELKILN_STORE": str(store.resolve()), **told}) as server:
        yield server


@contextmanager
def fastapi(model: Path, threads: int = 1) -> Iterator[Server]:
    """The hand-written application over one ONNX file."""
    command = [sys.executable, "-m", "uvicorn", "benchmarks.peers.fastapi_app:app", "--no-access-log"]
    command += ["--log-level", "warning", "--host", "127.0.0.1", "--port", "{port}"]
    with running("FastAPI", command, "/docs", {"MODEL": str(model.resolve()), "THREADS": str(threads)}) as server:
        yield server


@contextmanager
def bentoml(model: Path, **settings: str) -> Iterator[Server]:
    """Plain BentoML over one ONNX file; it reads further settings from the environment."""
    command = _bentoml_serve("benchmarks.peers.bentoml_app:Classifier")
    told = {"MODEL": str(model.resolve()), "BENTOML_DO_NOT_TRACK": "True", **settings}
    with running("BentoML", command, "/readyz", told) as server:
        yield server


@contextmanager
def running(name: str, command: list[str], probe: str, settings: dict[str, str]) -> Iterator[Server]:
    """Any server: `{port}` in its command becomes a free one, `probe` is what answers 2xx once it is ready.

    Raises:
        KilnError: It cannot be started, or did not become ready; the message holds the end of its log.
    """
    port = free_port()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as home:
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("MODELKILN_", "BENTOML_", "PROMETHEUS_"))}
        environment = {**kept, "BENTOML_HOME": home, **settings}
        log = Path(home) / "log"
        begun = time.monotonic()
        with log.open("wb") as file:
            process = subprocess.Popen(
                [part.format(port=port) for part in command], cwd=ROOT, env=environment, stdout=file, stderr=file
            )
        try:
            _wait(f"http://127.0.0.1:{port}{probe}", process, log)
            yield Server(name, port, process, log, time.monotonic() - begun)
        finally:
            stop(process)


def _wait(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + READY_WITHIN_S
    while time.monotonic() < deadline and process.poll() is None:
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.02)
    raise KilnError(f"a server did not become ready; the end of its log: {log.read_text()[-500:]}")


def stop(process: subprocess.Popen[bytes]) -> int:
    """Its exit status after SIGTERM, or after SIGKILL where that does not help."""
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(STOP_WITHIN_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    return process.returncode
