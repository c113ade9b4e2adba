"""One transform in a worker process: the data set, the plug-in's `apply`, and what it left, looked at as a file."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from catalog import KilnError, Recipe, plugin, write_atomic
from export.transforms import MODEL, PACKAGE, Progress, Work
from training.checkpoint import held

TELL_SECONDS = 0.5  # how often progress is written
GRACE_SECONDS = 20.0  # for saving, once the export that asked is gone


@dataclass(frozen=True)
class Transform:
    """Applies one level to the model at `keras_path` and leaves the result in `folder`; progress goes to a file."""

    keras_path: str
    folder: str
    checkpoints: str
    progress: str
    file: str
    level: str
    parameters: dict[str, Any]
    architecture: str
    recipe: dict[str, Any]
    dataset: str
    root: str
    sha256: str  # of the data set the model was trained on
    validation: float
    seed: int
    parent_sha256: str
    teacher_path: str
    teacher_sha256: str


class Stop:
    """Whether somebody asked this process to save and end."""

    def __init__(self) -> None:
        self.asked = False

    def __call__(self) -> bool:
        """Whether to stop now."""
        return self.asked

    def on_signals(self) -> None:
        """SIGTERM and SIGINT are such requests."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: setattr(self, "asked", True))

    def on_orphaned(self) -> None:
        """So is the end of the export that asked; what does not stop in time is ended."""
        self.asked = True
        threading.Event().wait(GRACE_SECONDS)
        os._exit(1)


def transform(request: Transform, stop: Stop) -> dict[str, Any]:
    """What the plug-in says it did, the written model's hash and its top-1 in percent on the validation split.

    The checkpoints are this process's alone: one whose export was killed goes on for a moment, to save itself.

    Raises:
        KilnError: The data set is not the model's, or whatever the transform finds wrong.
    """
    with held(Path(request.checkpoints).parent, wait=True):
        return _transform(request, stop)


def _transform(request: Transform, stop: Stop) -> dict[str, Any]:
    from training import data

    loaded = data.load(request.dataset, root=request.root or None, validation=request.validation)
    if loaded.sha256 != request.sha256:
        raise KilnError(f"the data set {request.dataset} has changed since the model was trained on it. Train it again")
    _deterministic()
    settings = plugin(PACKAGE, request.file).apply(
        Work(
            keras_path=Path(request.keras_path),
            folder=Path(request.folder),
            checkpoints=Path(request.checkpoints),
            level=request.level,
            parameters=request.parameters,
            architecture=request.architecture,
            recipe=Recipe.of(request.recipe),
            dataset=loaded,
            seed=request.seed,
            parent_sha256=request.parent_sha256,
            teacher_path=Path(request.teacher_path),
            teacher_sha256=request.teacher_sha256,
            progress=_teller(Path(request.progress)),
            stop=stop,
        )
    )
    return {"settings": settings, **_looked_at(Path(request.folder) / MODEL, loaded)}


def _deterministic() -> None:
    """The same weights from the same seed, on a CPU; a GPU has no such kernels for fake quantization."""
    import tensorflow as tf

    if tf.config.list_physical_devices("GPU"):
        tf.config.experimental.enable_tensor_float_32_execution(False)  # crossings are compared to 1e-5
    else:
        tf.config.experimental.enable_op_determinism()


def _teller(path: Path) -> Any:
    """A progress callback that writes at most twice a second, and always the last."""
    told = [0.0]

    def tell(progress: Progress) -> None:
        if time.monotonic() - told[0] >= TELL_SECONDS or progress.done >= progress.total:
            told[0] = time.monotonic()
            write_atomic(path, json.dumps(asdict(progress)))

    return tell


def _looked_at(path: Path, loaded: Any) -> dict[str, Any]:
    from export.frozen import load_keras
    from export.tuning.finetune import validation_top1
    from export.tuning.twin import network_in
    from training import network

    written = load_keras(path)
    plain = network_in(written)
    return {
        "weights_sha256": network.weights_sha256(plain),
        "parameters": plain.count_params(),
        "macs": network.macs(plain),
        "val_top1": validation_top1(written, loaded),
    }
