"""Ranges of activations: measured on training images, drawn by several rules, judged on the validation split.

Two passes over the calibration images: the first finds each tensor's smallest and largest value, the second counts its
values into `BINS` equal bins between them. Every rule draws its range from these, so that trying all of them costs one
calibration. What was found is kept, and not looked for again while model, images and rules are the same.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import math
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from catalog import sha256_of_json, write_atomic
from export.onnx import graph

BINS = 2048
LEVELS = 256  # of an 8-bit number
HISTOGRAM_IMAGES = 256  # the second pass needs a distribution, not its last image
MOST_BYTES = 2**27  # of activations held at a time
VERSION = 4  # of the rules below; a change makes what was found before void
METHODS = ("minmax", "entropy", "mse", "percentile-99.99", "percentile-99.999")
NEAREST, GPTQ = "nearest", "gptq"  # how weights are rounded: each by itself, or a layer together (`rounding`)

Ranges = dict[str, tuple[float, float]]
Batches = Callable[[NDArray[np.uint8]], NDArray[np.float32]]


@dataclass(frozen=True)
class Choice:
    """How a model is quantized; `floats` are the layers, by name, that are not.

    A kernel has a scale for each output channel, or one for all of it: with `dense_by_tensor` those of dense layers
    alone, without `per_channel` every kernel. With `clusters` a convolution that was clustered has the scales by which
    weights that were equal in training stay equal (`export/onnx/clusters.py`). `rounding` is `NEAREST` or `GPTQ`.
    """

    method: str = "minmax"
    per_channel: bool = True
    dense_by_tensor: bool = False
    floats: tuple[str, ...] = ()
    clusters: bool = False
    rounding: str = NEAREST

    @property
    def keeps_dense(self) -> bool:
        """Whether equal weights of a dense layer stay equal: one scale for all of them."""
        return self.dense_by_tensor or not self.per_channel

    def words(self) -> dict[str, Any]:
        """For a card's log."""
        told: dict[str, Any] = {"per_channel": self.per_channel, "dense_by_tensor": self.keeps_dense}
        told |= {"clusters_kept": True} if self.clusters else {}
        return {"calibration": self.method, **told, "rounding": self.rounding}

    def __str__(self) -> str:
        dense = "convolutions by channel, dense by tensor" if self.dense_by_tensor else "by channel"
        dense += ", clusters kept" if self.clusters else ""
        weights = (dense if self.per_channel else "by tensor") + f", {self.rounding}"
        return f"{self.method}, {weights}" + (f", {len(self.floats)} layers float" if self.floats else "")


@dataclass(frozen=True)
class Spread:
    """How one tensor's values lie between `low` and `high`: int64 counts in `BINS` equal bins."""

    low: float
    high: float
    counts: NDArray[np.int64]


WEIGHTS = ((True, False), (True, True), (False, False))  # by channel; convolutions alone; by tensor
CHOICES = tuple(Choice(method, *weights, rounding=GPTQ) for method, weights in itertools.product(METHODS, WEIGHTS))
CLUSTERED = tuple(Choice(method, dense_by_tensor=True, clusters=True) for method in METHODS)  # with such convolutions


def measure(model: Any, name: str, images: NDArray[np.uint8], pixels: Batches) -> dict[str, Spread]:
    """Runs a float ONNX model with all its tensors as outputs; the spread of each, its input `name` among them.

    `pixels` makes the model's float32 input of uint8 images `[N, H, W, 3]`.
    """
    session, names = graph.exposed(model)
    first = session.run(names, {name: pixels(images[:1])})
    step = int(max(1, min(64, MOST_BYTES // max(1, sum(tensor.nbytes for tensor in first)))))
    limits: dict[str, tuple[float, float]] = {}
    for tensors in _runs(session, names, name, images, pixels, step):
        for key, values in tensors:
            low, high = limits.get(key, (math.inf, -math.inf))
            limits[key] = min(low, float(values.min())), max(high, float(values.max()))
    counts = {key: np.zeros(BINS, np.int64) for key in limits}
    few = images[:: max(1, len(images) // HISTOGRAM_IMAGES)]
    for tensors in _runs(session, names, name, few, pixels, step):
        for key, values in tensors:
            counts[key] += _count(values, *limits[key])
    return {key: Spread(*limits[key], counts[key]) for key in limits}


def _runs(
    session: Any, names: list[str], name: str, images: NDArray[np.uint8], pixels: Batches, step: int
) -> Iterator[list[tuple[str, NDArray[np.float32]]]]:
    for start in range(0, len(images), step):
        feed = pixels(images[start : start + step])
        yield [(name, feed), *zip(names, session.run(names, {name: feed}), strict=True)]


def _count(values: NDArray[np.float32], low: float, high: float) -> NDArray[np.int64]:
    scale = BINS / (high - low) if high > low else 0.0
    places = ((values.ravel() - np.float32(low)) * np.float32(scale)).astype(np.int32)
    return np.bincount(np.clip(places, 0, BINS - 1), minlength=BINS)


def ranges(spreads: dict[str, Spread], method: str) -> Ranges:
    """The range of every tensor by one of `METHODS`; zero lies in each, because padding and ReLU need it exactly.

    Raises:
        ValueError: There is no such method.
    """
    rule, _, share = method.partition("-")
    if method not in METHODS:
        raise ValueError(f"no calibration {method!r}; there are {', '.join(METHODS)}")
    drawn = {}
    for name, spread in spreads.items():
        if rule == "entropy":
            low, high = _entropy(spread)
        elif rule == "mse":
            low, high = _least_squares(spread)
        elif rule == "percentile":
            low, high = _percentile(spread, float(share) / 100)
        else:
            low, high = spread.low, spread.high
        drawn[name] = min(low, 0.0), max(high, 0.0)
    return drawn


def _percentile(spread: Spread, share: float) -> tuple[float, float]:
    """The range that leaves out at most `1 - share` of the values on each side."""
    edges = np.linspace(spread.low, spread.high, BINS + 1)
    reached = np.cumsum(spread.counts) / max(1, spread.counts.sum())
    above = int(np.searchsorted(reached, share))
    below = int(np.searchsorted(reached, 1 - share, side="right"))
    return float(edges[min(below, BINS - 1)]), float(edges[min(above + 1, BINS)])


def _least_squares(spread: Spread) -> tuple[float, float]:
    """The range whose 256 levels are nearest to the values by mean square: what is clipped against what is rounded."""
    edges = np.linspace(spread.low, spread.high, BINS + 1)
    counts, middles = _without_zero(spread.counts, edges), (edges[:-1] + edges[1:]) / 2
    best, chosen = math.inf, (spread.low, spread.high)
    for low, high in _narrower(spread):
        if not (step := (high - low) / (LEVELS - 1)):
            continue
        levels = np.clip(np.round(middles / step), np.round(low / step), np.round(high / step))
        if (error := float(np.sum(counts * (middles - levels * step) ** 2))) < best:
            best, chosen = error, (low, high)
    return chosen


def _narrower(spread: Spread) -> Iterator[tuple[float, float]]:
    """Ranges from a fifth of the values' to all of it, zero in each."""
    for share in np.linspace(0.2, 1, 81):
        yield min(share * spread.low, 0.0), max(share * spread.high, 0.0)


def _entropy(spread: Spread) -> tuple[float, float]:
    """The range whose 8-bit distribution is nearest to the true one (Kullback-Leibler, as TensorRT calibrates)."""
    edges = np.linspace(spread.low, spread.high, BINS + 1)
    counts = _without_zero(spread.counts, edges)
    best, chosen = math.inf, (spread.low, spread.high)
    for low, high in _narrower(spread):
        first = int(np.searchsorted(edges, low, side="right")) - 1
        last = int(np.searchsorted(edges, high, side="left"))
        first, last = max(0, first), min(BINS, max(last, first + 1))
        if last - first < LEVELS:
            continue
        if (distance := _divergence(counts, first, last)) < best - 1e-12:
            best, chosen = distance, (float(edges[first]), float(edges[last]))
    return chosen


def _without_zero(counts: NDArray[np.int64], edges: NDArray[np.float64]) -> NDArray[np.int64]:
    """Puts a neighbour's count where ReLU heaped zeros up: these cost nothing, for every range holds zero exactly."""
    place = int(np.clip(np.searchsorted(edges, 0.0, side="right") - 1, 0, BINS - 2))
    counts = counts.copy()
    counts[place] = min(counts[place], counts[place + 1])
    return counts


def _divergence(counts: NDArray[np.int64], first: int, last: int) -> float:
    inside = counts[first:last].astype(np.float64)
    true = inside.copy()  # what lies outside is clipped to the outermost levels
    true[0] += counts[:first].sum()
    true[-1] += counts[last:].sum()
    level = np.arange(len(inside)) * LEVELS // len(inside)
    total, filled = np.bincount(level, inside, LEVELS), np.bincount(level, inside > 0, LEVELS)
    coarse = np.where(inside > 0, (total / np.maximum(filled, 1))[level], 0.0)
    if not coarse.sum():
        return math.inf
    true, coarse = true / true.sum(), np.maximum(coarse / coarse.sum(), 1e-6)
    seen = true > 0
    return float(np.sum(true[seen] * np.log(true[seen] / coarse[seen])))


@dataclass(frozen=True)
class Judgement:
    """How a quantized model does on the validation images, against the float one.

    `damage` is the mean Kullback-Leibler divergence of its answers from the float ones. It decides: it is measured on
    every image, whereas accuracies of a few thousand images differ by chance more than calibrations do.
    """

    damage: float
    top1: float | None  # percent, where there are labels
    agreement: float  # share of images of the same top class

    @classmethod
    def kept(cls, kept: Kept, name: str, judge: Callable[[], Judgement]) -> Judgement:
        """What `judge` found, now or in an earlier run."""
        return cls(**kept(name, lambda: asdict(judge())))

    def words(self) -> dict[str, Any]:
        """For a card's log."""
        top1 = None if self.top1 is None else round(self.top1, 4)
        return {"damage": round(self.damage, 8), "validation_top1": top1, "agreement": round(self.agreement, 6)}


def judge(answers: NDArray[np.float32], reference: NDArray[np.float32], labels: NDArray[np.int64] | None) -> Judgement:
    """Compares probabilities `[N, classes]` with the float model's."""
    true, told = (np.maximum(array.astype(np.float64), 1e-7) for array in (reference, answers))
    damage = float(np.mean(np.sum(true * (np.log(true) - np.log(told)), axis=1)))
    top = answers.argmax(1)
    top1 = None if labels is None else 100 * float(np.mean(top == labels))
    return Judgement(damage, top1, float(np.mean(top == reference.argmax(1))))


class Kept:
    """What a search found for one key, kept in `folder` as it comes: a search that is ended goes on where it was."""

    def __init__(self, folder: Path | None, key: dict[str, Any]) -> None:
        self._path = folder and folder / f"{sha256_of_json({**key, 'version': VERSION})[:24]}.json"
        self._key = key
        self._found: dict[str, Any] = {}
        if self._path is not None:
            with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
                self._found = dict(json.loads(self._path.read_text())["found"])

    def __call__(self, name: str, find: Callable[[], Any]) -> Any:
        """What `find` returned under this name before; else what it returns now, as JSON has it."""
        if name not in self._found:
            self._found[name] = find()
            if self._path is not None:
                write_atomic(self._path, json.dumps({"key": self._key, "found": self._found}, indent=2) + "\n")
        return self._found[name]


def digest_of(*arrays: NDArray[Any]) -> str:
    """One hash of several arrays' bytes, for keys."""
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(f"{array.dtype}{array.shape}".encode())
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def as_json(choice: Choice) -> dict[str, Any]:
    """A choice for a card or a file."""
    return {**asdict(choice), "floats": list(choice.floats)}
