"""Real servers for tests: `bentoml serve` as a user types it, on loopback and a free port."""

from __future__ import annotations

import os
import resource
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx

from catalog import ROOT
from serving.routes.operations import FRESH_S

MAX_BODY_BYTES = 200_000  # of the server that the tests of requests share
MAX_PIXELS = 1_000_000
READY_WITHIN_S = 60
STOP_WITHIN_S = 20


@dataclass
class Running:
    url: str
    process: subprocess.Popen[bytes]
    log: Path


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def environment(home: Path, **settings: str) -> dict[str, str]:
    """This process's environment without settings of ours, with a BentoML home of its own."""
    ours = ("MODELKILN_", "BENTOML_", "PROMETHEUS_")
    kept = {key: value for key, value in os.environ.items() if not key.startswith(ours)}
    return {**kept, "BENTOML_HOME": str(home), "MODELKILN_ZOO": str(home / "no-zoo"), **settings}


def command(port: int, *target: str, python: Path = Path(sys.executable)) -> list[str]:
    bentoml = python.with_name("bentoml")
    return [str(bentoml), "serve", *target, "--host", "127.0.0.1", "--port", str(port)]


@contextmanager
def serving(
    tmp: Path, *target: str, settings: dict[str, str], cwd: Path = ROOT, python: Path = Path(sys.executable)
) -> Iterator[Running]:
    """A server that is ready; ended by SIGTERM, and killed if that does not help."""
    port, log = free_port(), tmp / "server.log"
    with log.open("wb") as file:
        process = subprocess.Popen(
            command(port, *target, python=python), cwd=cwd, env=environment(tmp, **settings), stdout=file, stderr=file
        )
    try:
        running = Running(f"http://127.0.0.1:{port}", process, log)
        wait_until_ready(running)
        yield running
    finally:
        stop(process)


def wait_until_ready(running: Running) -> None:
    deadline = time.monotonic() + READY_WITHIN_S
    while time.monotonic() < deadline and running.process.poll() is None:
        try:
            if httpx.get(f"{running.url}/readyz", timeout=2).status_code == 200:
                return
        except httpx.HTTPError:
            pass
        time.sleep(0.05)
    raise AssertionError(f"not ready; its log:\n{running.log.read_text()}")


def no_file_may_grow() -> None:
    """For a process about to start: as on a full disk."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))


def metrics(url: str) -> str:
    """The page of metrics as it is now, not as it was given to somebody a moment ago."""
    time.sleep(FRESH_S)
    return httpx.get(f"{url.rstrip('/')}/metrics", timeout=30).text


def stop(process: subprocess.Popen[bytes]) -> int:
    """Its exit status after SIGTERM."""
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(STOP_WITHIN_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    return process.returncode
