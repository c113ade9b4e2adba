"""Starts the measuring process of one variant, waits for it, and makes one row of what its passes leave."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import signal
import statistics
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.measuring.job import ENVIRONMENT, Job, Outcome
from benchmarks.results import Detail, Pass
from catalog import ROOT, KilnError, Measurement, from_json, to_json

BENCHES = Path(__file__).with_name("bench_latency.py")
FIFTHS = 5


def thread_environment(threads: int) -> dict[str, str]:
    """What holds every library that asks the environment to `threads`; the rest is told by `load(path, threads)`."""
    names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "TF_NUM_INTRAOP_THREADS")
    return {**dict.fromkeys(names, str(threads)), "TF_NUM_INTEROP_THREADS": "1", "CUDA_VISIBLE_DEVICES": "-1"}


def run(job: Job) -> dict[str, Any]:
    """pytest-benchmark's JSON of one variant's process, with every round in it, and its `Outcome` as "outcome".

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
        # pytest-benchmark measures nothing where it believes itself a worker of pytest-xdist.
        **{name: value for name, value in os.environ.items() if not name.startswith("PYTEST_XDIST")},
        **thread_environment(job.threads),
        ENVIRONMENT: str(job_file),
        "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
        "PYTEST_ADDOPTS": "",
        "TF_CPP_MIN_LOG_LEVEL": "3",
    }
    code = _wait(command, environment, Path(job.out) / "output.txt", job.settings.timeout_seconds)
    if code != 0 or not job.outcome.is_file() or not raw.is_file() or not raw.stat().st_size:
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


def in_plug_ins_words(name: str, turn: int, raw: dict[str, Any]) -> list[dict[str, Any]]:
    """What pytest-benchmark wrote of one process, named by variant, scenario and pass; no single rounds."""
    told = []
    for bench in raw["benchmarks"]:
        scenario, batch = bench["extra_info"]["scenario"], bench["extra_info"].get("batch")
        label = f"{name}[{scenario}{f'-{batch}' if scenario == 'Offline' else ''}-pass{turn + 1}]"
        stats = {key: value for key, value in bench["stats"].items() if key != "data"}
        told.append({**bench, "name": label, "fullname": label, "group": None, "stats": stats})
    return told


@dataclass(frozen=True)
class Ran:
    """One process of a variant: its pass and what only the row needs."""

    figures: Pass
    outcome: Outcome
    fifths: list[float]  # ms, medians of five consecutive fifths of the rounds
    overhead_us: float
    offline_rounds: dict[str, int]
    seconds: float


def read(raw: dict[str, Any], position: int, seconds: float) -> Ran:
    """The figures in what `run` returned."""
    outcome: Outcome = raw["outcome"]
    benches = [(bench["extra_info"], np.asarray(bench["stats"]["data"])) for bench in raw["benchmarks"]]
    single = next(times for extra, times in benches if extra["scenario"] == "SingleStream") * 1e3
    overhead = next(times for extra, times in benches if extra["scenario"] == "overhead") * 1e6
    offline = {extra["batch"]: times for extra, times in benches if extra["scenario"] == "Offline"}
    p50, p90, p99 = (round(float(p), 5) for p in np.percentile(single, (50, 90, 99)))
    figures = Pass(
        position=position,
        settled=outcome.settled,
        rounds=len(single),
        p50_ms=p50,
        p90_ms=p90,
        p99_ms=p99,
        images_per_s_at={str(b): round(b / float(np.median(times)), 1) for b, times in sorted(offline.items())},
        kernel_ms=round(outcome.kernel_ms, 6),
    )
    return Ran(
        figures,
        outcome,
        fifths=[float(np.median(part)) for part in np.array_split(single, FIFTHS)],
        overhead_us=round(float(np.median(overhead)), 3),
        offline_rounds={str(batch): len(times) for batch, times in sorted(offline.items())},
        seconds=seconds,
    )


def merged(row: Measurement, runs: list[Ran]) -> tuple[Measurement, Detail]:
    """The row and how it came about: medians over the passes, memory and Server of the first.

    The load held there is told as no more than the median Offline throughput, which that pass may have exceeded.
    """
    first, passes = runs[0], [ran.figures for ran in runs]
    rates = {
        batch: _median([p.images_per_s_at[batch] for p in passes if batch in p.images_per_s_at])
        for batch in sorted({b for p in passes for b in p.images_per_s_at}, key=int)
    }
    best = max(rates, key=lambda batch: rates[batch])
    spread = [p.p50_ms for p in passes] if len(passes) > 1 else first.fifths
    measured = dataclasses.replace(
        row,
        p50_ms=_median([p.p50_ms for p in passes], 5),
        p90_ms=_median([p.p90_ms for p in passes], 5),
        p99_ms=_median([p.p99_ms for p in passes], 5),
        offline_batch=int(best),
        images_per_s=rates[best],
        images_per_s_at=rates,
        peak_rss_bytes=first.outcome.peak_rss_bytes,
    )
    server = first.outcome.server
    detail = Detail(
        position=first.figures.position,
        seconds=round(sum(ran.seconds for ran in runs), 2),
        rounds=sum(p.rounds for p in passes),
        offline_rounds={batch: sum(ran.offline_rounds.get(batch, 0) for ran in runs) for batch in rates},
        warmup_calls=first.outcome.warmup_calls,
        settled=all(p.settled for p in passes),
        load_ms=round(first.outcome.load_ms, 2),
        first_ms=round(first.outcome.first_ms, 3),
        p50_low_ms=round(min(spread), 5),
        p50_high_ms=round(max(spread), 5),
        overhead_us=max(ran.overhead_us for ran in runs),
        rss_before_bytes=first.outcome.rss_before_bytes,
        passes=passes,
        server_rate=min(server.rate, rates[best]) if server else None,
        server_p99_ms=server.p99_ms if server else None,
        server_batch=server.batch if server else None,
        server_trials=server.trials if server else [],
        energy_mj=first.outcome.energy_mj,
        process_threads=first.outcome.process_threads,
        affinity=first.outcome.affinity,
    )
    return measured, detail


def _median(values: list[float], decimals: int = 1) -> float:
    return round(statistics.median(values), decimals)
