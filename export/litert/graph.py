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
    from tensorflow.lite.python import schema_py_generated as schema

    model = read(content)
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
    return written(model)


def both_ways(content: bytes, classes: int) -> bytes:
    """Puts the mirrored images behind the images, as one batch, and takes the mean of the two halves of the answers."""
    from tensorflow.lite.python import schema_py_generated as schema

    model = read(content)
    graph = model.subgraphs[0]
    image, answer = graph.inputs[0], graph.outputs[0]
    sizes = graph.tensors[image].shape
    axis, halves, first = (_constant(model, value) for value in ([2], [2, -1, classes], [0]))
    mirrored, both = (_tensor(model, name, sizes, like=image) for name in ("mirrored", "both_ways"))
    each, apart = (
        _tensor(model, name, shape, like=answer)
        for name, shape in (("each", (1, classes)), ("halves", (2, 1, classes)))
    )
    for op in graph.operators:
        op.inputs = [both if place == image else place for place in op.inputs]
        op.outputs = [each if place == answer else place for place in op.outputs]
    joined, mean = schema.ConcatenationOptionsT(), schema.ReducerOptionsT()
    joined.axis, mean.keepDims = 0, False
    graph.operators[:0] = [
        _operator(model, "REVERSE_V2", [image, axis], mirrored, "ReverseV2Options", schema.ReverseV2OptionsT()),
        _operator(model, "CONCATENATION", [image, mirrored], both, "ConcatenationOptions", joined),
    ]
    graph.operators += [
        _operator(model, "RESHAPE", [each, halves], apart, "ReshapeOptions", schema.ReshapeOptionsT()),
        _operator(model, "MEAN", [apart, first], answer, "ReducerOptions", mean),
    ]
    return written(model)


def _constant(model: Any, values: list[int]) -> int:
    from tensorflow.lite.python import schema_py_generated as schema

    buffer = schema.BufferT()
    buffer.data = np.frombuffer(np.array(values, np.int32).tobytes(), np.uint8)
    model.buffers.append(buffer)
    tensor = schema.TensorT()
    tensor.shape, tensor.type, tensor.buffer = [len(values)], schema.TensorType.INT32, len(model.buffers) - 1
    tensor.name = f"constant_{tensor.buffer}"
    model.subgraphs[0].tensors.append(tensor)
    return len(model.subgraphs[0].tensors) - 1


def _tensor(model: Any, name: str, shape: Any, like: int) -> int:
    """A new tensor of another's type and scale."""
    from tensorflow.lite.python import schema_py_generated as schema

    tensors, buffer = model.subgraphs[0].tensors, schema.BufferT()
    model.buffers.append(buffer)
    tensor = schema.TensorT()
    tensor.name, tensor.shape, tensor.buffer = name, list(shape), len(model.buffers) - 1
    tensor.shapeSignature = [
        -1 if place == len(shape) - len(tensors[like].shape) else size for place, size in enumerate(shape)
    ]
    tensor.type, tensor.quantization = tensors[like].type, tensors[like].quantization
    tensors.append(tensor)
    return len(tensors) - 1


def _operator(model: Any, kind: str, inputs: list[int], output: int, options_kind: str, options: Any) -> Any:
    from tensorflow.lite.python import schema_py_generated as schema

    code = getattr(schema.BuiltinOperator, kind)
    opcode = schema.OperatorCodeT()
    opcode.builtinCode = opcode.deprecatedBuiltinCode = code
    opcode.version = 1
    model.operatorCodes.append(opcode)
    op = schema.OperatorT()
    op.opcodeIndex, op.inputs, op.outputs = len(model.operatorCodes) - 1, inputs, [output]
    op.builtinOptionsType, op.builtinOptions = getattr(schema.BuiltinOptions, options_kind), options
    return op


def written(model: Any) -> bytes:
    """A file of the model."""
    import flatbuffers

    builder = flatbuffers.Builder(1 << 16)
    builder.Finish(model.Pack(builder), file_identifier=b"TFL3")
    return bytes(builder.Output())


def inside(path: Path) -> Inside:
    """Kernels and matrices in the file's buffers, and its multiply-accumulates by the shapes it states."""
    model = read(path.read_bytes())
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
    views = 1 + any(kinds[op.opcodeIndex] == "CONCATENATION" and graph.inputs[0] in op.inputs for op in graph.operators)
    return Inside(list(_arrays(model, held.values())), macs * views)


class Product:
    """A quantized convolution or dense layer of a model that was read: its int8 kernel, int32 bias and their scales.

    `axis` is the kernel's axis of output channels; there is one scale of each, or one of all.
    """

    def __init__(self, model: Any, op: Any, axis: int) -> None:
        tensors, self.axis = model.subgraphs[0].tensors, axis
        self._buffers = [model.buffers[tensors[place].buffer] for place in op.inputs[1:] if place >= 0]
        held = self._held = tensors[op.inputs[1]]
        self.kernel = np.frombuffer(bytes(self._buffers[0].data), np.int8).reshape(held.shape)
        self.scales = np.asarray(held.quantization.scale, np.float64)
        self.bias: NDArray[np.int32] | None = None
        if len(self._buffers) > 1 and op.inputs[2] >= 0:
            self.bias = np.frombuffer(bytes(self._buffers[1].data), np.int32)
            self._held_bias = tensors[op.inputs[2]]
            self.bias_scales = np.asarray(self._held_bias.quantization.scale, np.float64)

    def set_scales(self, scales: NDArray[np.float64]) -> None:
        """Gives the kernel other scales, and the bias those that go with them; the bias stays what it stands for."""
        factor, self.scales = scales / self.scales, scales
        self._held.quantization.scale = scales.astype(np.float32)
        if self.bias is not None:
            self.set_bias(np.round(self.bias / factor).astype(np.int32))
            self.bias_scales = self.bias_scales * factor
            self._held_bias.quantization.scale = self.bias_scales.astype(np.float32)

    def set_kernel(self, kernel: NDArray[np.int8]) -> None:
        """Puts other integers in the kernel's place."""
        self._buffers[0].data = np.frombuffer(np.ascontiguousarray(kernel, np.int8).tobytes(), np.uint8)

    def set_bias(self, bias: NDArray[np.int32]) -> None:
        """Puts another bias in its place."""
        self.bias = bias
        self._buffers[1].data = np.frombuffer(np.ascontiguousarray(bias, np.int32).tobytes(), np.uint8)


def products(model: Any) -> list[Product]:
    """The layers with an int8 kernel that is theirs alone."""
    from tensorflow.lite.python import schema_py_generated as schema

    graph, kinds = model.subgraphs[0], _kinds(model)
    buffers = [tensor.buffer for tensor in graph.tensors]
    found = []
    for op in graph.operators:
        kind = kinds[op.opcodeIndex]
        tensor = graph.tensors[op.inputs[1]] if kind in _PRODUCTS else None
        if tensor is None or tensor.type != schema.TensorType.INT8 or model.buffers[tensor.buffer].data is None:
            continue
        if buffers.count(tensor.buffer) == 1:
            found.append(Product(model, op, 3 if kind == "DEPTHWISE_CONV_2D" else 0))
    return found


_FIXED = ("SOFTMAX", "LOG_SOFTMAX", "LOGISTIC", "TANH", "L2_NORMALIZATION")  # their scales are given


def activations(model: Any) -> list[tuple[float, int]]:
    """Scale and zero point of every int8 activation, each once: not of pixels and logits, nor where they are given."""
    graph, kinds = model.subgraphs[0], _kinds(model)
    fixed = {op.inputs[0] for op in graph.operators if kinds[op.opcodeIndex] == "DEQUANTIZE"}
    fixed |= {op.outputs[0] for op in graph.operators if kinds[op.opcodeIndex] in _FIXED}
    fixed |= {op.outputs[0] for op in graph.operators if graph.inputs[0] in op.inputs}
    kept = {_scale(graph.tensors[place]) for place in fixed}
    made = {place for op in graph.operators for place in op.outputs} - fixed
    found = {_scale(graph.tensors[place]) for place in sorted(made)}
    return sorted(pair for pair in found - kept if pair is not None)


def rescale(model: Any, scales: dict[tuple[float, int], tuple[float, int]]) -> None:
    """Gives activations another scale and zero point, by those they have; biases follow their layer's input."""
    graph, kinds = model.subgraphs[0], _kinds(model)
    for op in graph.operators:
        old = _scale(graph.tensors[op.inputs[0]])
        if kinds[op.opcodeIndex] in _PRODUCTS and old in scales and len(op.inputs) > 2 and op.inputs[2] >= 0:
            held, factor = graph.tensors[op.inputs[2]], scales[old][0] / old[0]
            bias = np.frombuffer(bytes(model.buffers[held.buffer].data), np.int32)
            moved = np.clip(np.round(bias / factor), -(2**31), 2**31 - 1).astype(np.int32)
            model.buffers[held.buffer].data = np.frombuffer(moved.tobytes(), np.uint8)
            held.quantization.scale = (np.asarray(held.quantization.scale, np.float64) * factor).astype(np.float32)
    made = {place for op in graph.operators for place in op.outputs}
    for place in sorted(made):
        if (old := _scale(graph.tensors[place])) in scales:
            told = graph.tensors[place].quantization
            told.scale, told.zeroPoint = np.array([scales[old][0]], np.float32), np.array([scales[old][1]], np.int64)
            told.min = told.max = None


def _scale(tensor: Any) -> tuple[float, int] | None:
    """Scale and zero point of an int8 activation; None of any other tensor."""
    from tensorflow.lite.python import schema_py_generated as schema

    told = tensor.quantization
    if tensor.type != schema.TensorType.INT8 or told is None or told.scale is None or len(told.scale) != 1:
        return None
    return float(told.scale[0]), int(told.zeroPoint[0])


def operators(content: bytes) -> list[tuple[str, str]]:
    """Each operator of a file and the element type it puts out, in order."""
    model = read(content)
    graph, kinds = model.subgraphs[0], _kinds(model)
    types = _names("TensorType")
    return [(kinds[op.opcodeIndex], types[graph.tensors[op.outputs[0]].type]) for op in graph.operators]


def _arrays(model: Any, tensors: Any) -> Iterator[NDArray[Any]]:
    types = _names("TensorType")
    for tensor in tensors:
        data = model.buffers[tensor.buffer].data
        if data is not None and len(data):
            yield np.frombuffer(bytes(data), np.dtype(types[tensor.type].lower())).reshape(tensor.shape)


def read(content: bytes) -> Any:
    """The model in a file, as objects of the schema."""
    from tensorflow.lite.python import schema_py_generated as schema

    return schema.ModelT.InitFromObj(schema.Model.GetRootAsModel(content, 0))


def _names(enum: str) -> dict[int, str]:
    from tensorflow.lite.python import schema_py_generated as schema

    return {code: name for name, code in vars(getattr(schema, enum)).items() if isinstance(code, int)}


def _kinds(model: Any) -> list[str]:
    names = _names("BuiltinOperator")
    return [names[max(code.builtinCode, code.deprecatedBuiltinCode)] for code in model.operatorCodes]
