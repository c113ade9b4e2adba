"""A first convolution that integer kernels are fast at: neighbouring pixels side by side as channels.

With three channels, ONNX Runtime's integer convolution gathers its input three bytes at a time, and a small network
spends most of its time there: of SimCNN's 3.0 ms for 32 images, 1.7 in the first of three convolutions. Pixels of a
row lie in memory one after another, so a Reshape reads `group` of them as one of `3 * group` channels for nothing. The
kernel is laid out anew to match: one step of it computes `group / stride` columns of every filter, as channels, and a
second Reshape tells them apart. All integers stay the same, so do the answers, to the last bit; the products that are
added, by zero weights, cost less than the gathering did (SimCNN 2.0 times as fast at batch 32, LeNet 2.5 times).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from export.onnx import graph as onnx_graph
from export.onnx.graph import INPUT, Core

GROUP = 4  # 12 channels: measured best of 2, 4 and 8


@dataclass(frozen=True)
class Plan:
    """How columns map to steps of `group` pixels; `width` is the image's, `out` the output's, in columns."""

    group: int
    stride: int
    pad: int  # pixels on the left
    width: int
    kernel: int
    out: int

    @property
    def columns(self) -> int:
        """Output columns in one step."""
        return self.group // self.stride

    @property
    def before(self) -> int:
        """Steps that the kernel reaches to the left of its own."""
        return math.ceil(self.pad / self.group)

    @property
    def reach(self) -> int:
        """Width of the new kernel in steps."""
        last = (self.columns - 1) * self.stride + self.kernel - 1 - self.pad
        return self.before + 1 + max(0, last // self.group)

    @property
    def steps(self) -> int:
        """Steps that make up a row of outputs; the last one may hold columns too many."""
        return math.ceil(self.out / self.columns)

    @property
    def pad_right(self) -> int:
        """Steps of padding on the right; negative where the kernel never gets to the last pixels."""
        return self.steps - 1 + self.reach - self.before - self.width // self.group


def widen(graph: Any, core: Core, quantized: str) -> int:
    """Lays out the convolution that reads the tensor `quantized` of a QDQ graph; its group, 1 if left as it is.

    The graph must still lack the node that makes `quantized`: `GROUP` pixels of a row, then channels first.
    """
    conv, end, plan = _find(graph, core, quantized)
    if conv is None or plan is None:
        return 1
    made = {node.output[0]: node for node in graph.node}
    scales = made[conv.input[1]]
    filters = onnx_graph.initializer(graph, scales.input[0]).dims[0]
    _rewrite(graph, scales.input[0], lambda weights: lay_out(weights, plan))
    repeated = {*scales.input[1:]} | {*(made[conv.input[2]].input if len(conv.input) > 2 else ())}
    for name in repeated:
        _rewrite(graph, name, lambda values: np.tile(values, plan.columns) if values.size == filters else values)
    _set_attributes(conv, plan)
    _tell_apart(graph, end, filters, plan)
    return plan.group


def _find(graph: Any, core: Core, quantized: str) -> tuple[Any, Any, Plan | None]:
    """The convolution, the QuantizeLinear behind it and the plan, if all are of the plain kind."""
    conv = onnx_graph.only(graph, quantized, "DequantizeLinear")
    conv = conv and onnx_graph.only(graph, conv.output[0], "Conv")
    end = conv and (onnx_graph.only(graph, conv.output[0], "Relu") or conv)
    end = end and onnx_graph.only(graph, end.output[0], "QuantizeLinear")
    if not end or core.layout != (0, 3, 1, 2) or core.shape[1] % GROUP:
        return None, None, None
    told = onnx_graph.attributes(conv)
    pads, strides = told.get("pads", [0, 0, 0, 0]), told.get("strides", [1, 1])
    plain = told.get("group", 1) == 1 and set(told.get("dilations", [1])) == {1}
    plain = plain and told.get("auto_pad", b"NOTSET") in (b"NOTSET", b"VALID") and GROUP % strides[1] == 0
    made = {node.output[0]: node for node in graph.node}
    parts = [made.get(name) for name in conv.input[1:]]
    if not plain or not all(part and part.op_type == "DequantizeLinear" for part in parts):
        return None, None, None
    if any(len(onnx_graph.consumers(graph, name)) > 1 for part in parts if part for name in part.input):
        return None, None, None  # another layer has the same weights
    kernel = told["kernel_shape"][1]
    out = (core.shape[1] + pads[1] + pads[3] - kernel) // strides[1] + 1
    plan = Plan(GROUP, strides[1], pads[1], core.shape[1], kernel, out)
    return (conv, end, plan) if plan.pad_right >= 0 else (None, None, None)


def lay_out(weights: Any, plan: Plan) -> Any:
    """`[filters, 3, tall, wide]` to `[columns * filters, group * 3, tall, reach]`; zero where there is no tap."""
    filters, channels, tall, wide = weights.shape
    new = np.zeros((plan.columns, filters, plan.group, channels, tall, plan.reach), weights.dtype)
    for column in range(plan.columns):
        for tap in range(wide):
            step, place = divmod(column * plan.stride + tap - plan.pad, plan.group)
            new[column, :, place, :, :, step + plan.before] = weights[:, :, :, tap]
    return new.reshape(plan.columns * filters, plan.group * channels, tall, plan.reach)


def _rewrite(graph: Any, name: str, change: Any) -> None:
    from onnx import numpy_helper

    tensor = onnx_graph.initializer(graph, name)
    tensor.CopyFrom(numpy_helper.from_array(change(numpy_helper.to_array(tensor)), name))


def _set_attributes(conv: Any, plan: Plan) -> None:
    import onnx

    told = onnx_graph.attributes(conv)
    pads, strides = told.get("pads", [0, 0, 0, 0]), told.get("strides", [1, 1])
    del conv.attribute[:]
    for name, value in (
        ("kernel_shape", [told["kernel_shape"][0], plan.reach]),
        ("pads", [pads[0], plan.before, pads[2], plan.pad_right]),
        ("strides", [strides[0], 1]),
    ):
        conv.attribute.append(onnx.helper.make_attribute(name, value))


def _tell_apart(graph: Any, end: Any, filters: int, plan: Plan) -> None:
    """Makes columns of the channels again, on the bytes that `end` quantized to.

    ONNX Runtime's convolution and pooling work with channels last, and both Transposes vanish into them.
    """
    from onnx import helper, numpy_helper

    name, wide = end.output[0], plan.steps * plan.columns
    end.output[0] = "stem_steps"
    constants = {"stem_shape": [0, -1, wide, filters], "stem_start": [0], "stem_end": [plan.out], "stem_axis": [2]}
    for key, value in constants.items():
        graph.initializer.append(numpy_helper.from_array(np.array(value, np.int64), key))
    nodes = [
        helper.make_node("Transpose", ["stem_steps"], ["stem_last"], perm=(0, 2, 3, 1)),
        helper.make_node("Reshape", ["stem_last", "stem_shape"], ["stem_columns"]),
        helper.make_node("Slice", ["stem_columns", "stem_start", "stem_end", "stem_axis"], ["stem_cut"]),
        helper.make_node("Transpose", ["stem_columns"], [name], perm=(0, 3, 1, 2)),
    ]
    if wide > plan.out:
        nodes[-1].input[0] = "stem_cut"
    else:
        del nodes[2]
    at = list(graph.node).index(end) + 1
    for position, node in enumerate(nodes):
        graph.node.insert(at + position, node)


def side_by_side(graph: Any, core: Core, group: int) -> str:
    """Puts the Reshape of raw bytes first, if `group` is more than 1; the name of what to transpose."""
    from onnx import helper, numpy_helper

    if group == 1:
        return INPUT
    height, width, channels = core.shape
    shape = np.array([0, height, width // group, channels * group], np.int64)
    graph.initializer.append(numpy_helper.from_array(shape, "side_by_side_shape"))
    graph.node.insert(0, helper.make_node("Reshape", [INPUT, "side_by_side_shape"], ["side_by_side"]))
    return "side_by_side"
