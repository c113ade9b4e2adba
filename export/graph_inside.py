"""What lies in a frozen TensorFlow graph and in a `.keras` file: weights as stored, and multiply-accumulates."""

from __future__ import annotations

import io
import math
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

ASIDE = ("Const", "Placeholder", "Identity", "NoOp")  # operators that compute nothing
_PRODUCTS = ("Conv2D", "DepthwiseConv2dNative", "MatMul")


def weights(graph: Any) -> Iterator[NDArray[Any]]:
    """The constants that are second operands of convolutions and dense layers; a shared one counts once."""
    import tensorflow as tf

    nodes = {node.name: node for node in graph.node}
    seen: set[str] = set()
    for node in graph.node:
        if node.op not in _PRODUCTS:
            continue
        found = nodes.get(node.input[1].split(":")[0])
        while found is not None and found.op in ("Identity", "Reshape", "Cast"):
            found = nodes.get(found.input[0].split(":")[0])
        if found is not None and found.op == "Const" and found.name not in seen:
            seen.add(found.name)
            yield tf.make_ndarray(found.attr["value"].tensor)


def macs(graph: Any) -> int | None:
    """Of convolutions and dense layers for one image, by the shapes TensorFlow infers; None where it cannot."""
    import tensorflow as tf

    with tf.Graph().as_default() as whole:
        tf.graph_util.import_graph_def(graph, name="")
    total = 0
    for operation in whole.get_operations():
        if operation.type not in _PRODUCTS:
            continue
        output, kernel = operation.outputs[0].shape.as_list()[1:], operation.inputs[1].shape.as_list()
        if None in output or None in kernel:
            return None
        # Conv2D [kh, kw, in / groups, out], depthwise [kh, kw, in, multiplier], MatMul [in, out]
        each = {"Conv2D": kernel[:3], "DepthwiseConv2dNative": kernel[:2], "MatMul": kernel[:1]}[operation.type]
        total += math.prod(output) * math.prod(each)
    return total


def stored(path: Path) -> Iterator[NDArray[Any]]:
    """Kernels and matrices in the HDF5 file within a `.keras` archive: what has two axes or more."""
    import h5py
    import numpy as np

    with zipfile.ZipFile(path) as archive:
        content = io.BytesIO(archive.read("model.weights.h5"))
    found: list[NDArray[Any]] = []
    with h5py.File(content) as file:
        file.visititems(lambda name, item: found.append(np.asarray(item)) if _is_kernel(name, item) else None)
    yield from found


def _is_kernel(name: str, item: Any) -> bool:
    """An optimizer's moments have the same shapes and are no weights."""
    import h5py

    return isinstance(item, h5py.Dataset) and item.ndim >= 2 and not name.startswith("optimizer/")
