"""Reads and rewrites a LiteRT file by its schema: Softmax in float, and what really lies in the buffers."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from export.formats import Inside

_PRODUCTS = ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED")


def scaled_pixels(graph: Any, image: str) -> tuple[str, float]:
    """In a frozen TensorFlow graph, the tensor that holds the scaled pixels, and the scale: what bytes stand for.

    Raises:
        ValueError: The graph does not begin with a cast to float.
    """
    name, scale, cast = image.split(":")[0], 1.0, False
    nodes = {node.name: node for node in graph.node}
    while True:
        readers = [n for n in graph.node if name in [i.split(":")[0] for i in n.input]]
        if len(readers) != 1:
            break
        node = readers[0]
        number = _number(nodes, [i for i in node.input if i.split(":")[0] != name])
        if node.op == "Mul" and cast and number is not None:
            scale *= number
        elif node.op == "Cast":
            cast = True
        elif not (node.op in ("Add", "AddV2") and cast and number == 0):
            break
        name = node.name
    if not cast:
        raise ValueError("the image must be cast to float first")
    return f"{name}:0", scale


def _number(nodes: dict[str, Any], others: list[str]) -> float | None:
    """The scalar constant that is the other operand, if it is one."""
    import tensorflow as tf

    node = nodes.get(others[0].split(":")[0]) if len(others) == 1 else None
    if node is None or node.op != "Const":
        return None
    value = tf.make_ndarray(node.attr["value"].tensor)
    return float(value.reshape(())) if value.size == 1 else None


def float_logits(content: bytes) -> bytes:
    """Moves the last DEQUANTIZE before the SOFTMAX it follows: probabilities in steps of 1/256 are none.

    Raises:
        ValueError: The graph does not end so.
    """
    import flatbuffers
    from tensorflow.lite.python import schema_py_generated as schema

    model = _read(content)
    graph = model.subgraphs[0]
    kinds = _kinds(model)
    if [kinds[op.opcodeIndex] for op in graph.operators[-2:]] != ["SOFTMAX", "DEQUANTIZE"]:
        raise ValueError(f"the graph ends with {[kinds[op.opcodeIndex] for op in graph.operators[-2:]]}")
    softmax, dequantize = graph.operators[-2:]
    middle = softmax.outputs[0]  # was the quantized probabilities, becomes the float logits
    graph.tensors[middle].type, graph.tensors[middle].quantization = schema.TensorType.FLOAT32, None
    dequantize.inputs, softmax.inputs = softmax.inputs, dequantize.inputs
    dequantize.outputs, softmax.outputs = softmax.outputs, dequantize.outputs
    graph.operators[-2:] = [dequantize, softmax]
    builder = flatbuffers.Builder(len(content))
    builder.Finish(model.Pack(builder), file_identifier=b"TFL3")
    return bytes(builder.Output())


def inside(path: Path) -> Inside:
    """Kernels and matrices in the file's buffers, and its multiply-accumulates by the shapes it states."""
    model = _read(path.read_bytes())
    graph, kinds = model.subgraphs[0], _kinds(model)
    made = {op.outputs[0]: op for op in graph.operators}
    held, macs = {}, 0
    for op in graph.operators:
        kind = kinds[op.opcodeIndex]
        if kind not in _PRODUCTS:
            continue
        place = op.inputs[1]
        while place in made and kinds[made[place].opcodeIndex] == "DEQUANTIZE":
            place = made[place].inputs[0]
        held[place] = graph.tensors[place]
        shape, output = graph.tensors[place].shape, graph.tensors[op.outputs[0]].shape
        each = math.prod(shape[1:3]) if kind == "DEPTHWISE_CONV_2D" else math.prod(shape[1:])
        macs += int(math.prod(output[1:]) * each)
    return Inside(list(_arrays(model, held.values())), macs)


def operators(path: Path) -> list[tuple[str, str]]:
    """Each operator of the file and the element type it puts out, in order."""
    model = _read(path.read_bytes())
    graph, kinds = model.subgraphs[0], _kinds(model)
    types = _names("TensorType")
    return [(kinds[op.opcodeIndex], types[graph.tensors[op.outputs[0]].type]) for op in graph.operators]


def _arrays(model: Any, tensors: Any) -> Iterator[NDArray[Any]]:
    types = _names("TensorType")
    for tensor in tensors:
        data = model.buffers[tensor.buffer].data
        if data is not None and len(data):
            yield np.frombuffer(bytes(data), np.dtype(types[tensor.type].lower())).reshape(tensor.shape)


def _read(content: bytes) -> Any:
    from tensorflow.lite.python import schema_py_generated as schema

    return schema.ModelT.InitFromObj(schema.Model.GetRootAsModel(content, 0))


def _names(enum: str) -> dict[int, str]:
    from tensorflow.lite.python import schema_py_generated as schema

    return {code: name for name, code in vars(getattr(schema, enum)).items() if isinstance(code, int)}


def _kinds(model: Any) -> list[str]:
    names = _names("BuiltinOperator")
    return [names[max(code.builtinCode, code.deprecatedBuiltinCode)] for code in model.operatorCodes]
