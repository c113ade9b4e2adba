"""Measures one variant in a process of its own; `benchmarks.measuring.measure` starts it, one job file a process.

Every round is one inference on real test images, another one each time, cut out before the clock starts. The clock is
`time.perf_counter`; what timing itself costs is measured the same way on an empty function and written down.
Between rounds, never within one, the calibration kernel is timed, and the turn passed on to the other variants of the
model, which are measured at the same time. The order is that of the file: SingleStream on the settled model, Offline,
Server, then the answers on the test split and on corrupted images; a job may leave any out.
"""

from __future__ import annotations

import gc
import itertools
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import catalog
from benchmarks import machine
from benchmarks.machine import peak_rss_bytes
from benchmarks.measuring import energy, server
from benchmarks.measuring import job as jobs
from benchmarks.measuring.kernel import Kernel
from benchmarks.measuring.predictions import Predictions, predicted
from benchmarks.measuring.turns import Turns
from benchmarks.results import Settings

Images = NDArray[np.uint8]
AGREE = 0.05  # of windows of the warm-up, and the gain below which a larger batch is not worth trying
LONGEST = 0.5  # seconds that one batch may take and the next size still be tried


@dataclass
class Subject:
    """The loaded variant with its inputs, and what was learned while loading it."""

    predict: Callable[[Images], NDArray[np.float32]]
    images: Images
    load_ms: float
    first_ms: float
    warmup_calls: int
    settled: bool
    rss_before_bytes: int
    turns: Turns
    turns_at: list[int] = field(default_factory=list)  # the first round of each turn in SingleStream
    kernel: Kernel = field(default_factory=Kernel)
    images_per_s: dict[int, float] = field(default_factory=dict)  # filled by Offline, batch by batch
    server: jobs.Server | None = None
    energy_mj: dict[str, float] = field(default_factory=dict)

    def batch(self, start: int, size: int) -> Images:
        """`size` consecutive test images from `start`, around the end if need be, as one contiguous array."""
        return self.images.take(range(start, start + size), axis=0, mode="wrap")


@pytest.fixture(scope="session")
def job() -> jobs.Job:
    """What to measure."""
    return jobs.current()


@pytest.fixture(scope="session")
def subject(job: jobs.Job) -> Subject:
    """The variant, loaded and warm."""
    images = np.load(Path(job.data) / "images.npy", mmap_mode="r").view(np.ndarray)
    before, s = peak_rss_bytes(), job.settings
    turns = Turns(job.pipes, s.turn_seconds)
    turns.take()
    start = time.perf_counter()
    predict = catalog.plugin("export.formats", job.format).load(Path(job.model_file), job.threads)
    loaded = time.perf_counter()
    predict(np.ascontiguousarray(images[:1]))
    first = time.perf_counter()
    calls, settled = warm_up(predict, np.ascontiguousarray(images[:1]), s.warmup_seconds, s.window_seconds)
    gc.collect()
    gc.freeze()  # what pytest and the runtime hold will not be walked between rounds
    return Subject(predict, images, (loaded - start) * 1e3, (first - loaded) * 1e3, calls, settled, before, turns)


def warm_up(predict: Callable[[Images], Any], image: Images, limit_s: float, window_s: float) -> tuple[int, bool]:
    """Calls until the medians of three windows in a row agree within 5%; the calls made, and whether they did agree."""
    medians: list[float] = []
    calls, end = 0, time.perf_counter() + limit_s
    while time.perf_counter() < end:
        times: list[float] = []
        while sum(times) < window_s or len(times) < 3:
            start = time.perf_counter()
            predict(image)
            times.append(time.perf_counter() - start)
        calls += len(times)
        medians.append(statistics.median(times))
        if len(medians) >= 3 and max(medians[-3:]) <= min(medians[-3:]) * (1 + AGREE):
            return calls, True
    return calls, False


def rounds_for(call: Callable[[], Any], seconds: float, least: int, most: int) -> tuple[int, float]:
    """How many rounds fill `seconds`, judged by the quickest of three calls, and the seconds that this one took."""
    times = []
    for _ in range(3):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
        if times[-1] > seconds:
            break
    return max(least, min(most, int(seconds / max(min(times), 1e-7)))), min(times)


def needs(job: jobs.Job, part: jobs.Part) -> None:
    """Skips what this job leaves out."""
    if part not in job.parts:
        pytest.skip("not asked for")


def starts(batch: int, images: int) -> Iterator[int]:
    """Where each round's batch begins, so that no two rounds in a row see the same images."""
    return itertools.cycle(range(0, images, batch))


def test_overhead(benchmark: Any, job: jobs.Job, subject: Subject) -> None:
    """What timing an empty call costs."""
    needs(job, "SingleStream")
    image = subject.batch(0, 1)
    benchmark.extra_info.update(scenario="overhead")
    benchmark.pedantic(lambda _: None, setup=lambda: ((image,), {}), rounds=1000, warmup_rounds=10)


def test_single_stream(benchmark: Any, job: jobs.Job, subject: Subject) -> None:
    """One image after another."""
    needs(job, "SingleStream")
    image, s = subject.batch(0, 1), job.settings
    subject.turns.take()
    rounds, call_s = rounds_for(lambda: subject.predict(image), s.single_seconds, s.single_rounds, s.max_rounds)
    start, done = starts(1, len(subject.images)), itertools.count()

    def setup() -> tuple[tuple[Images], dict[str, Any]]:
        number = next(done)
        if subject.turns.next_if_over(lambda: subject.predict(image), call_s) or not number:
            subject.turns_at.append(number)
        subject.kernel.sample("SingleStream")
        return (subject.batch(next(start), 1),), {}

    benchmark.extra_info.update(scenario="SingleStream", batch=1)
    benchmark.pedantic(subject.predict, setup=setup, rounds=rounds)


@pytest.mark.parametrize("batch", [*Settings().batches, *Settings().more_batches])
def test_offline(benchmark: Any, job: jobs.Job, subject: Subject, batch: int) -> None:
    """Throughput at one batch size; the larger ones only while the last two doublings paid."""
    needs(job, "Offline")
    s = job.settings
    if batch not in [*s.batches, *s.more_batches]:
        pytest.skip("not asked for")
    if batch not in s.batches and not worth_trying(subject.images_per_s):
        pytest.skip("the last two doublings gained less than 5%")
    images = subject.batch(0, batch)
    rounds, call_s = rounds_for(lambda: subject.predict(images), s.offline_seconds, s.offline_rounds, s.max_rounds)
    start = starts(batch, len(subject.images))

    def setup() -> tuple[tuple[Images], dict[str, Any]]:
        subject.turns.next_if_over(lambda: subject.predict(images), call_s)
        subject.kernel.sample("Offline")
        return (subject.batch(next(start), batch),), {}

    benchmark.extra_info.update(scenario="Offline", batch=batch)
    benchmark.pedantic(subject.predict, setup=setup, rounds=rounds)
    subject.images_per_s[batch] = batch / benchmark.stats.stats.median


def worth_trying(images_per_s: dict[int, float]) -> bool:
    """Whether the next doubling may pay: the last two gained 5% together, and a batch takes no unreasonable time."""
    tried = sorted(images_per_s)
    if not tried or tried[-1] / images_per_s[tried[-1]] > LONGEST:
        return False
    earlier = tried[-3] if len(tried) > 2 else tried[0]
    return len(tried) < 3 or images_per_s[tried[-1]] >= images_per_s[earlier] * (1 + AGREE)


def test_energy(job: jobs.Job, subject: Subject) -> None:
    """Millijoules an image at the best batch, by every meter the machine lets be read."""
    needs(job, "Offline")
    meters = energy.meters()
    if not meters:
        pytest.skip("no meter can be read")
    size = max(subject.images_per_s, key=lambda batch: subject.images_per_s[batch])
    images, done, end = subject.batch(0, size), 0, time.perf_counter() + max(0.5, job.settings.offline_seconds)
    before = {name: read() for name, read in meters.items()}
    while time.perf_counter() < end:
        subject.predict(images)
        done += size
    subject.energy_mj = {name: round((read() - before[name]) / done * 1e3, 6) for name, read in meters.items()}


def test_server(job: jobs.Job, subject: Subject) -> None:
    """The highest rate of Poisson arrivals under the limit."""
    needs(job, "Server")
    best = max(subject.images_per_s, key=lambda batch: subject.images_per_s[batch])
    for size in subject.images_per_s:
        subject.predict(subject.batch(0, size))  # memory is laid out by size, in some formats
    subject.server = server.search(
        lambda first, size: subject.predict(subject.batch(first % len(subject.images), size)),
        subject.images_per_s[best],
        best,
        job.settings.server_p99_ms,
        job.settings.server_seconds,
    )


def test_outcome(job: jobs.Job, subject: Subject) -> None:
    """Leaves everything pytest-benchmark does not keep."""
    import psutil

    outcome = jobs.Outcome(
        load_ms=subject.load_ms,
        first_ms=subject.first_ms,
        warmup_calls=subject.warmup_calls,
        settled=subject.settled,
        rss_before_bytes=subject.rss_before_bytes,
        peak_rss_bytes=peak_rss_bytes(),
        kernel_ms=subject.kernel.median_ms("SingleStream"),
        offline_kernel_ms=subject.kernel.median_ms("Offline") if "Offline" in job.parts else None,
        turns=subject.turns_at,
        process_threads=psutil.Process().num_threads(),
        affinity=machine.cores(),
        server=subject.server,
        energy_mj=subject.energy_mj,
    )
    catalog.write_atomic(job.outcome, catalog.to_json(outcome))


def test_answers(job: jobs.Job, subject: Subject) -> None:
    """The answers on the whole test split and on corrupted images, as far as they are asked for."""
    if not jobs.ANSWERED.intersection(job.parts):
        pytest.skip("not asked for")
    top, confidence = np.empty(0, np.int64), np.empty(0, np.float32)
    corrupted = np.empty((0, 0, 0), np.int64)
    if "accuracy" in job.parts:
        top, confidence = predicted(subject.predict, subject.images)
    if "robustness" in job.parts:
        spoilt = np.load(Path(job.data) / "corrupted.npy", mmap_mode="r").view(np.ndarray)
        answers, _ = predicted(subject.predict, spoilt.reshape(-1, *spoilt.shape[3:]))
        corrupted = answers.reshape(spoilt.shape[:3])
    Predictions(top, confidence, corrupted).save(job.predictions)
