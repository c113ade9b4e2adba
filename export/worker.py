"""The process a conversion runs in, so that a converter which crashes or hangs takes nothing with it.

`python -m export.worker` reads one request, a line of JSON, from its standard input and leaves a reply in the file the
request names. It ends as soon as that input closes: when the export is killed, its workers go too.
"""

from __future__ import annotations

import json
import os
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from catalog import Accuracy, KilnError, Parity, from_json, to_json, write_atomic

EMPTY: dict[str, Any] = {}


@dataclass(frozen=True)
class Prepare:
    """Writes into `folder` what all conversions of a model share: test images, labels, reference, calibration."""

    keras_path: str
    folder: str
    dataset: str
    root: str
    sha256: str  # of the data set the model was trained on
    validation: float
    calibration_images: int
    seed: int


@dataclass(frozen=True)
class Convert:
    """Converts, loads and proves one variant; `prepared` is what `Prepare` filled."""

    keras_path: str
    folder: str
    prepared: str
    format: str
    precision: str
    threads: int


@dataclass(frozen=True)
class Reply:
    """What came of a request; `error` is one line, empty if all went well. Conversions fill the rest."""

    error: str
    file: str
    settings: dict[str, Any]
    operators: dict[str, int]
    parity: Parity | None
    accuracy: Accuracy | None


def prepare(request: Prepare) -> Reply:
    """Reads the data set and lets Keras predict the test split.

    Raises:
        KilnError: The data set cannot be read, or is not the one the model was trained on.
    """
    import numpy as np

    from export import parity
    from export.formats import keras
    from training import data

    loaded = data.load(request.dataset, root=request.root or None, validation=request.validation)
    if loaded.sha256 != request.sha256:
        raise KilnError(
            f"the data set {request.dataset} has changed since the model was trained on it "
            f"(sha256 {loaded.sha256[:12]}, the card says {request.sha256[:12]}). Train the model again"
        )
    predict = keras.load(Path(request.keras_path), os.cpu_count() or 1)
    reference = parity.in_batches(predict, loaded.x_test, 256, len(loaded.classes))
    chosen = stratified(loaded.y_train, request.calibration_images, request.seed)
    arrays = {
        "images": loaded.x_test,
        "labels": loaded.y_test,
        "reference": reference,
        "calibration": loaded.x_train[chosen],
    }
    for name, array in arrays.items():
        np.save(Path(request.folder, f"{name}.npy"), array)
    return Reply("", "", EMPTY, EMPTY, None, None)


def stratified(labels: Any, count: int, seed: int) -> Any:
    """Sorted indices of `count` examples, as equal a number of every class as there are; int64 `[min(count, N)]`."""
    import numpy as np

    order = np.random.default_rng(seed).permutation(len(labels))
    turn = np.empty(len(labels), np.int64)  # how many of its class come before it in that order
    for label in np.unique(labels):
        places = order[labels[order] == label]
        turn[places] = np.arange(len(places))
    return np.sort(order[np.argsort(turn[order], kind="stable")][:count])


def convert(request: Convert) -> Reply:
    """Makes the file and runs it over the whole test split.

    Raises:
        KilnError: The file cannot be made, loaded or trusted.
        Exception: Whatever the converter raises.
    """
    import numpy as np

    from catalog import plugin
    from export import parity
    from export.formats import Conversion

    images, labels, reference, calibration = (
        np.load(Path(request.prepared, f"{name}.npy"), mmap_mode="r")
        for name in ("images", "labels", "reference", "calibration")
    )
    form = plugin("export.formats", request.format)
    folder = Path(request.folder)
    made = form.convert(Conversion(Path(request.keras_path), folder, request.precision, calibration))
    predict = form.load(folder / made.file, request.threads)
    proof = parity.prove(predict, request.precision, images, labels, reference)
    return Reply("", made.file, made.settings, made.operators, proof.parity, proof.accuracy)


def one_line(error: BaseException) -> str:
    """An exception as one line of at most 300 characters; a `KilnError` without its type."""
    if isinstance(error, ModuleNotFoundError):
        return f"the package {error.name} is not installed; run: pip install -r requirements/export.txt"
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    first = lines[0] if lines else "no reason given"
    return (first if isinstance(error, KilnError) else f"{type(error).__name__}: {first}")[:300]


def _end_with_parent() -> None:
    sys.stdin.buffer.read()
    os._exit(1)


def main() -> int:
    """Serves the one request; the exit code is 1 if the reply is an error."""
    asked = json.loads(sys.stdin.buffer.readline())
    threading.Thread(target=_end_with_parent, daemon=True).start()
    tasks: dict[str, tuple[type, Callable[[Any], Reply]]] = {
        "prepare": (Prepare, prepare),
        "convert": (Convert, convert),
    }
    kind, task = tasks[asked["task"]]
    try:
        reply = task(from_json(kind, asked["request"]))
    except Exception as error:
        import traceback

        traceback.print_exc()
        reply = Reply(one_line(error), "", EMPTY, EMPTY, None, None)
    write_atomic(Path(asked["reply"]), to_json(reply))
    return 1 if reply.error else 0


if __name__ == "__main__":
    status = main()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)  # the frameworks' own shutdown takes a second and can crash; the reply is on disk
