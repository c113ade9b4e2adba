"""What a run of the benchmarks writes down: `results.json`, the only thing a report is made from."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path

from catalog import KilnError, Measurement, from_json, to_json, write_atomic

SCHEMA = 1
FILE = "results.json"


@dataclass(frozen=True)
class Settings:
    """How long and how often each thing is measured; times are seconds spent on it, not counting its warm-up.

    The first `batches` of Offline are tried for every variant, so that all can be compared at the same batch; those of
    `more_batches` only while the last step gained 5% or more.
    """

    single_seconds: float = 8.0
    single_rounds: int = 400  # at least, where an inference is so slow that the time would allow fewer
    offline_seconds: float = 1.0  # for each batch size
    offline_rounds: int = 5  # at least
    max_rounds: int = 20_000
    warmup_seconds: float = 2.0  # at most; it ends when three windows agree within 5%
    window_seconds: float = 0.1
    timeout_seconds: float = 1200.0  # for a variant's whole process
    batches: list[int] = field(default_factory=lambda: [1, 8, 32, 128])
    more_batches: list[int] = field(default_factory=lambda: [256, 512])

    @classmethod
    def quick(cls) -> Settings:
        """A tenth of the time, for a first look: p99 is then a rough figure."""
        return cls(single_seconds=0.8, single_rounds=200, offline_seconds=0.12, warmup_seconds=0.4, window_seconds=0.03)


@dataclass(frozen=True)
class Machine:
    """The machine as the run saw it. `flags` are those of the instruction sets that decide inference speed."""

    cpu: str
    flags: list[str]
    physical_cores: int
    logical_cores: int
    affinity: list[int]  # the logical cores this run was allowed
    virtual: bool
    memory_bytes: int
    os: str
    python: str
    versions: dict[str, str]


@dataclass(frozen=True)
class ModelFacts:
    """What a report tells of a model beside its variants."""

    architecture: str
    recipe: str
    dataset: str
    dataset_sha256: str
    classes: int
    test_images: int
    parameters: int
    macs: int
    card_top1: float  # percent, as the training run measured it


@dataclass(frozen=True)
class Detail:
    """How one row came about; only rows that were measured have one.

    `p50_low_ms` and `p50_high_ms` are the lowest and highest median of five consecutive fifths of the rounds.
    `lost` and `won` count test images that `against` has right and this variant wrong, and the reverse;
    `mcnemar_p` is McNemar's exact two-sided p for them, uncorrected.
    """

    position: int  # in the random order, from 0
    seconds: float
    rounds: int
    offline_rounds: dict[str, int]  # batch size -> rounds
    warmup_calls: int
    settled: bool  # three windows of the warm-up agreed within 5%
    load_ms: float
    first_ms: float  # the first inference after loading
    p50_low_ms: float
    p50_high_ms: float
    overhead_us: float  # of timing an empty call the same way; not subtracted
    rss_before_bytes: int  # of the process before it loaded the variant
    against: str = ""
    lost: int | None = None
    won: int | None = None
    mcnemar_p: float | None = None


@dataclass(frozen=True)
class Results:
    """One run over a store. `rows` are sorted by model and version; `order` is how they were measured."""

    schema: int
    created: str
    commit: str
    quick: bool
    threads: int
    environment: dict[str, str]  # what was set for every process to hold it to `threads`
    seed: int
    order: list[str]
    settings: Settings
    seconds: float
    load_before: list[float]  # load averages over 1, 5 and 15 minutes
    load_after: list[float]
    machine: Machine
    models: dict[str, ModelFacts]
    rows: list[Measurement]
    details: dict[str, Detail]  # by "model/version"

    def write(self, path: Path) -> None:
        """Writes the file atomically."""
        write_atomic(path, to_json(self))


def read(path: Path) -> Results:
    """The results in a file.

    Raises:
        KilnError: There is no such file, or it holds something else.
    """
    if not path.is_file():
        raise KilnError(f"there are no results at {path}; run: python -m benchmarks")
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(data, dict) and data.get("schema") != SCHEMA:
            raise KilnError(f"{path} has schema {data.get('schema')!r}, not {SCHEMA}; run again: python -m benchmarks")
        return from_json(Results, data)
    except (OSError, ValueError) as error:
        raise KilnError(f"{path} cannot be read as results: {error}; run again: python -m benchmarks") from error
