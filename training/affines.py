"""What the layers of an ONNX graph compute, in Keras' layout: of a float graph, or of the integers of an int8 one.

An exporter folds BatchNorm into the kernel before it and the scale of the pixels into the first. In an int8 graph each
weight is an integer, a scale and a zero point, which come to a float that is within half a step of the one it was made
of; its first convolution may read several pixels of a row as channels (`export/onnx/stem.py`), which is undone here.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from catalog import KilnError

_PRODUCTS = ("Conv", "MatMul", "Gemm")
_LAYOUT = ("Reshape", "Transpose", "Cast")
_FLATTENS = ("Reshape", "Flatten", "Squeeze", "QuantizeLinear", "DequantizeLinear")


@dataclass(eq=False)
class Affine:
    """What a convolution or matrix product computes with the factors and offsets behind it, in Keras' layout.

    That of the first layer is for pixels of 0 to 255.
    """

    kernel: NDArray[np.float32]  # [kh, kw, in, out], depthwise [kh, kw, in, 1], or dense [in, out]
    bias: NDArray[np.float32]  # [channels out]
    channels_last: bool = False  # the order in which a dense kernel meets the features of a map


def read(path: Path) -> list[Affine]:
    """Those of a graph, from its beginning to its end.

    Raises:
        KilnError: onnx is not installed.
    """
    try:
        import onnx
    except ImportError as error:
        raise KilnError(f"reading {path} needs onnx; run: pip install -r requirements/export.txt") from error

    return list(_affines(onnx.load(str(path)).graph))


def narrowed(wide: Affine, layer: Any) -> Affine:
    """The first convolution as `layer` has it, of one that reads `group` pixels of a row as channels of one step.

    Its filters come once for every output column of a step; those of the first column have all taps.
    """
    tall, taps, channels, filters = layer.kernel.shape
    group, columns = wide.kernel.shape[2] // channels, wide.kernel.shape[3] // filters
    pad = _left(layer) if layer.padding == "same" else 0
    reach = wide.kernel.shape[1]
    first = wide.kernel.reshape(tall, reach, group, channels, columns, filters)[..., 0, :]
    in_a_row = first.reshape(tall, reach * group, channels, filters)  # a tap a pixel, most of them zero
    begin = -(-pad // group) * group - pad
    return Affine(np.ascontiguousarray(in_a_row[:, begin : begin + taps]), wide.bias[:filters])


def _left(layer: Any) -> int:
    """Pixels that `same` pads on the left."""
    width, (_, stride), (_, taps) = layer.input.shape[2], layer.strides, layer.kernel_size
    return int(max((-(-width // stride) - 1) * stride + taps - width, 0) // 2)


def _affines(graph: Any) -> Iterator[Affine]:
    constants = _constants(graph)
    makers = {name: node for node in graph.node for name in node.output}
    takers: dict[str, list[Any]] = {}
    for node in graph.node:
        for name in node.input:
            takers.setdefault(name, []).append(node)
    for node in graph.node:
        if node.op_type not in _PRODUCTS or node.input[1] not in constants:
            continue
        kernel = constants[node.input[1]].astype(np.float32)
        if node.op_type == "Gemm" and any(one.name == "transB" and one.i for one in node.attribute):
            kernel = kernel.T
        bias = constants[node.input[2]] if len(node.input) > 2 else np.float32(0)
        scale, offset = _behind(node, takers, constants)
        channels = kernel.shape[0 if node.op_type == "Conv" else 1]
        along = (-1, *[1] * (kernel.ndim - 1)) if node.op_type == "Conv" else (1, -1)
        kernel = kernel * np.broadcast_to(scale, channels).reshape(along) * _of_a_byte(node, makers, constants)
        if node.op_type == "Conv":  # [out, in / groups, kh, kw]
            grouped = any(one.name == "group" and one.i > 1 for one in node.attribute)
            kernel = kernel.transpose((2, 3, 0, 1) if grouped else (2, 3, 1, 0))
        bias = np.broadcast_to(bias * scale + offset, channels).astype(np.float32)
        yield Affine(kernel.astype(np.float32), bias, _transposed(node, makers))


def _constants(graph: Any) -> dict[str, NDArray[Any]]:
    """Tensors that no image changes: as they are stored, and integers as the floats that they stand for."""
    from onnx import numpy_helper

    found = {one.name: numpy_helper.to_array(one) for one in graph.initializer}
    for node in graph.node:
        if node.op_type != "DequantizeLinear" or node.input[0] not in found:
            continue
        integers, scale = found[node.input[0]].astype(np.float32), found[node.input[1]]
        zero = found[node.input[2]].astype(np.float32) if len(node.input) > 2 else np.float32(0)
        if scale.size > 1:
            axis = next((one.i for one in node.attribute if one.name == "axis"), 1)
            along = [-1 if place == axis % integers.ndim else 1 for place in range(integers.ndim)]
            scale, zero = scale.reshape(along), np.broadcast_to(zero, scale.size).reshape(along)
        found[node.output[0]] = (integers - zero) * scale
    return found


def _behind(node: Any, takers: dict[str, list[Any]], constants: dict[str, Any]) -> tuple[Any, Any]:
    """The factors and offsets, each `[channels]` or one for all, that a node's output meets before anything else."""
    scale, offset = np.float32(1), np.float32(0)
    while len(followers := takers.get(node.output[0], [])) == 1 and followers[0].op_type in ("Mul", "Add"):
        (node,) = followers
        given = [constants[name].reshape(-1) for name in node.input if name in constants]
        if not given:
            break  # a residual connection
        if node.op_type == "Mul":
            scale, offset = scale * given[0], offset * given[0]
        else:
            offset = offset + given[0]
    return scale, offset


def _transposed(node: Any, makers: dict[str, Any]) -> bool:
    """Whether the map that a node reads was given its channels last, before it was flattened."""
    maker = makers.get(node.input[0])
    while maker is not None and maker.op_type in _FLATTENS:
        maker = makers.get(maker.input[0])
    return maker is not None and maker.op_type == "Transpose"


def _of_a_byte(node: Any, makers: dict[str, Any], constants: dict[str, Any]) -> Any:
    """What a byte of the images comes to where an int8 graph calls it quantized; 1 for whatever reads no bytes."""
    maker = makers.get(node.input[0])
    if maker is None or maker.op_type != "DequantizeLinear":
        return np.float32(1)
    scale, name = constants[maker.input[1]], maker.input[0]
    while name in makers and makers[name].op_type in _LAYOUT:
        name = makers[name].input[0]
    return np.float32(1) if name in makers else scale.reshape(())
