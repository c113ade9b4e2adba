"""Float ONNX, 32 and 16 bits: the 1/255 in the first convolution, the flattening's layout in the dense layer."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np

from export.onnx import graph as onnx_graph
from export.onnx.graph import INPUT, PIXELS, Core


def finish(core: Core) -> Any:
    """The core as a float model that takes raw bytes: Transpose of bytes, Cast, then the network."""
    model = copy.deepcopy(core.model)
    onnx_graph.fold_flatten(model)
    head(model, core, fold=True)
    onnx_graph.take_bytes(model, core)
    return model


def head(model: Any, core: Core, fold: bool) -> None:
    """Puts what makes pixels of bytes before the network; `fold` multiplies the scale into the first convolution."""
    import onnx
    from onnx import helper, numpy_helper

    scaled = fold and onnx_graph.scale_first_convolution(model, core.scale)
    name, nodes = INPUT, []
    if core.layout:
        nodes.append(helper.make_node("Transpose", [name], ["transposed"], perm=core.layout))
        name = "transposed"
    nodes.append(helper.make_node("Cast", [name], [PIXELS if scaled else "cast"], to=onnx.TensorProto.FLOAT))
    if not scaled:
        model.graph.initializer.append(numpy_helper.from_array(np.float32(core.scale), "scale"))
        nodes.append(helper.make_node("Mul", ["cast", "scale"], [PIXELS]))
    for position, node in enumerate(nodes):
        model.graph.node.insert(position, node)


def half(core: Core) -> Any:
    """The core with its numbers in float16: half the file, and half the traffic where a device computes in it.

    The 1/255 stays a step of its own: multiplied into kernels it would push them below the smallest float16 of full
    precision. Softmax is float32, as the answers are. ONNX Runtime's CPU provider has no float16 kernels on x86 and
    computes in float32, from weights that were rounded.
    """
    import onnx
    from onnx import helper, numpy_helper

    model = copy.deepcopy(core.model)
    onnx_graph.fold_flatten(model)
    head(model, core, fold=False)
    graph = model.graph
    for tensor in graph.initializer:
        if tensor.data_type == onnx.TensorProto.FLOAT:
            values = numpy_helper.to_array(tensor)
            tensor.CopyFrom(numpy_helper.from_array(_rounded(values, tensor.name), tensor.name))
    for node in graph.node:
        for attribute in node.attribute:
            if node.op_type == "Cast" and attribute.name == "to" and attribute.i == onnx.TensorProto.FLOAT:
                attribute.i = onnx.TensorProto.FLOAT16
    for place, node in reversed(list(enumerate(graph.node))):
        if node.op_type == "Softmax":
            graph.node.insert(place, helper.make_node("Cast", [node.input[0]], ["logits32"], to=onnx.TensorProto.FLOAT))
            node.input[0] = "logits32"
    onnx_graph.take_bytes(model, core)
    return model


def _rounded(values: Any, name: str) -> Any:
    if float(np.abs(values).max(initial=0.0)) > np.finfo(np.float16).max:
        raise ValueError(f"{name} holds {np.abs(values).max():g}, more than float16 can")
    return values.astype(np.float16)
