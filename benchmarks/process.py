"""Starts the measuring process of one variant, waits for it, and reads the figures it leaves."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.job import ENVIRONMENT, Job, Outcome
from benchmarks.results import Detail
from catalog import ROOT, Accuracy, KilnError, Measurement, from_json, to_json

BENCHES = Path(__file__).with_name("bench_latency.py")
FIFTHS = 5


def thread_environment(threads: int) -> dict[str, str]:
    """What holds every library that asks the environment to `threads`; the rest is told by `load(path, threads)`."""
    names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "TF_NUM_INTRAOP_THREADS")
    return {**dict.fromkeys(names, str(threads)), "TF_NUM_INTEROP_THREADS": "1", "CUDA_VISIBLE_DEVICES": "-1"}


def run(job: Job) -> dict[str, Any]:
    """pytest-benchmark's JSON of one variant's process, with every round in it.

    Raises:
        KilnError: The process failed, crashed or took too long; the message is one line.
    """
    raw, job_file = Path(job.out) / "benchmark.json", Path(job.out) / "job.json"
    job_file.write_text(to_json(job), encoding="utf-8")
    # The project's own pytest settings are for its tests: they time out, and turn warnings into failures.
    command = [
        *(sys.executable, "-m", "pytest", str(BENCHES), "-c", os.devnull, f"--rootdir={ROOT}"),
        *("-p", "pytest_benchmark.plugin", "-p", "no:cacheprovider", "-p", "no:warnings", "-q", "--exitfirst"),
        *(f"--benchmark-json={raw}", "--benchmark-disable-gc", "--benchmark-timer=time.perf_counter"),
        f"--benchmark-storage=file://{job.out}/storage",
    ]
    environment = {
        **os.environ,
        **thread_environment(job.threads),
        ENVIRONMENT: str(job_file),
        "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
        "PYTEST_ADDOPTS": "",
        "TF_CPP_MIN_LOG_LEVEL": "3",
    }
    code = _wait(command, environment, Path(job.out) / "output.txt", job.settings.timeout_seconds)
    if code != 0 or not job.outcome.is_file() or not raw.is_file():
        raise KilnError(_reason(job, code))
    found: dict[str, Any] = json.loads(raw.read_text(encoding="utf-8"))
    found["outcome"] = from_json(Outcome, json.loads(job.outcome.read_text(encoding="utf-8")))
    return found


def _wait(command: list[str], environment: dict[str, str], output: Path, seconds: float) -> int:
    """Runs a command in its own process group, which does not outlive this call."""
    with output.open("wb") as log:
        child = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
        )
        try:
            return child.wait(seconds)
        except subprocess.TimeoutExpired as error:
            raise KilnError(f"not done after {seconds:.0f} s, stopped; a longer --timeout allows more") from error
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)
            child.wait()


def _reason(job: Job, code: int) -> str:
    if job.reason.is_file():
        return job.reason.read_text(encoding="utf-8", errors="replace")
    if code < 0:
        name = signal.Signals(-code).name
        return f"its process died of {name}" + (", perhaps for lack of memory" if code == -signal.SIGKILL else "")
    last = (Path(job.out) / "output.txt").read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return f"its process ended with code {code}: {last[-1] if last else 'no output'}"


def figures(row: Measurement, raw: dict[str, Any], position: int, seconds: float) -> tuple[Measurement, Detail]:
    """The row with its figures, and how they came about, from what `run` returned."""
    outcome: Outcome = raw["outcome"]
    benches = [(bench["extra_info"], np.asarray(bench["stats"]["data"])) for bench in raw["benchmarks"]]
    single = next(times for extra, times in benches if extra["scenario"] == "SingleStream") * 1e3
    overhead = next(times for extra, times in benches if extra["scenario"] == "overhead") * 1e6
    offline = {extra["batch"]: times for extra, times in benches if extra["scenario"] == "Offline"}
    images_per_s = {batch: batch / float(np.median(times)) for batch, times in offline.items()}
    best = max(images_per_s, key=lambda batch: images_per_s[batch])
    fifths = [float(np.median(part)) for part in np.array_split(single, FIFTHS)]
    p50, p90, p99 = (round(float(p), 5) for p in np.percentile(single, (50, 90, 99)))
    measured = dataclasses.replace(
        row,
        accuracy=Accuracy.of(outcome.correct, outcome.images),
        p50_ms=p50,
        p90_ms=p90,
        p99_ms=p99,
        offline_batch=best,
        images_per_s=round(images_per_s[best], 1),
        images_per_s_at={str(batch): round(rate, 1) for batch, rate in sorted(images_per_s.items())},
        peak_rss_bytes=outcome.peak_rss_bytes,
    )
    detail = Detail(
        position=position,
        seconds=seconds,
        rounds=len(single),
        offline_rounds={str(batch): len(times) for batch, times in sorted(offline.items())},
        warmup_calls=outcome.warmup_calls,
        settled=outcome.settled,
        load_ms=round(outcome.load_ms, 2),
        first_ms=round(outcome.first_ms, 3),
        p50_low_ms=round(min(fifths), 5),
        p50_high_ms=round(max(fifths), 5),
        overhead_us=round(float(np.median(overhead)), 3),
        rss_before_bytes=outcome.rss_before_bytes,
    )
    return measured, detail
