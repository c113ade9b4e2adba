"""What the measuring process is told and what it tells back, as files in a folder of its own."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path

from benchmarks.results import Settings
from catalog import KilnError, from_json

ENVIRONMENT = "MODELKILN_BENCH_JOB"  # the path of a job file


@dataclass(frozen=True)
class Job:
    """One variant to measure.

    `data` is a folder with `images.npy`, uint8 `[N, H, W, 3]`, and `labels.npy`, int64 `[N]`.
    """

    format: str
    model_file: str
    threads: int
    data: str
    out: str  # the folder for the files named below
    settings: Settings

    @property
    def outcome(self) -> Path:
        """Where the process leaves its `Outcome`."""
        return Path(self.out) / "outcome.json"

    @property
    def predictions(self) -> Path:
        """Where it leaves the top class of every test image, int64 `[N]`."""
        return Path(self.out) / "predictions.npy"

    @property
    def reason(self) -> Path:
        """Where it leaves the one line that says what went wrong, if it can."""
        return Path(self.out) / "reason.txt"


@dataclass(frozen=True)
class Outcome:
    """What pytest-benchmark's file cannot tell. Times in milliseconds."""

    images: int
    correct: int
    load_ms: float
    first_ms: float
    warmup_calls: int
    settled: bool
    rss_before_bytes: int
    peak_rss_bytes: int


def current() -> Job:
    """The job this process was started for.

    Raises:
        KilnError: It was started for none.
    """
    path = os.environ.get(ENVIRONMENT)
    if not path:
        raise KilnError(f"{ENVIRONMENT} names no job file; benchmarks are started by: python -m benchmarks")
    return from_json(Job, json.loads(Path(path).read_text(encoding="utf-8")))
