"""What a run of the benchmarks writes down: `results.json`, the only thing a report is made from."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from catalog import KilnError, Measurement, from_json, to_json, write_atomic

SLOW_LOAD_MS = 3000.0
SCHEMA = 2  # 1 had one pass a variant and neither Server, roofline, robustness nor energy; it is still read
FILE = "results.json"
UNKNOWN_TO_1 = {
    "passes": 1,
    "server_p99_ms": 0.0,
    "server_seconds": 0.0,
    "robust_images": 0,
    "peak_seconds": 0.0,
    "http_requests": 0,
}


@dataclass(frozen=True)
class Settings:
    """How long and how often each thing is measured; times are seconds spent on it, not counting its warm-up.

    The first `batches` of Offline are tried for every variant; those of `more_batches` only while the last two
    doublings together gained 5% or more.
    """

    single_seconds: float = 3.0  # in each pass
    single_rounds: int = 200  # at least, where an inference is so slow that the time would allow fewer
    offline_seconds: float = 0.4  # for each batch size, in each pass
    offline_rounds: int = 3  # at least
    max_rounds: int = 20_000
    warmup_seconds: float = 3.0  # at most; it ends when three windows agree within 5%
    window_seconds: float = 0.1
    timeout_seconds: float = 1200.0  # for a variant's whole process
    batches: list[int] = field(default_factory=lambda: [1, 2, 4, 8])
    more_batches: list[int] = field(default_factory=lambda: [16, 32, 64, 128, 256, 512])
    passes: int = 3  # times each variant is measured, each time in a new process and a new order
    server_p99_ms: float = 15.0  # the limit of Server; MLPerf's for image classification
    server_seconds: float = 0.4  # of a trial at one rate, at least; 0 leaves Server out
    robust_images: int = 300  # test images that are corrupted in every way, fewer for large networks; 0: none
    robust_macs: float = 6e11  # that a variant may spend on them, a quarter of a minute on two cores
    http_requests: int = 300  # over HTTP for each variant, one by one in all rounds; 0 leaves the serving tax out
    http_rounds: int = 5  # each asks every variant in turn, in a new order
    http_seconds: float = 0.2  # of the closed loop in each of them; 0 leaves Offline and Server over HTTP out
    http_connections: int = 16  # of the closed loop
    peak_seconds: float = 0.6  # for each figure of the machine's own peak, in every try; 0 leaves it out
    turn_seconds: float = 0.05  # after which the other variants of the model have theirs; 0: measured alone
    slow_passes: int = 2  # of variants that take longer than `SLOW_LOAD_MS` to load

    @classmethod
    def quick(cls) -> Settings:
        """A first look: one pass and a tenth of the time, p99 is then a rough figure."""
        return cls(
            single_seconds=0.6,
            offline_seconds=0.1,
            warmup_seconds=0.5,
            window_seconds=0.03,
            passes=1,
            server_seconds=0.15,
            robust_images=100,
            peak_seconds=0.1,
            http_requests=0,
        )


@dataclass(frozen=True)
class Roofline:
    """The machine's own peak, measured in the run with the run's threads.

    `copy_bytes_per_s` is by working set in bytes, read and written bytes together, so that caches are told from memory.
    """

    fp32_macs_per_s: float
    int8_macs_per_s: float
    copy_bytes_per_s: dict[str, float]
    how: dict[str, str]  # by figure: what reached it
    seconds: float


@dataclass(frozen=True)
class Work:
    """What one image asks of a variant, counted in its graph; `exact` is not so where a sibling's had to stand in."""

    macs: int
    weight_elements: int
    activation_elements: int  # outputs of the operators that compute, one image
    exact: bool = True


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
    class_names: list[str] = field(default_factory=list)
    stem: str = ""  # how the network meets the image, where it has several ways; "" in older files
    notes: str = ""  # of its card, such as what it was restored from


@dataclass(frozen=True)
class TaxRound:
    """What one round over all variants measured of one; medians in milliseconds, as in `Tax`."""

    http_ms: float
    decode_ms: float
    queue_ms: float
    compute_ms: float
    handling_ms: float
    transport_ms: float
    images_per_s: float | None = None  # of the closed loop


@dataclass(frozen=True)
class Tax:
    """One image over HTTP, medians in milliseconds: `http_ms` at the client, the others by where the time went.

    Decoding, queueing and computing are what the service says; `handling_ms` is the rest of its own time, and
    `transport_ms` what the client waited beyond that. Percentiles are over the requests of all rounds; the spread of a
    figure is the lowest and the highest of `rounds`.
    """

    requests: int
    http_ms: float
    decode_ms: float
    queue_ms: float
    compute_ms: float
    handling_ms: float
    transport_ms: float
    p90_ms: float | None = None
    p99_ms: float | None = None
    rounds: list[TaxRound] = field(default_factory=list)
    images_per_s: float | None = None  # Offline over HTTP: a closed loop's, the median of the rounds
    server_rate: float | None = None  # Server over HTTP: as in process, of requests of one image; 0: none was held
    server_p99_ms: float | None = None  # at that rate
    server_trials: list[list[float]] = field(default_factory=list)  # rate and p99 in ms of every trial, in order

    @property
    def low_ms(self) -> float | None:
        """`http_ms` of the quickest round; None where there was but one."""
        return min((one.http_ms for one in self.rounds), default=None)

    @property
    def high_ms(self) -> float | None:
        """That of the slowest."""
        return max((one.http_ms for one in self.rounds), default=None)

    @property
    def beside_ms(self) -> float:
        """What a request takes beside the inference."""
        return self.decode_ms + self.queue_ms + self.handling_ms + self.transport_ms


@dataclass(frozen=True)
class Pass:
    """What one process of a variant measured; `kernel_ms` is the calibration kernel's median between its rounds.

    `speed_up` is the median, over the turns that this variant and fp32 ONNX of its model took after each other, of how
    many times as fast it was one by one; `speed_up_low` and `speed_up_high` are the ends of that median's 95% interval,
    two of the turns' ratios. Older files have none, nor have fewer than six turns.
    """

    position: int  # in this pass's random order, from 0
    settled: bool
    rounds: int
    p50_ms: float
    p90_ms: float
    p99_ms: float
    images_per_s_at: dict[str, float]
    kernel_ms: float  # in SingleStream
    offline_kernel_ms: float | None = None  # None in older files, whose `kernel_ms` stands in
    speed_up: float | None = None
    speed_up_low: float | None = None
    speed_up_high: float | None = None
    turns: int | None = None  # that both took

    @property
    def images_per_s(self) -> float:
        """Offline, at this pass's best batch."""
        return max(self.images_per_s_at.values())

    def images_per_s_in(self, batch: int | None) -> float:
        """Offline, in batches of this size, the row's; at this pass's best where it tried none of it."""
        return self.images_per_s_at.get(str(batch), self.images_per_s)


@dataclass(frozen=True)
class Quiet:
    """SingleStream against fp32 ONNX of the model, in the quietest of the turns that both took after each other.

    `speed_up` is the median of their ratios over all passes; `low` and `high` are what the 95% intervals of it span,
    by order statistics, of all these turns and of each pass's own where there are enough.
    """

    speed_up: float
    low: float
    high: float
    turns: int  # the quietest ones …
    taken: int  # … of so many


@dataclass(frozen=True)
class Detail:
    """How one row came about; only rows that were measured have one.

    `p50_low_ms` and `p50_high_ms` are the lowest and highest median of the passes, or of five consecutive fifths of the
    rounds where there was one pass. `lost` and `won` count test images that `against` has right and this variant
    wrong, and the reverse; `mcnemar_p` is McNemar's exact two-sided p for them, `mcnemar_holm` the same after Holm's
    correction over all variants of the run. Lists `by class` are in the order of the class names. `robust_errors` are
    the standard errors of the changes on corrupted images against `against`, paired over the images.
    """

    position: int  # in the first random order, from 0
    seconds: float  # of all its processes
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
    mcnemar_holm: float | None = None
    passes: list[Pass] = field(default_factory=list)
    quiet: Quiet | None = None  # None where both took fewer than six turns, and in older files
    server_rate: float | None = None  # images/s of Poisson arrivals held with p99 under the limit; 0: none was
    server_p99_ms: float | None = None  # at that rate, the median of its trials; None where that was never tried
    server_batch: float | None = None  # images that were taken together, on average, at that rate
    server_trials: list[list[float]] = field(default_factory=list)  # rate and p99 in ms of every trial, in order
    energy_mj: dict[str, float] = field(default_factory=dict)  # an image, Offline, by meter
    process_threads: int | None = None  # of the whole process once the variant was loaded
    affinity: list[int] = field(default_factory=list)  # of that process
    top1_by_class: list[float] = field(default_factory=list)  # percent
    calibration_error: float | None = None  # expected, 15 bins of equal width, percent
    confidence: float | None = None  # mean probability of the top class, percent
    robust_images: int = 0
    robust_clean_top1: float | None = None  # percent, on the images that were then corrupted
    robust_top1: dict[str, list[float]] = field(default_factory=dict)  # percent, by corruption, severities ascending
    robust_errors: dict[str, float] = field(default_factory=dict)  # points, by corruption and of `all`, see above
    robust_holm: float | None = None  # two-sided p of the change on all corrupted images, after Holm's correction
    command: str = ""  # of its card, which makes the file again
    reused: bool = False  # predictions of the same file on the same images, kept from its export or an earlier run
    work: Work | None = None
    tax: Tax | None = None
    tax_reason: str = ""  # why there is none, where the service was asked for one

    @property
    def package_mj(self) -> float | None:
        """Millijoules an image of the processors' packages together; None where no such meter can be read.

        Other meters tell of something else: a board's of what a run on the CPU leaves idle, RAPL's psys of the whole
        machine, packages included.
        """
        packages = [mj for meter, mj in self.energy_mj.items() if meter.startswith("rapl package-")]
        return round(sum(packages), 6) if packages else None


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
    roofline: Roofline | None = None
    roofline_reason: str = ""  # why the last try that failed to measure the peak did; the others count
    steal_percent: float | None = None  # of the run's processor time, taken by other guests of the host
    others_percent: float | None = None  # of it, taken by processes that are not the run's own
    http_reason: str = ""  # why there is no serving tax at all, where it was asked for
    http_seconds: float | None = None  # that the tax took, after all else
    http_load_before: list[float] = field(default_factory=list)
    http_steal_percent: float | None = None  # as above, while the tax was measured
    http_others_percent: float | None = None
    orders: list[list[str]] = field(default_factory=list)  # of every pass

    @property
    def quiet(self) -> list[Quiet]:
        """The speed-ups in quiet turns, of all variants that have one; older runs have none."""
        return [detail.quiet for detail in self.details.values() if detail.quiet]

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
        if isinstance(data, dict) and data.get("schema") not in (1, SCHEMA):
            raise KilnError(
                f"{path} has schema {data.get('schema')!r}, not 1 or {SCHEMA}; run again: python -m benchmarks"
            )
        return from_json(Results, _upgraded(data))
    except (OSError, ValueError) as error:
        raise KilnError(f"{path} cannot be read as results: {error}; run again: python -m benchmarks") from error


def every(folder: Path) -> list[Results]:
    """All results in a folder, the oldest first."""
    return sorted(map(read, folder.glob("*.json")), key=lambda one: one.created)


def newest(folder: Path) -> Path:
    """The results written last of those in a folder.

    Raises:
        KilnError: There are none.
    """
    found = [(read(path).created, path) for path in folder.glob("*.json")]
    if not found:
        raise KilnError(f"there are no results in {folder}; run: make benchmark publish")
    return max(found)[1]


def _upgraded(data: Any) -> Any:
    """Schema 1, and older files of 2, said in the words of 2: what they had no word for was not done."""
    if isinstance(data, dict) and isinstance(data.get("settings"), dict):
        undone: dict[str, Any] = {"turn_seconds": 0.0, "slow_passes": data["settings"].get("passes", 1)}
        undone |= {"http_rounds": 1, "http_seconds": 0.0}
        if data.get("schema") == 1:
            undone |= UNKNOWN_TO_1
        return {**data, "settings": {**undone, **data["settings"]}}
    return data
