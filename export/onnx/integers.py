"""That what runs of an int8 model computes in integers, read in the graph which ONNX Runtime makes of the file."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np

from export.onnx import graph as onnx_graph
from export.onnx.graph import INPUT, Core

DENSE = ("QGemm", "QLinearMatMul", "MatMulIntegerToFloat", "MatMulInteger")
CONVOLUTION = ("QLinearConv", "ConvInteger")
_FUSED = ("Add", "Mul", "AveragePool", "GlobalAveragePool", "MaxPool", "Relu", "Clip")  # that have integer kernels
_MOVES = (
    "Transpose",
    "Reshape",
    "Slice",
    "Concat",
    "Flatten",
    "MaxPool",
    "NhwcMaxPool",
)  # these move bytes about and compute nothing


def check(core: Core, optimized: Any, floats: int = 0) -> None:
    """That the graph which runs computes in integers from the first byte on, `floats` layers aside.

    Raises:
        ValueError: A convolution or dense layer stayed float, the bytes meet a float step first, or an addition or a
            pooling between integers is in float; says which.
    """
    wanted = Counter(node.op_type for node in core.model.graph.node)
    present = Counter(node.op_type for node in optimized.graph.node)
    spared = floats
    for kinds, integer in ((("Conv",), CONVOLUTION), (("MatMul", "Gemm"), DENSE)):
        asked, got = (sum(count[kind] for kind in names) for count, names in ((wanted, kinds), (present, integer)))
        spared -= max(0, asked - got)
        if spared < 0:
            raise ValueError(f"only {got} of {asked} {kinds[0]} run in integers; the graph holds {dict(present)}")
    if not floats:
        _check_pixels(optimized.graph, INPUT, core.scale)
        for node in optimized.graph.node:
            if node.op_type == "DequantizeLinear":
                _check_float_steps(optimized.graph, node.output[0])


def _check_float_steps(graph: Any, name: str) -> None:
    for node in onnx_graph.consumers(graph, name):
        if node.op_type in _FUSED:
            raise ValueError(f"{node.op_type} runs in float between integers: {node.name or node.output[0]}")


def _check_pixels(graph: Any, name: str, scale: float) -> None:
    from onnx import numpy_helper

    for node in onnx_graph.consumers(graph, name):
        if node.op_type in _MOVES:
            _check_pixels(graph, node.output[0], scale)
        elif node.op_type not in (*CONVOLUTION, *DENSE):
            raise ValueError(f"the raw pixels meet {node.op_type} before the first integer product")
        elif node.op_type in ("QLinearConv", "QLinearMatMul", "QGemm"):  # (x, x_scale, x_zero_point, …)
            found = [onnx_graph.initializer(graph, node.input[i]) for i in (1, 2)]
            told, zero = (float(numpy_helper.to_array(tensor).reshape(-1)[0]) for tensor in found)
            if zero != 0 or not np.isclose(told, scale, rtol=1e-6):
                raise ValueError(f"the pixels' scale is {told} and zero point {zero:g}, not {scale} and 0")
