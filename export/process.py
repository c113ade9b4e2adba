"""Starts the worker processes of an export and turns every way in which one can end into a `Reply`."""

from __future__ import annotations

import atexit
import contextlib
import dataclasses
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import catalog
from catalog import read_card
from export.nursery import SUPPORTED, Nursery, Worker
from export.timing import Measure
from export.tuning.apply import Transform
from export.worker import Convert, Prepare, Reply

WORKER = "export.worker"
ROUNDS = 3  # of a race
LOOK_SECONDS = 0.25  # how often a watcher is called
SAVE_SECONDS = 60.0  # for a transform to save itself, when the user interrupts
_nurseries: list[Nursery] = []  # none or one


def raced(
    asked: Mapping[str, Sequence[Measure]], timeout: float, begin: Callable[[str], None] = lambda name: None
) -> tuple[dict[str, list[float]], dict[str, str]]:
    """By name, the milliseconds of its measures in its quickest round; and of those that cannot be timed, why.

    In every one of `ROUNDS` all run once, each measure in a process of its own, there and back; `begin` is called with
    each name before. What else a machine does only ever slows a round down, and often one contender alone.
    """
    taken: dict[str, list[list[float]]] = {name: [[] for _ in measures] for name, measures in asked.items()}
    failed: dict[str, str] = {}
    for turn in range(ROUNDS):
        for name in list(asked) if turn % 2 == 0 else reversed(list(asked)):
            if name in failed:
                continue
            begin(name)
            for request, times in zip(asked[name], taken[name], strict=True):
                reply = ask(request, timeout)
                if reply.error:
                    failed[name] = f"cannot be timed: {reply.error}"
                    break
                times.append(reply.times_ms[str(request.batch)])
    return {name: list(map(min, times)) for name, times in taken.items() if name not in failed}, failed


def ask(
    request: Prepare | Convert | Transform | Measure,
    timeout: float,
    scratch: Path | None = None,
    watch: Callable[[], None] = lambda: None,
) -> Reply:
    """Runs a request in a process of its own; its reply's `error` says how it failed, if it did.

    `timeout` is in seconds; `watch` is called while it runs. The process is gone when this returns or raises, and so
    are its children and what it kept in `scratch`. A transform that is interrupted may save itself first.
    """
    with tempfile.TemporaryDirectory(prefix="modelkiln-", dir=scratch) as folder:
        reply, log = Path(folder, "reply.json"), Path(folder, "log.txt")
        task = type(request).__name__.lower()
        line = json.dumps({"task": task, "request": dataclasses.asdict(request), "reply": str(reply)})
        with log.open("wb") as output:
            process = _started(request, output)
        try:
            ended = _wait(process, line, timeout, watch)
        except KeyboardInterrupt:
            if isinstance(request, Transform):
                process.send_signal(signal.SIGTERM)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(SAVE_SECONDS)
            raise
        finally:
            _end(process)
        if reply.is_file():
            return _without_paths(read_card(Reply, reply), request)
        why = f"took longer than {timeout:g} s" if not ended else _how(process.wait())
        last = _last_line(log)
        return _without_paths(Reply(f"{why}; last said: {last}" if last else why), request)


def _started(request: Prepare | Convert | Transform | Measure, log: IO[bytes]) -> subprocess.Popen[bytes] | Worker:
    """The process, which waits for its request: a fork of one that has Keras, where it needs that and little time."""
    environment = _environment(request)
    if SUPPORTED and isinstance(request, Prepare | Convert):
        with contextlib.suppress(OSError):  # it could not start, or is gone
            return Worker(_nursery(environment), WORKER, log)
    return subprocess.Popen(
        [sys.executable, "-m", WORKER],
        cwd=catalog.ROOT,
        env=environment,
        stdin=subprocess.PIPE,
        stdout=log,
        stderr=log,
        start_new_session=True,
    )


def _nursery(environment: dict[str, str]) -> Nursery:
    """One that was started with this environment; it stays for the next request."""
    kept = _nurseries.pop() if _nurseries else None
    if kept is not None and not (kept.alive and kept.environment == environment):
        kept.close()
        kept = None
    if kept is None:
        kept = Nursery(environment)
        atexit.register(kept.close)
    _nurseries.append(kept)
    return kept


def _environment(request: Prepare | Convert | Transform | Measure) -> dict[str, str]:
    """On the CPU, where parity is defined (a GPU's float is coarser), quietly, with Keras on TensorFlow.

    Only a transform may see a GPU: it trains.
    """
    told = {"TF_CPP_MIN_LOG_LEVEL": "3", "KERAS_BACKEND": "tensorflow"}
    if not isinstance(request, Transform):
        told["CUDA_VISIBLE_DEVICES"] = "-1"
    unset = {"TF_USE_LEGACY_KERAS"}
    return {**{key: value for key, value in os.environ.items() if key not in unset}, **told}


def _wait(process: subprocess.Popen[bytes] | Worker, line: str, timeout: float, watch: Callable[[], None]) -> bool:
    """Whether the process ended by itself in time; its input stays open as long as somebody waits for it."""
    assert process.stdin is not None
    with contextlib.suppress(BrokenPipeError):  # it ended before it read
        process.stdin.write(line.encode() + b"\n")
        process.stdin.flush()
    deadline = time.monotonic() + timeout
    while (left := deadline - time.monotonic()) > 0:
        try:
            process.wait(min(left, LOOK_SECONDS))
            return True
        except subprocess.TimeoutExpired:
            watch()
    return False


def _end(process: subprocess.Popen[bytes] | Worker) -> None:
    """Ends it, if it still runs, and in any case what it has started: converters leave children behind."""
    with contextlib.suppress(ProcessLookupError):  # all of its group ended by themselves
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    if process.stdin is not None:
        with contextlib.suppress(BrokenPipeError):  # what it never read
            process.stdin.close()


def _how(status: int) -> str:
    if status < 0:
        return f"the converter's process was ended by {signal.Signals(-status).name}"
    return f"the converter's process ended with status {status} and no reply"


def _last_line(log: Path) -> str:
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return lines[-1][:200] if lines else ""


def _without_paths(reply: Reply, request: Any) -> Reply:
    """Cards travel: a reason names files, not where they lay on this machine."""
    error = reply.error
    for path in (request.folder, str(Path(request.keras_path).parent), str(catalog.ROOT), tempfile.gettempdir()):
        error = error.replace(f"{path}{os.sep}", "")
    return dataclasses.replace(reply, error=error)
