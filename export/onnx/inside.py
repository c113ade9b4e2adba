"""What lies in an ONNX file: its kernels and matrices as stored, and its multiply-accumulates, counted in the graph."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from export.formats import Inside
from export.onnx.graph import PRODUCTS, views

_PASSES = ("DequantizeLinear", "QuantizeLinear", "Cast", "Transpose", "Reshape", "Relu", "Clip")


def inside(path: Path) -> Inside:
    """Reads and counts a model file."""
    import onnx

    model = onnx.load(path)
    return Inside(list(_weights(model.graph)), _macs(model))


def added(model: Any, plain: Any) -> dict[str, int]:
    """What a model's layout adds to that of a plainer one: kernel values, zeros among them, multiply-accumulates."""

    def count(of: Any) -> tuple[int, int, int]:
        arrays = list(_weights(of.graph))
        zeros = sum(int(array.size - np.count_nonzero(array)) for array in arrays)
        return sum(array.size for array in arrays), zeros, _macs(of) or 0

    more = (one - other for one, other in zip(count(model), count(plain), strict=True))
    return dict(zip(("values", "zeros", "macs"), more, strict=True))


def _weights(graph: Any) -> Iterator[NDArray[Any]]:
    """Each tensor that is a product's second operand, as the file has it; one that two layers share counts once."""
    from onnx import numpy_helper

    stored = {tensor.name: tensor for tensor in graph.initializer}
    made = {node.output[0]: node for node in graph.node}
    seen: set[str] = set()
    for node in graph.node:
        if node.op_type not in PRODUCTS:
            continue
        name = node.input[1]
        while name not in stored and name in made and made[name].op_type in _PASSES:
            name = made[name].input[0]
        if name in stored and name not in seen:
            seen.add(name)
            yield numpy_helper.to_array(stored[name])


def _macs(model: Any) -> int | None:
    """Of convolutions and dense layers for one image; None where a shape cannot be inferred."""
    import onnx

    single = onnx.ModelProto()
    single.CopyFrom(model)
    single.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1
    typed = onnx.shape_inference.infer_shapes(single, data_prop=True).graph
    infos = [*typed.value_info, *typed.input, *typed.output]
    shapes = {i.name: tuple(d.dim_value for d in i.type.tensor_type.shape.dim) for i in infos}
    shapes |= {tensor.name: tuple(tensor.dims) for tensor in typed.initializer}
    total = 0
    for node in typed.node:
        if node.op_type not in PRODUCTS:
            continue
        given, weights = shapes.get(node.output[0], ()), shapes.get(node.input[1], ())
        output = (1, *given[1:]) if given else ()  # the batch survives a Reshape only by name
        if not output or not weights or not all((*output, *weights)):
            return None
        transposed = any(a.name == "transB" and a.i for a in node.attribute)
        each = math.prod(weights[1:]) if node.op_type == "Conv" else weights[-1 if transposed else -2]
        total += math.prod(output) * each
    return int(np.int64(total)) * views(model.graph)
