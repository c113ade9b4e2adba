"""Formats: one a file, holding both how to `convert` to it and how to `load` it.

A format file defines

    SUFFIX: str                      # of its model file, ".onnx"
    PRECISIONS: tuple[str, ...]      # which of "fp32", "int8", … it can make
    PACKAGES: tuple[str, ...]        # distributions whose versions a card should tell; the first one loads it
    SERVABLE: bool                   # whether `load` does without tensorflow and keras
    BUDGETED: tuple[str, ...]        # optional: precisions made only where an accuracy budget asks for them
    PROVIDERS: Mapping[str, …]       # optional: what `load` takes as `provider=`, "cpu" among them
    SETTINGS: dict[str, dict]        # by precision, what `convert` tells its converter; a change makes variants due
    def convert(request: Conversion) -> Converted
    def load(path: Path, threads: int, *, spinning: bool = True) -> Predict
    def inside(path: Path) -> Inside  # what really lies in the file, for the card

`spinning` lets the runtime's threads wait for work in a loop, where the runtime has such a thing: lower latency alone,
lost time beside others, so serving turns it off.

Heavy imports sit inside the two functions: importing a format file costs nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Predict = Callable[[NDArray[np.uint8]], NDArray[np.float32]]
"""uint8 `[N, H, W, 3]` RGB to float32 `[N, classes]` probabilities, any N of at least 1; safe to call from threads."""


@dataclass(frozen=True)
class Conversion:
    """What a format is asked for: write `folder / ("model" + SUFFIX)` from the Keras model at `keras_path`."""

    keras_path: Path
    folder: Path
    precision: str
    calibration: NDArray[np.uint8]  # [N, H, W, 3], training images only
    validation: NDArray[np.uint8] | None = None  # held out of training: searches are judged on these
    validation_labels: NDArray[np.int64] | None = None
    validation_parent: NDArray[np.float32] | None = None  # what the network as trained answers to them
    threads: int = 2  # of the runtime while candidates are tried
    scratch: Path | None = None  # shared by the conversions of one export
    cache: Path | None = None  # keeps what was searched for from one export to the next
    allowed_drop: float | None = None  # points of top-1 on the validation images, for precisions that spend a budget


@dataclass(frozen=True)
class Converted:
    """What came of it: the file's name in the folder, the converter's settings, operators of the graph that runs."""

    file: str
    settings: dict[str, Any]
    operators: dict[str, int]
    search: list[dict[str, Any]] = field(default_factory=list)  # what was tried before this was chosen


@dataclass(frozen=True)
class Inside:
    """What lies in an exported file: every kernel and matrix as stored, and the multiply-accumulates of one image."""

    weights: Iterable[NDArray[Any]]
    macs: int | None  # None where the file does not tell
