"""Keras itself: the network as trained, the reference row of every report."""

from __future__ import annotations

import shutil
import threading
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from export.formats import Conversion, Converted, Inside, Predict

SUFFIX = ".keras"
PRECISIONS = ("fp32",)
PACKAGES = ("keras", "tensorflow", "numpy")
SERVABLE = False
SETTINGS: dict[str, dict[str, Any]] = {"fp32": {"copy_of_parent": True}}


def convert(request: Conversion) -> Converted:
    """Copies the model; `operators` are the primitives of its traced graph, weights and shape arithmetic aside.

    Raises:
        KilnError: It is no model of this project's tensor contract.
    """
    from collections import Counter

    from export.frozen import frozen_of
    from export.graph_inside import ASIDE

    name = f"model{SUFFIX}"
    counts = Counter(node.op for node in frozen_of(request.keras_path, request.scratch).graph.node)
    shutil.copyfile(request.keras_path, request.folder / name)
    return Converted(name, SETTINGS[request.precision], {op: n for op, n in counts.items() if op not in ASIDE})


def inside(path: Path) -> Inside:
    """Kernels in the archive's HDF5 file; multiply-accumulates of the graph that the model traces to."""
    from export import graph_inside
    from export.frozen import freeze

    return Inside(list(graph_inside.stored(path)), graph_inside.macs(freeze(path).graph))


def load(path: Path, threads: int, *, spinning: bool = True) -> Predict:
    """The model through Keras; one call at a time.

    TensorFlow takes `threads` only in a process that has not computed with it yet, and knows no `spinning`.

    Raises:
        KilnError: The file cannot be loaded or breaks the tensor contract.
    """
    import keras

    from export.frozen import load_keras

    limit_threads(threads)
    model = load_keras(path)
    model.jit_compile = False  # XLA is 2 to 8 times slower on a CPU
    lock = threading.Lock()

    def predict(images: NDArray[np.uint8]) -> NDArray[np.float32]:
        with lock:
            return np.asarray(keras.ops.convert_to_numpy(model.predict_on_batch(images)), np.float32)

    return predict


def limit_threads(threads: int) -> None:
    """Tells TensorFlow how many threads to use, if it has not computed yet."""
    import keras

    if keras.backend.backend() != "tensorflow":
        return
    import tensorflow as tf

    try:
        tf.config.threading.set_intra_op_parallelism_threads(threads)
        tf.config.threading.set_inter_op_parallelism_threads(1)
    except RuntimeError:  # it has computed before and keeps the threads it has
        return
