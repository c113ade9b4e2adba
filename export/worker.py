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
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from catalog import Accuracy, Flips, KilnError, Parity, WeightCount, from_json, to_json, write_atomic
from export.timing import Measure, measure
from export.tuning.apply import Stop, Transform, transform

ANSWERS = "answers.npz"  # left in `prepared` by a conversion: what the variant says of the test split
ARRAYS = (  # of `Prepare`, one .npy each
    *("images", "labels", "reference", "parent", "calibration"),
    *("validation", "validation_labels", "validation_parent"),
)


@dataclass(frozen=True)
class Prepare:
    """Writes into `folder` what all conversions of a model share: images, labels and the parent's answers to them."""

    keras_path: str
    folder: str
    dataset: str
    root: str
    sha256: str  # of the data set the model was trained on
    validation: float
    calibration_images: int
    seed: int
    parent_path: str = ""  # of the network as trained, where `keras_path` is what a transform made of it


@dataclass(frozen=True)
class Convert:
    """Converts, loads and proves one variant; `prepared` is what `Prepare` filled, `cache` keeps what searches find."""

    keras_path: str
    folder: str
    prepared: str
    format: str
    precision: str
    threads: int
    cache: str = ""
    allowed_drop: float | None = None


@dataclass(frozen=True)
class Reply:
    """What came of a request; `error` is one line, empty if all went well. Conversions fill the rest."""

    error: str = ""
    file: str = ""
    settings: dict[str, Any] = field(default_factory=dict)
    operators: dict[str, int] = field(default_factory=dict)
    parity: Parity | None = None
    accuracy: Accuracy | None = None
    flips: Flips | None = None
    weights: WeightCount | None = None
    macs: int | None = None
    validation: Accuracy | None = None
    validation_drop: float | None = None
    search: list[dict[str, Any]] = field(default_factory=list)
    times_ms: dict[str, float] = field(default_factory=dict)  # batch size -> median, of a `Measure`


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
    classes, threads = len(loaded.classes), os.cpu_count() or 1
    predict = keras.load(Path(request.keras_path), threads)
    trained = keras.load(Path(request.parent_path), threads) if request.parent_path else predict
    reference = parity.in_batches(predict, loaded.x_test, 256, classes)
    chosen = stratified(loaded.y_train, request.calibration_images, request.seed)
    arrays = {
        "images": loaded.x_test,
        "labels": loaded.y_test,
        "reference": reference,
        "parent": parity.in_batches(trained, loaded.x_test, 256, classes) if request.parent_path else reference,
        "calibration": loaded.x_train[chosen],
        "validation": loaded.x_val,
        "validation_labels": loaded.y_val,
        "validation_parent": parity.in_batches(trained, loaded.x_val, 256, classes),
    }
    for name, array in arrays.items():
        np.save(Path(request.folder, f"{name}.npy"), array)
    return Reply()


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
    from export import answers, parity, proof
    from export.formats import Conversion

    folder, shared = Path(request.folder), Path(request.prepared)
    images, labels, reference, parent, calibration, validation, validation_labels, validation_parent = (
        np.load(shared / f"{name}.npy", mmap_mode="r") for name in ARRAYS
    )
    form = plugin("export.formats", request.format)
    made = form.convert(
        Conversion(
            keras_path=Path(request.keras_path),
            folder=folder,
            precision=request.precision,
            calibration=calibration,
            validation=validation,
            validation_labels=validation_labels,
            validation_parent=validation_parent,
            threads=request.threads,
            scratch=shared,
            cache=Path(request.cache) if request.cache else None,
            allowed_drop=request.allowed_drop,
        )
    )
    predict = form.load(folder / made.file, request.threads)
    proved = parity.prove(predict, request.precision, images, labels, reference, parent)
    held = proof.held(predict, validation, validation_labels, validation_parent)
    inside = form.inside(folder / made.file)
    answers.write(shared / ANSWERS, proved.answers)
    return Reply(
        file=made.file,
        settings=made.settings,
        operators=made.operators,
        parity=proved.parity,
        accuracy=proved.accuracy,
        flips=proved.flips,
        weights=proof.count(inside),
        macs=inside.macs,
        validation=held.accuracy if held else None,
        validation_drop=held.drop if held else None,
        search=made.search,
    )


def one_line(error: BaseException) -> str:
    """An exception as one line of at most 300 characters; a `KilnError` without its type."""
    if isinstance(error, ModuleNotFoundError):
        return f"the package {error.name} is not installed; run: pip install -r requirements/export.txt"
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    first = lines[0] if lines else "no reason given"
    return (first if isinstance(error, KilnError) else f"{type(error).__name__}: {first}")[:300]


def _end_with_parent(first: Callable[[], None] | None) -> None:
    sys.stdin.buffer.read()
    if first:
        first()
    os._exit(1)


def main() -> int:
    """Serves the one request; the exit code is 1 if the reply is an error."""
    asked = json.loads(sys.stdin.buffer.readline())
    stop = Stop()
    saves = asked["task"] == "transform"
    if saves:
        stop.on_signals()
    threading.Thread(target=_end_with_parent, args=[stop.on_orphaned if saves else None], daemon=True).start()
    tasks: dict[str, tuple[type, Callable[[Any], Reply]]] = {
        "prepare": (Prepare, prepare),
        "convert": (Convert, convert),
        "measure": (Measure, lambda request: Reply(times_ms=measure(request))),
        "transform": (Transform, lambda request: Reply(settings=transform(request, stop))),
    }
    kind, task = tasks[asked["task"]]
    try:
        reply = task(from_json(kind, asked["request"]))
    except Exception as error:
        import traceback

        traceback.print_exc()
        reply = Reply(one_line(error))
    write_atomic(Path(asked["reply"]), to_json(reply))
    return 1 if reply.error else 0


if __name__ == "__main__":
    status = main()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)  # the frameworks' own shutdown takes a second and can crash; the reply is on disk
