"""What one image asks of a variant: multiply-accumulates, weights and activations, counted in its ONNX graph.

Formats that hide their graph are given their ONNX sibling's of the same transform, since the arithmetic is the same.
"""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

from benchmarks.results import Work
from catalog import Store, Variant, VariantCard

PRODUCTS = ("Conv", "ConvTranspose", "Gemm", "MatMul", "ConvInteger", "MatMulInteger", "QLinearConv", "QLinearMatMul")
# Operators whose outputs are counted as activations; activation functions are fused into what stands before them.
WRITING = (*PRODUCTS, "MaxPool", "AveragePool", "GlobalAveragePool", "ReduceMean", "Add", "Concat", "Mul")


def of(store: Store, card: VariantCard, model_macs: int, parameters: int) -> Work | None:
    """The work of a variant: of its transform's float ONNX graph, else of its own graph, else by the card.

    The float graph comes first because an int8 one may be padded, and padding is no work that anybody asked for.
    """
    sibling = store.variant_dir(Variant(card.variant.model, "onnx", "fp32", card.variant.transform)) / "model.onnx"
    own = store.variant_dir(card.variant) / card.file
    for path in (sibling, own):
        if path.suffix == ".onnx" and path.is_file() and (found := counted(path)) is not None:
            return dataclasses.replace(found, exact=path == own)
    if card.variant.transform and card.macs is None:
        return None  # the model's own figures are those of another network
    return Work(card.macs or model_macs, parameters, 0, exact=False)


def counted(path: Path) -> Work | None:
    """The counts of an ONNX file at batch 1; None where it cannot be read or `onnx` is not installed."""
    try:
        import onnx
        from onnx import shape_inference
    except ImportError:
        return None
    try:
        model = onnx.load(path, load_external_data=False)
        for tensor in model.graph.input:
            tensor.type.tensor_type.shape.dim[0].dim_value = 1
        graph = shape_inference.infer_shapes(model).graph
    except Exception:  # protobuf and onnx have their own types of error; the count is no reason to lose the row
        return None
    weights = {tensor.name: list(tensor.dims) for tensor in graph.initializer}
    made_by = {name: node for node in graph.node for name in node.output}
    shapes = {v.name: [d.dim_value for d in v.type.tensor_type.shape.dim] for v in (*graph.value_info, *graph.output)}
    macs = activations = elements = 0
    for node in graph.node:
        output = math.prod(max(1, size) for size in shapes.get(node.output[0], []))
        if node.op_type in PRODUCTS:
            kernel = _weights_of(node, weights, made_by)
            macs += output * _per_output(node, kernel)
            elements += math.prod(kernel)
        if node.op_type in WRITING and node.op_type != "Mul":
            activations += output
    return Work(macs, elements, activations)


def _weights_of(node: Any, weights: dict[str, list[int]], made_by: dict[str, Any]) -> list[int]:
    """Shape of the largest constant an operator multiplies by, looked for behind a dequantization or a transpose."""
    found: list[list[int]] = []
    for name in node.input:
        while name not in weights and (maker := made_by.get(name)) is not None:
            if maker.op_type not in ("DequantizeLinear", "QuantizeLinear", "Identity", "Transpose", "Cast"):
                break
            name = maker.input[0]
        if name in weights:
            found.append(weights[name])
    return max(found, key=math.prod, default=[])


def _per_output(node: Any, kernel: list[int]) -> int:
    """Multiply-accumulates for one element of the output."""
    if not kernel:
        return 0
    if "Conv" in node.op_type:
        return math.prod(kernel[1:])  # [out, in / groups, height, width]
    transposed = any(a.name == "transB" and a.i for a in node.attribute)
    return kernel[1] if transposed else kernel[0]
