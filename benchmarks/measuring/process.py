"""Starts measuring processes, lets them compute in turns, and makes one row of what a variant's passes leave."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import json
import math
import os
import select
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.judging import intervals
from benchmarks.measuring.job import ENVIRONMENT, Job, Outcome
from benchmarks.results import Detail, Pass, Quiet
from catalog import ROOT, KilnError, Measurement, from_json, to_json

BENCHES = Path(__file__).with_name("bench_latency.py")
FIFTHS = 5
QUIET = 0.25  # of the turns …
LEAST_QUIET = 6  # … or so many, whose median then has an interval
ENDING_S = 60.0  # that a process may take to end after its last turn


def thread_environment(threads: int) -> dict[str, str]:
    """What holds every library that asks the environment to `threads`; the rest is told by `load(path, threads)`."""
    names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "TF_NUM_INTRAOP_THREADS")
    return {**dict.fromkeys(names, str(threads)), "TF_NUM_INTEROP_THREADS": "1", "CUDA_VISIBLE_DEVICES": "-1"}


def together(jobs: list[Job]) -> Iterator[tuple[int, dict[str, Any] | KilnError, float]]:
    """Runs the jobs side by side in a process each, of which one computes at a time: see `turns`.

    Yields, as each ends, its place in the list, pytest-benchmark's JSON with every round in it and the `Outcome` as
    "outcome", or the error in one line if it failed, crashed or took too long, and the seconds that it computed.
    """
    with contextlib.ExitStack() as stack:
        alive = {place: stack.enter_context(_started(job)) for place, job in enumerate(jobs)}
        for granting in itertools.chain([False], itertools.repeat(True)):  # all have started before one computes
            for place, child in list(alive.items()):
                try:
                    if child.asks(granting):
                        continue
                    ended: dict[str, Any] | KilnError = _left(jobs[place], child.ended())
                except KilnError as error:
                    ended = error
                child.kill()
                yield place, ended, alive.pop(place).spent_s
            if not alive:
                return


@contextlib.contextmanager
def _started(job: Job) -> Iterator[Child]:
    raw, job_file, output = (Path(job.out) / name for name in ("benchmark.json", "job.json", "output.txt"))
    grants, asks = os.pipe(), os.pipe()
    theirs = [grants[0], asks[1]]
    job_file.write_text(to_json(dataclasses.replace(job, pipes=theirs)), encoding="utf-8")
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
    child = Child(command, environment, output, job.settings.timeout_seconds, theirs, (grants[1], asks[0]))
    try:
        yield child
    finally:
        child.kill()
        for end in (grants[1], asks[0]):
            os.close(end)


class Child:
    """A command in a process group of its own, none of which outlives `kill`; `spent_s` are the seconds it computed."""

    def __init__(
        self,
        command: list[str],
        environment: dict[str, str],
        output: Path,
        limit_s: float,
        theirs: list[int],
        ours: tuple[int, int],
    ) -> None:
        """`theirs` are the ends of the pipes that it is given, closed here; `ours` those to write to and to read."""
        with output.open("wb") as log:
            self._process = subprocess.Popen(
                command,
                cwd=ROOT,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                pass_fds=theirs,
            )
        for end in theirs:
            os.close(end)
        self._grants, self._asks, self._limit_s, self.spent_s = *ours, limit_s, 0.0

    def asks(self, granting: bool) -> bool:
        """Whether it asks for a turn, once it has had the one it is granted, or has started; else it has ended."""
        if granting:
            with contextlib.suppress(BrokenPipeError):
                os.write(self._grants, b"!")
        start = time.perf_counter()
        told, _, _ = select.select([self._asks], [], [], max(0.0, self._limit_s - self.spent_s))
        self.spent_s += time.perf_counter() - start
        if not told:
            raise KilnError(f"not done after {self._limit_s:.0f} s, stopped; a longer --timeout allows more")
        return bool(os.read(self._asks, 1))

    def ended(self) -> int:
        """Its code, once it has closed its pipe."""
        try:
            return self._process.wait(ENDING_S)
        except subprocess.TimeoutExpired as error:
            raise KilnError(f"it did not end within {ENDING_S:.0f} s of its last turn, stopped") from error

    def kill(self) -> None:
        """Ends it and all it has started."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()


def _left(job: Job, code: int) -> dict[str, Any]:
    """What a process that has ended left behind."""
    raw = Path(job.out) / "benchmark.json"
    if code != 0 or not job.outcome.is_file() or not raw.is_file() or not raw.stat().st_size:
        raise KilnError(_reason(job, code))
    found: dict[str, Any] = json.loads(raw.read_text(encoding="utf-8"))
    found["outcome"] = from_json(Outcome, json.loads(job.outcome.read_text(encoding="utf-8")))
    return found


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
    turns: list[float]  # ms, medians of SingleStream's turns
    overhead_us: float
    offline_rounds: dict[str, int]
    seconds: float
    beside: list[float] = field(default_factory=list)  # ms, the turns of fp32 ONNX that followed or went before

    @property
    def best_batch(self) -> int:
        """The size of most images/s."""
        rates = self.figures.images_per_s_at
        return int(max(rates, key=lambda batch: rates[batch], default="0"))


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
        offline_kernel_ms=None if outcome.offline_kernel_ms is None else round(outcome.offline_kernel_ms, 6),
    )
    return Ran(
        figures,
        outcome,
        fifths=[float(np.median(part)) for part in np.array_split(single, FIFTHS)],
        turns=[float(np.median(part)) for part in np.split(single, outcome.turns[1:])],
        overhead_us=round(float(np.median(overhead)), 3),
        offline_rounds={str(batch): len(times) for batch, times in sorted(offline.items())},
        seconds=seconds,
    )


def against(figures: Ran, reference: Ran) -> Ran:
    """The pass with its speed-up over the reference's, which took turns with it: the median over those of both."""
    ratios = [theirs / own for theirs, own in zip(reference.turns, figures.turns, strict=False)]
    low, high = intervals.median(ratios) or (None, None)
    known = dataclasses.replace(
        figures.figures,
        speed_up=round(statistics.median(ratios), 4),
        speed_up_low=None if low is None else round(low, 4),
        speed_up_high=None if high is None else round(high, 4),
        turns=len(ratios),
    )
    return dataclasses.replace(figures, figures=known, beside=reference.turns)


def in_quiet(runs: list[Ran]) -> Quiet | None:
    """The speed-up in the quietest quarter of the turns of all passes; None where there are too few turns.

    A neighbour on the same processor slows some kernels more than others, for seconds or minutes: medians over all
    turns then tell how long it stayed. What is left in the quiet ones is the variants' own, and comes again.
    """
    pairs = [(own, theirs, n) for n, ran in enumerate(runs) for own, theirs in zip(ran.turns, ran.beside, strict=False)]
    if intervals.median([own for own, _, _ in pairs]) is None:
        return None
    own, theirs, of_pass = map(np.asarray, zip(*pairs, strict=True))
    slowness = own / own.min() * theirs / theirs.min()
    quiet = np.argsort(slowness, kind="stable")[: max(LEAST_QUIET, math.ceil(QUIET * len(pairs)))]
    ratios = theirs[quiet] / own[quiet]
    groups = [ratios, *(ratios[of_pass[quiet] == n] for n in range(len(runs)))]
    ends = [end for group in groups for end in intervals.median(group.tolist()) or ()]
    return Quiet(
        speed_up=round(float(np.median(ratios)), 4),
        low=round(min(ends), 4),
        high=round(max(ends), 4),
        turns=len(quiet),
        taken=len(pairs),
    )


def merged(row: Measurement, runs: list[Ran]) -> tuple[Measurement, Detail]:
    """The row and how it came about: medians over the passes, memory and Server of the first.

    The best batch is one of those that every pass tried.

    The load held there is told as no more than the median Offline throughput, which that pass may have exceeded; then
    there is no p99 to tell, since that rate was never tried.
    """
    first, passes = runs[0], [ran.figures for ran in runs]
    rates = {
        batch: _median([p.images_per_s_at[batch] for p in passes if batch in p.images_per_s_at])
        for batch in sorted({b for p in passes for b in p.images_per_s_at}, key=int)
    }
    always = [batch for batch in rates if all(batch in p.images_per_s_at for p in passes)]
    best = max(always, key=lambda batch: rates[batch])
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
    tried = server if server and server.rate <= rates[best] else None
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
        quiet=in_quiet(runs),
        server_rate=min(server.rate, rates[best]) if server else None,
        server_p99_ms=tried.p99_ms if tried else None,
        server_batch=tried.batch if tried else None,
        server_trials=server.trials if server else [],
        energy_mj=first.outcome.energy_mj,
        process_threads=first.outcome.process_threads,
        affinity=first.outcome.affinity,
    )
    return measured, detail


def _median(values: list[float], decimals: int = 1) -> float:
    return round(statistics.median(values), decimals)
