"""What the measuring process is told and what it tells back, as files in a folder of its own."""

from __future__ import annotations

import json
import os
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from benchmarks.results import Settings
from catalog import KilnError, from_json

Part = Literal["SingleStream", "Offline", "Server", "accuracy", "robustness"]
ANSWERED: frozenset[Part] = frozenset({"accuracy", "robustness"})  # the parts that leave predictions
ENVIRONMENT = "MODELKILN_BENCH_JOB"  # the path of a job file


@dataclass(frozen=True)
class Job:
    """One variant to measure, or those `parts` of it that are named.

    `data` is a folder with `images.npy`, uint8 `[N, H, W, 3]`, `labels.npy`, int64 `[N]`, and, for the robustness,
    `subset.npy`, int64 `[n]`, and `corrupted.npy`, uint8 `[corruptions, severities, n, H, W, 3]`.
    """

    format: str
    model_file: str
    threads: int
    data: str
    out: str  # the folder for the files named below
    settings: Settings
    parts: list[Part] = field(default_factory=lambda: list(typing.get_args(Part)))
    pipes: list[int] = field(default_factory=list)  # of `Turns`, where others are measured at the same time

    @property
    def outcome(self) -> Path:
        """Where the process leaves its `Outcome`."""
        return Path(self.out) / "outcome.json"

    @property
    def predictions(self) -> Path:
        """Where it leaves `Predictions`."""
        return Path(self.out) / "predictions.npz"

    @property
    def reason(self) -> Path:
        """Where it leaves the one line that says what went wrong, if it can."""
        return Path(self.out) / "reason.txt"


@dataclass(frozen=True)
class Server:
    """What came of the Server scenario; `trials` are the rates tried with the p99 in ms they had, in order.

    `p99_ms` is the highest of the trials that held `rate`, `batch` their median.
    """

    rate: float
    p99_ms: float | None
    batch: float | None
    trials: list[list[float]]


@dataclass(frozen=True)
class Outcome:
    """What pytest-benchmark's file cannot tell. Times in milliseconds."""

    load_ms: float
    first_ms: float
    warmup_calls: int
    settled: bool
    rss_before_bytes: int
    peak_rss_bytes: int  # before predicting the test split, whose predictions may come from an earlier run
    kernel_ms: float  # beside SingleStream
    process_threads: int
    affinity: list[int]
    server: Server | None = None
    energy_mj: dict[str, float] = field(default_factory=dict)
    offline_kernel_ms: float | None = None
    turns: list[int] = field(default_factory=list)  # the first round of each turn in SingleStream


def current() -> Job:
    """The job this process was started for.

    Raises:
        KilnError: It was started for none.
    """
    path = os.environ.get(ENVIRONMENT)
    if not path:
        raise KilnError(f"{ENVIRONMENT} names no job file; benchmarks are started by: python -m benchmarks")
    return from_json(Job, json.loads(Path(path).read_text(encoding="utf-8")))
