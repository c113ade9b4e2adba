"""Float32 for ONNX: the 1/255 in the first convolution, the flattening's layout in the dense layer behind it."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np

from export import onnx_graph
from export.onnx_graph import INPUT, PIXELS, Core


def finish(core: Core) -> Any:
    """The core as a float model that takes raw bytes: Transpose of bytes, Cast, then the network."""
    import onnx
    from onnx import helper, numpy_helper

    model = copy.deepcopy(core.model)
    onnx_graph.fold_flatten(model)
    scaled = onnx_graph.scale_first_convolution(model, core.scale)
    name, head = INPUT, []
    if core.layout:
        head.append(helper.make_node("Transpose", [name], ["transposed"], perm=core.layout))
        name = "transposed"
    head.append(helper.make_node("Cast", [name], [PIXELS if scaled else "cast"], to=onnx.TensorProto.FLOAT))
    if not scaled:
        model.graph.initializer.append(numpy_helper.from_array(np.float32(core.scale), "scale"))
        head.append(helper.make_node("Mul", ["cast", "scale"], [PIXELS]))
    for position, node in enumerate(head):
        model.graph.node.insert(position, node)
    onnx_graph.take_bytes(model, core.shape)
    return model
