"""The file to read first: what modelkiln writes down, what it calls things, and where they lie.

    images -> training -> model + card -> export -> variants + cards -> benchmarks -> report -> serving

Four records pass between the rooms. A `Recipe` decides a training run. A `Card` says what came of it and a
`VariantCard` what one conversion of it came to; both are `card.json` beside the files they vouch for. A `Measurement`
is one row of a report. `Store` is the folder they lie in, `plugin_names` and `plugin` the look-up of what can be
plugged in: a model, data set, transform or format is one file in its folder, and the file's name is its name.

Everything here runs on the standard library, so that serving and reports start without a framework.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import gzip
import hashlib
import importlib
import json
import math
import os
import platform
import re
import shutil
import subprocess
import time
import typing
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

ROOT = Path(__file__).resolve().parent
CARD = "card.json"
POLICY = "policy.json"
# ONNX Runtime, from 1.29 on, tells its maker what it runs, unless this is set before it is imported. Nothing here may.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
_NAME = re.compile(r"[a-z0-9][a-z0-9_.-]{0,63}")


class KilnError(Exception):
    """A mistake the user can mend: one message saying what was given, what is allowed and what to run."""


# --- records ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Recipe:
    """Everything that decides a training run, together with the data set and the seed.

    `expects` is the top-1 accuracy in percent on the data set and hardware named in `where`, reached in `minutes`;
    `source` says who says so. None of these three changes the run.
    """

    optimizer: Literal["adam", "adamw", "sgd", "rmsprop"] = "adam"
    learning_rate: float = 1e-3  # the peak, where the schedule has one
    schedule: Literal["constant", "cosine", "onecycle", "step"] = "constant"
    warmup_epochs: float = 0.0
    step_at: tuple[float, ...] = (0.5, 0.75)  # shares of the run after which the `step` schedule divides by ten
    epochs: int = 10
    batch_size: int = 32
    momentum: float = 0.9  # SGD (Nesterov) only
    weight_decay: float = 0.0  # decoupled; never on biases or BatchNorm
    label_smoothing: float = 0.0
    dropout: float = 0.0  # only in networks that have dropout layers
    augment: Literal["none", "basic", "advanced"] = "none"
    cutout: int = 0  # side of the erased square in pixels
    mixup: float = 0.0  # alpha of the Beta distribution
    cutmix: float = 0.0  # alpha of the Beta distribution
    views: int = 0  # augmentations of the training images, after which they come again; 0 is new ones in every epoch
    sizes: tuple[tuple[float, int], ...] = ()  # (share of the run, side for 32x32 pictures): small first
    average: float = 0.0  # momentum of the weights' exponential moving average, less in short runs; 0 is none
    class_weights: bool = False  # inverse to the class frequencies
    stem: str = "default"  # the network's own word for how it meets small images
    weights: Literal["none", "imagenet"] = "none"
    frozen_layers: int = 0  # of an ImageNet-initialised network, counted from the input
    mixed_precision: bool = False  # bfloat16 compute where the device gains from it
    flip_at_test: bool = False  # averages the prediction with that of the mirrored image
    validation: float = 0.1  # share of the training split that is held out
    teacher: str = ""  # a trained model in the store to distil from, or an ONNX variant as model/version
    distill_weight: float = 0.7  # share of the teacher's soft labels in the loss
    temperature: float = 4.0  # of the softened probabilities
    expects: float | None = None
    where: str = ""
    minutes: float | None = None
    source: str = ""

    def __post_init__(self) -> None:
        """Refuses words that no code knows, which would train something else unremarked.

        Raises:
            KilnError: Names the field, what it was given and what it takes.
        """
        for name, kind in typing.get_type_hints(type(self)).items():
            known, given = typing.get_args(kind), getattr(self, name)
            if typing.get_origin(kind) is Literal and given not in known:
                raise KilnError(f"a recipe's {name} is one of {', '.join(known)}, not {str(given)[:40]!r}")

    @classmethod
    def of(cls, fields: dict[str, Any]) -> Recipe:
        """A recipe from JSON, whose pairs and tuples arrive as lists; fields that are missing are at their defaults.

        Raises:
            KilnError: A field takes other values.
            ValueError: A field is unknown or of another type.
        """
        lists: dict[str, Any] = {key: fields[key] for key in ("step_at", "sizes") if key in fields}
        plain = from_json(cls, {key: value for key, value in fields.items() if key not in lists})
        if "sizes" in lists:
            lists["sizes"] = map(tuple, lists["sizes"])
        tuples: dict[str, Any] = {key: tuple(values) for key, values in lists.items()}
        return dataclasses.replace(plain, **tuples)

    @classmethod
    def whole(cls, fields: dict[str, Any]) -> dict[str, Any]:
        """Decisive fields from JSON with those that recipes have got since, at their defaults."""
        return {**cls().decisive(), **fields}

    def decisive(self) -> dict[str, Any]:
        """The fields that change the weights, as JSON has them: a run may be resumed only with the same ones."""
        told = {"expects", "where", "minutes", "source"}
        fields = {key: value for key, value in dataclasses.asdict(self).items() if key not in told}
        decoded: dict[str, Any] = json.loads(json.dumps(fields))
        return decoded


@dataclass(frozen=True)
class DatasetInfo:
    """What a card needs to know of its data: `sha256` is of all pixels and labels, in order."""

    name: str
    sha256: str
    classes: list[str]
    height: int
    width: int
    train_images: int
    validation_images: int
    test_images: int
    root: str = ""  # of a `folder` data set, as it was given


@dataclass(frozen=True)
class Accuracy:
    """Top-1 accuracy with its Wilson 95% interval, all in percent."""

    correct: int
    images: int
    top1: float
    low: float
    high: float

    @classmethod
    def of(cls, correct: int, images: int) -> Accuracy:
        """Counts to percentages; Wilson (1927), which stays inside 0..100 and holds near both ends."""
        if images < 1 or not 0 <= correct <= images:
            raise ValueError(f"{correct} correct of {images} images")
        z, p = 1.959964, correct / images
        scale = 1 + z * z / images
        centre = (p + z * z / (2 * images)) / scale
        half = z * math.sqrt(p * (1 - p) / images + z * z / (4 * images * images)) / scale
        low, high = max(0.0, centre - half), min(1.0, centre + half)
        return cls(correct, images, round(100 * p, 4), round(100 * low, 4), round(100 * high, 4))


@dataclass(frozen=True)
class Parity:
    """How far a variant strays from its float Keras parent on the same images.

    `max_abs_diff` is the largest difference of one probability at any of `batch_sizes`; `mean_abs_diff` and
    `top1_agreement`, a share in 0..1, are of all `images`.
    """

    images: int
    batch_sizes: list[int]
    max_abs_diff: float
    mean_abs_diff: float
    top1_agreement: float
    floor_max_abs_diff: float | None  # None: not asked of this precision
    floor_top1_agreement: float

    @property
    def holds(self) -> bool:
        """Whether both floors are kept."""
        near = self.floor_max_abs_diff is None or self.max_abs_diff <= self.floor_max_abs_diff
        return near and self.top1_agreement >= self.floor_top1_agreement


@dataclass(frozen=True)
class Flips:
    """On which test images a variant and its float parent do not agree about right and wrong.

    `p` is McNemar's exact two-sided p: how likely at least so uneven a split is if both are as good.
    """

    gained: int  # wrong in the parent, right in the variant
    lost: int
    p: float

    @classmethod
    def of(cls, gained: int, lost: int) -> Flips:
        """Both ways counted; of 10 flips of which 1 was for the better p is 0.0215, without a flip it is 1."""
        flips, ways, tail = gained + lost, 1, 0
        for k in range(min(gained, lost) + 1):
            tail += ways  # in which k of the flips fall
            ways = ways * (flips - k) // (k + 1)
        return cls(gained, lost, min(1.0, 2 * tail / (1 << flips)))


@dataclass(frozen=True)
class WeightCount:
    """Kernels and matrices as they lie in an exported file; biases, scales and tables are not counted.

    `distinct` is the number of different values in the tensor that has most of them.
    """

    tensors: int
    values: int
    zeros: int
    distinct: int
    types: dict[str, int]  # element type -> values of it

    @property
    def sparsity(self) -> float:
        """Share of zeros, 0..1."""
        return self.zeros / self.values if self.values else 0.0


@dataclass(frozen=True)
class Card:
    """A trained network: `card.json` beside `model.keras`. `files` maps each file's name to its sha256."""

    model: str
    architecture: str
    recipe_name: str
    recipe: dict[str, Any]
    seed: int
    dataset: DatasetInfo
    accuracy: Accuracy  # on the whole test split
    train_top1: float  # percent, running average over the last epoch
    parameters: int
    macs: int  # multiply-accumulates of convolutions and dense layers for one image
    weights_sha256: str
    train_seconds: float
    device: str
    versions: dict[str, str]
    commit: str
    command: str
    created: str
    files: dict[str, str]
    teacher_sha256: str = ""  # the teacher's weights, or its file if that is a variant, where the recipe distils
    notes: str = ""
    compute_dtype: str = ""  # of the products in training, bfloat16 where mixed precision gained; "": was not noted

    @property
    def whole_recipe(self) -> dict[str, Any]:
        """The recipe with the fields that recipes have got since, at their defaults, by which it was trained."""
        return Recipe.whole(self.recipe)


@dataclass(frozen=True)
class Variant:
    """A model in one form: model x transform x precision x format. `version` names it everywhere."""

    model: str
    format: str
    precision: str = "fp32"
    transform: str = ""  # "" is the network as trained

    @property
    def version(self) -> str:
        """Folder name, V2 version and word in reports: `prune80-onnx-int8`, `onnx-fp32`."""
        return "-".join(part for part in (self.transform, self.format, self.precision) if part)

    def __str__(self) -> str:
        return f"{self.model}/{self.version}"


@dataclass(frozen=True)
class VariantCard:
    """One conversion and its proof: `card.json` beside the converted file.

    `status` is `ok`, `below-floor` (it runs, but strays too far from its parent) or `failed` (there is no file, and
    `reason` says why). Only `ok` is offered to serving; all three keep their row in the report.
    """

    variant: Variant
    status: Literal["ok", "below-floor", "failed"]
    reason: str
    parent_sha256: str  # the parent card's weights_sha256
    dataset: DatasetInfo
    file: str  # the one to give to the format's load(); "" if failed
    size_bytes: int
    gzip_bytes: int
    parity: Parity | None
    accuracy: Accuracy | None
    settings: dict[str, Any]  # what the converter was told: opset, calibration …
    operators: dict[str, int]  # of the graph that runs, by operator name
    seconds: float
    versions: dict[str, str]
    commit: str
    command: str
    created: str
    files: dict[str, str]
    flips: Flips | None = None
    weights: WeightCount | None = None
    macs: int | None = None  # multiply-accumulates of the exported graph for one image
    validation: Accuracy | None = None  # on the images held out of training: what searches and budgets judge by
    validation_drop: float | None = None  # points of top-1 lost against the parent on these
    allowed_drop: float | None = None  # the budget of `--max-accuracy-drop`, in points
    search: list[dict[str, Any]] = field(default_factory=list)  # what was tried before this was chosen


@dataclass(frozen=True)
class Measurement:
    """One row of a report. Times are milliseconds; a `failed` row has a reason and no figures.

    `sizes` and `gzip` are bytes of the exported file. SingleStream is one image after another, Offline the best
    throughput over the batch sizes tried (MLPerf's scenarios).
    """

    variant: Variant
    status: Literal["ok", "below-floor", "failed"]
    reason: str = ""
    parent_sha256: str = ""
    accuracy: Accuracy | None = None
    size_bytes: int | None = None
    gzip_bytes: int | None = None
    p50_ms: float | None = None
    p90_ms: float | None = None
    p99_ms: float | None = None
    offline_batch: int | None = None
    images_per_s: float | None = None  # Offline, at `offline_batch`
    images_per_s_at: dict[str, float] = field(default_factory=dict)  # batch size -> median images/s
    threads: int = 0
    peak_rss_bytes: int | None = None


@dataclass(frozen=True)
class Policy:
    """What a model's owner asks of the variant that answers: `policy.json` beside the model's `card.json`.

    `python -m benchmarks choose` writes it, serving reads it. Of the variants within the budgets the best by
    `objective` answers: the lowest `p50_ms`, the highest `images_per_s`, the smallest `size_bytes` or the highest
    accuracy. `rows` are the measurements that decide; where there are none, serving looks into results/ and the cards.
    """

    model: str
    objective: Literal["latency", "throughput", "size", "accuracy"] = "latency"
    max_accuracy_drop: float = 1.0  # percentage points of top-1 below the model's own card
    max_size_bytes: int | None = None
    version: str = ""  # answers whatever the figures say
    canary: str = ""  # a second version, which answers `canary_share` of the requests that name none
    canary_share: float = 0.0  # in 0..1
    shadow: str = ""  # a version that computes the same requests unseen, and is compared in the metrics
    rows: list[Measurement] = field(default_factory=list)
    created: str = ""
    command: str = ""

    def misses(self, row: Measurement, parent_top1: float) -> Literal["", "status", "accuracy", "size"]:
        """What keeps a measured variant from being taken: the first demand that it misses, "" if it meets all."""
        if row.status != "ok" or row.accuracy is None:
            return "status"
        if parent_top1 - row.accuracy.top1 > self.max_accuracy_drop + 1e-9:
            return "accuracy"
        fits = self.max_size_bytes is None or (row.size_bytes is not None and row.size_bytes <= self.max_size_bytes)
        return "" if fits else "size"

    def allows(self, row: Measurement, parent_top1: float) -> bool:
        """Whether a measured variant is within the budgets."""
        return not self.misses(row, parent_top1)

    def rank(self, row: Measurement) -> tuple[float, str] | None:
        """What to take the minimum of among allowed rows; None where the objective's figure was not measured."""
        figures = {
            "latency": row.p50_ms,
            "throughput": None if row.images_per_s is None else -row.images_per_s,
            "size": row.size_bytes,
            "accuracy": None if row.accuracy is None else -row.accuracy.top1,
        }
        figure = figures[self.objective]
        return None if figure is None else (float(figure), row.variant.version)

    def best(self, rows: Iterable[Measurement], parent_top1: float) -> Measurement | None:
        """The row to take: of those within the budgets the best by `objective`; None where none has its figure."""
        ranked = [(rank, row) for row in rows if self.allows(row, parent_top1) and (rank := self.rank(row)) is not None]
        return min(ranked, key=lambda pair: pair[0])[1] if ranked else None


# --- records as JSON -------------------------------------------------------------------------------------------------

R = typing.TypeVar("R")


def to_json(record: Any) -> str:
    """A record as indented JSON, its fields in the order of their definition."""
    return json.dumps(dataclasses.asdict(record), indent=2, ensure_ascii=False) + "\n"


@functools.cache
def _hints(cls: type) -> dict[str, Any]:
    return typing.get_type_hints(cls)


def from_json(cls: type[R], data: Any) -> R:
    """The record that `to_json` wrote.

    Raises:
        ValueError: A field is missing, unknown, or of another type than the record declares.
    """
    decoded = _decode(cls, data, cls.__name__)
    assert isinstance(decoded, cls)
    return decoded


def _decode(kind: Any, value: Any, at: str) -> Any:
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if kind is Any:
        return value
    if dataclasses.is_dataclass(kind) and isinstance(kind, type):
        return _decode_record(kind, value, at)
    if type(None) in arguments:  # X | None
        return None if value is None else _decode(next(a for a in arguments if a is not type(None)), value, at)
    if origin is Literal:
        if value in arguments:
            return value
    elif origin is dict and isinstance(value, dict):
        return {str(key): _decode(arguments[1], item, f"{at}.{key}") for key, item in value.items()}
    elif origin is list and isinstance(value, list):
        return [_decode(arguments[0], item, f"{at}[{i}]") for i, item in enumerate(value)]
    elif kind is float and isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    elif isinstance(kind, type) and type(value) is kind:
        return value
    raise ValueError(f"{at} is {value!r:.60}, not {getattr(kind, '__name__', kind)}")


def _decode_record(kind: type, value: Any, at: str) -> Any:
    if not isinstance(value, dict):
        raise ValueError(f"{at} is {value!r:.60}, not an object")
    hints, fields = _hints(kind), {f.name: f for f in dataclasses.fields(kind)}
    if unknown := sorted(set(value) - set(fields)):
        raise ValueError(f"{at} has the unknown field {unknown[0]!r}")
    needed = {n for n, f in fields.items() if f.default is f.default_factory is dataclasses.MISSING}
    if missing := sorted(needed - set(value)):
        raise ValueError(f"{at} lacks the field {missing[0]!r}")
    return kind(**{name: _decode(hints[name], item, f"{at}.{name}") for name, item in value.items()})


# --- files -----------------------------------------------------------------------------------------------------------


def sha256_of(path: Path) -> str:
    """Hexadecimal SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def gzip_bytes_of(path: Path) -> int:
    """Size of the file after gzip at level 9: what unstructured sparsity and clustering save on the wire."""
    return len(gzip.compress(path.read_bytes(), compresslevel=9, mtime=0))


_TEMPORARY = re.compile(r"\.[^/]+\.\d+\.tmp")  # what `write_atomic` leaves when it is killed


def write_atomic(path: Path, content: bytes | str) -> None:
    """Writes all of it or nothing: a temporary name beside `path`, fsync, rename."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    _sync_folder(path.parent)


def _sync_folder(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def staged_folder(final: Path) -> Iterator[Path]:
    """An empty folder beside `final` that takes its place when the block ends well, and vanishes when it does not."""
    final.parent.mkdir(parents=True, exist_ok=True)
    staged = final.with_name(f".{final.name}.{os.getpid()}.tmp")
    retired = final.with_name(f".{final.name}.{os.getpid()}.old")
    shutil.rmtree(staged, ignore_errors=True)
    staged.mkdir()
    try:
        yield staged
        for file in staged.rglob("*"):
            if file.is_file():
                with file.open("rb") as handle:
                    os.fsync(handle.fileno())
        if final.exists():
            final.rename(retired)
        staged.rename(final)
        _sync_folder(final.parent)
    finally:
        if retired.exists() and not final.exists():  # the second of the two renames failed
            retired.rename(final)
        shutil.rmtree(staged, ignore_errors=True)
        shutil.rmtree(retired, ignore_errors=True)


def sha256_of_json(told: Any) -> str:
    """SHA-256 in hexadecimal of what JSON has for it, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()


def now() -> str:
    """UTC in ISO 8601 to the second."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def commit() -> str:
    """The checkout's commit, `+` behind it when files differ from it, or `unknown` outside a checkout.

    `MODELKILN_COMMIT` says it where a copy of the checkout runs, as on a cluster.
    """
    if told := os.environ.get("MODELKILN_COMMIT"):
        return told
    try:
        run = functools.partial(subprocess.run, cwd=ROOT, capture_output=True, text=True, check=True, timeout=10)
        head = run(["git", "rev-parse", "--short=12", "HEAD"]).stdout.strip()
        return head + ("+" if run(["git", "status", "--porcelain", "-uno"]).stdout.strip() else "")
    except (OSError, subprocess.SubprocessError):
        return "unknown"


@functools.cache
def processor(cpuinfo: Path = Path("/proc/cpuinfo")) -> tuple[str, frozenset[str]]:
    """The processor's name and, where the system tells them, its flags."""
    name, flags = platform.processor() or platform.machine(), frozenset[str]()
    if cpuinfo.is_file():
        for line in cpuinfo.read_text(errors="replace").splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "model name":
                name = " ".join(value.split())
            elif key.strip() in ("flags", "Features"):
                flags = frozenset(value.split())
                break
    return name, flags


def usable_cores() -> int:
    """Cores that this process may run on, or all there are where the system does not tell."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def versions(*packages: str) -> dict[str, str]:
    """Installed versions of the named distributions; those that are not installed are left out."""
    from importlib import metadata

    found = {}
    for package in packages:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


# --- the store -------------------------------------------------------------------------------------------------------


def valid_name(name: str) -> bool:
    """Whether a model or version may be called this: no separators, no leading dot, 64 characters at most."""
    return _NAME.fullmatch(name) is not None


class Store:
    """Trained models and their variants on disk.

    <root>/<model>/{card.json, policy.json, model.keras, history.csv, plots/, searches/, answers/}
    <root>/<model>/variants/<version>/{card.json, model.<suffix>}
    <root>/<model>/transforms/<name>/{card.json, model.keras}
    """

    def __init__(self, root: Path | str | None = None) -> None:
        """Opens `root`; without one, the folder `MODELKILN_STORE` names, or `artifacts` in the checkout."""
        self.root = Path(root or os.environ.get("MODELKILN_STORE") or ROOT / "artifacts")

    def model_dir(self, model: str) -> Path:
        """Folder of a model, whether or not it exists.

        Raises:
            KilnError: The name could not be a folder's.
        """
        if not valid_name(model):
            raise KilnError(f"{model[:80]!r} cannot name a model: small letters, digits, '_', '-' and '.', 64 at most")
        return self.root / model

    def variant_dir(self, variant: Variant) -> Path:
        """Folder of a variant, whether or not it exists."""
        return self.model_dir(variant.model) / "variants" / variant.version

    def transform_dir(self, model: str, name: str) -> Path:
        """Folder of a transformed model, whether or not it exists."""
        return self.model_dir(model) / "transforms" / name

    def models(self) -> list[str]:
        """Names of the models that have a card, sorted."""
        return sorted(path.parent.name for path in self.root.glob(f"*/{CARD}") if valid_name(path.parent.name))

    def card(self, model: str) -> Card:
        """A trained model's card.

        Raises:
            KilnError: There is no such model, or its card cannot be read.
        """
        path = self.model_dir(model) / CARD
        if not path.is_file():
            known = ", ".join(self.models()) or "none yet"
            raise KilnError(
                f"no trained model {model!r} in {self.root} (there: {known}); run: python -m training {model}"
            )
        return read_card(Card, path)

    def variants(self, model: str, unreadable: dict[str, str] | None = None) -> list[VariantCard]:
        """Cards of all variants of a model, failed ones too, sorted by version.

        `unreadable` is told by version why a card cannot be read, in place of an error for all of them.

        Raises:
            KilnError: A card cannot be read, and there is no `unreadable`.
        """
        cards = []
        for path in sorted((self.model_dir(model) / "variants").glob(f"[!.]*/{CARD}")):  # dots are being staged
            try:
                cards.append(read_card(VariantCard, path))
            except KilnError as error:
                if unreadable is None:
                    raise
                unreadable[path.parent.name] = str(error)
        return cards

    def up_to_date(self, card: Card, variant: VariantCard) -> bool:
        """Whether a variant was made from the weights that lie here: the model's, and its transform's if that is here.

        Raises:
            KilnError: The transform's card cannot be read.
        """
        if variant.parent_sha256 != card.weights_sha256:
            return False
        if not variant.variant.transform:
            return True
        path = self.transform_dir(card.model, variant.variant.transform) / CARD
        if not path.is_file():
            return True
        try:
            made_of = json.loads(path.read_text(encoding="utf-8"))["weights_sha256"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise KilnError(f"{path} cannot be read as a card: {error}") from error
        return bool(variant.settings.get("transform_sha256") == made_of)

    def policy(self, model: str) -> Policy | None:
        """The model's policy, if it has one.

        Raises:
            KilnError: It cannot be read, is another model's, or its canary's share is none.
        """
        path = self.model_dir(model) / POLICY
        if not path.is_file():
            return None
        policy = read_card(Policy, path)
        if policy.model != model or not 0 <= policy.canary_share <= 1:
            wrong = f"model {policy.model!r}, canary_share {policy.canary_share:g}"
            raise KilnError(f"{path} has {wrong}; it takes model {model!r} and a canary_share of 0 to 1")
        return policy

    def verify(self, folder: Path, files: dict[str, str], extra_allowed: bool = False) -> None:
        """Compares a folder with what its card vouches for.

        Raises:
            KilnError: A file is missing, altered, not vouched for, or a link; the message names it.
        """
        for name, digest in files.items():
            path = folder / name
            if path.is_symlink() or (path.exists() and path.stat().st_nlink > 1):
                raise KilnError(f"{path} is a link; a model's files must be plain files. Export it again with --force")
            if not path.is_file():
                raise KilnError(f"{path} is missing, though {CARD} beside it names it. Make it again with --force")
            if sha256_of(path) != digest:
                raise KilnError(f"{path} is corrupt: its sha256 is not the one in {CARD}. Make it again with --force")
        if not extra_allowed:
            present = {p.name for p in folder.iterdir() if not _TEMPORARY.fullmatch(p.name)} - {CARD, *files}
            if present:
                raise KilnError(
                    f"{folder / sorted(present)[0]} does not belong there: {CARD} does not name it. Remove it"
                )


def read_card(kind: type[R], path: Path) -> R:
    """A card from its file.

    Raises:
        KilnError: The file is not a card; the message names the file and the field.
    """
    try:
        return from_json(kind, json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        raise KilnError(f"{path} cannot be read as a card: {error}") from error


# --- plug-ins --------------------------------------------------------------------------------------------------------


def plugin_names(package: str) -> list[str]:
    """What a plug-in folder holds, without importing any of it: `plugin_names("training.models")`."""
    folder = ROOT.joinpath(*package.split("."))
    return sorted(path.stem for path in folder.glob("*.py") if not path.stem.startswith("_"))


def plugin(package: str, name: str) -> ModuleType:
    """Imports one plug-in by its name.

    Raises:
        KilnError: There is no such file; the message lists those there are.
    """
    known = plugin_names(package)
    if name not in known:
        noun = package.rpartition(".")[2].removesuffix("s").replace("data", "data set")
        close = difflib.get_close_matches(name, known, n=1)
        hint = f"; did you mean {close[0]!r}?" if close else "."
        raise KilnError(f"no {noun} {name[:80]!r}{hint} There are: {', '.join(known)}")
    return importlib.import_module(f"{package}.{name}")


def servable(variant: Variant) -> bool:
    """Whether the service can load variants of this format here; not where this checkout does not know the format."""
    known = variant.format in plugin_names("export.formats")
    return known and bool(plugin("export.formats", variant.format).SERVABLE)
