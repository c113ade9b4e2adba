"""From a frozen TensorFlow graph to a clean ONNX one, and the rewrites both precisions share.

tf2onnx begins a network with Cast, Mul(1/255), Add(0) and Transpose, and ends its convolutions with a Transpose before
the flattening. `core` cuts the beginning off, so that each precision can put its own there: float multiplies the 1/255
into the first convolution, int8 calls the raw byte the quantized pixel.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import catalog
from export.frozen import Frozen, frozen_of

OPSET = 17  # the newest that every ONNX Runtime since 1.12, TensorRT 8.6 and OpenVINO 2023 read; nothing here needs 18
IR_VERSION = 8  # the one that came with opset 17 (ONNX 1.12)
INPUT, OUTPUT, PIXELS = "images", "probabilities", "pixels"
PRODUCTS = ("Conv", "MatMul", "Gemm")


@dataclass(frozen=True)
class Core:
    """A float network from `pixels` to `probabilities`, and how raw bytes become its pixels.

    `pixels` are `images` transposed by `layout` and multiplied by `scale`; `layout` is empty for none. Where it is
    `mirrored`, the model's answer is the mean over the image and its mirror image.
    """

    model: Any
    layout: tuple[int, ...]
    scale: float
    shape: tuple[int, int, int]  # height, width, 3
    mirrored: bool = False


def core_of(keras_path: Path, scratch: Path | None) -> Core:
    """The core of a Keras model; one export makes it once, in `scratch`, and later conversions need no TensorFlow.

    Raises:
        KilnError: It is no model of this project's tensor contract.
        ValueError: As `core`.
    """
    import onnx

    if scratch is None:
        return core(frozen_of(keras_path, None, one_view=True))
    digest = catalog.sha256_of(keras_path)[:16]
    model, told = scratch / f"core-{digest}.onnx", scratch / f"core-{digest}.json"
    if not told.is_file():
        made = core(frozen_of(keras_path, scratch, one_view=True))
        onnx.save(made.model, model)
        about = {"layout": made.layout, "scale": made.scale, "shape": made.shape, "mirrored": made.mirrored}
        catalog.write_atomic(told, json.dumps(about))
        return made
    about = json.loads(told.read_text())
    height, width, channels = about["shape"]
    shape = height, width, channels
    return Core(onnx.load(model), tuple(about["layout"]), about["scale"], shape, about["mirrored"])


def core(frozen: Frozen) -> Core:
    """Converts with tf2onnx and cuts the graph where the network proper begins.

    Raises:
        ValueError: The graph does not begin with a cast of its one input to float.
    """
    import tf2onnx.convert
    import tf2onnx.optimizer

    model, _ = tf2onnx.convert.from_graph_def(
        frozen.graph, input_names=[frozen.input], output_names=[frozen.output], opset=OPSET
    )
    name, layout, scale = _cut_head(model.graph)
    shape = (frozen.height, frozen.width, 3)
    _rename(model.graph, {name: PIXELS, frozen.output: OUTPUT})
    _declare(model.graph, PIXELS, np.float32, tuple(shape[axis - 1] for axis in layout[1:]) or shape, frozen.classes)
    finish(model)
    return Core(model, layout, scale, shape, frozen.mirrored)


def _cut_head(graph: Any) -> tuple[str, tuple[int, ...], float]:
    """Removes Cast, Mul by a number, Add of zero and Transpose from the input on; tells what they came to."""
    import onnx

    name, scale, cast = graph.input[0].name, 1.0, False
    layout: tuple[int, ...] = (0, 1, 2, 3)
    while len(following := consumers(graph, name)) == 1:
        node = following[0]
        number = _number(graph, node, name) if node.op_type in ("Mul", "Add") else None
        if node.op_type == "Cast" and attributes(node)["to"] == onnx.TensorProto.FLOAT:
            cast = True
        elif node.op_type == "Transpose":
            layout = tuple(layout[axis] for axis in attributes(node)["perm"])
        elif node.op_type == "Mul" and cast and number is not None:
            scale *= number
        elif not (node.op_type == "Add" and cast and number == 0):
            break
        name = node.output[0]
        graph.node.remove(node)
    if not cast:
        kinds = " and ".join(node.op_type for node in following)
        raise ValueError(f"the image must go one way, a cast to float first; here it goes to {kinds}")
    return name, () if layout == (0, 1, 2, 3) else layout, scale


def _number(graph: Any, node: Any, name: str) -> float | None:
    """The scalar constant that is a node's other operand, if it is one."""
    from onnx import numpy_helper

    other = next((operand for operand in node.input if operand != name), "")
    found = initializer(graph, other)
    if found is None or int(np.prod(found.dims)) != 1:
        return None
    return float(numpy_helper.to_array(found).reshape(()))


def _rename(graph: Any, names: dict[str, str]) -> None:
    for node in graph.node:
        for tensors in (node.input, node.output):
            for i, name in enumerate(tensors):
                tensors[i] = names.get(name, name)


def _declare(graph: Any, name: str, dtype: Any, shape: tuple[int, ...], classes: int) -> None:
    """Sets the graph's one input and one output, with a batch size that is free."""
    import onnx

    element = onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    del graph.input[:], graph.output[:], graph.value_info[:]
    graph.input.append(onnx.helper.make_tensor_value_info(name, element, ["batch", *shape]))
    graph.output.append(onnx.helper.make_tensor_value_info(OUTPUT, onnx.TensorProto.FLOAT, ["batch", classes]))


def take_bytes(model: Any, core: Core) -> None:
    """Declares the input to be the raw images: uint8 `[batch, height, width, 3]`, of which both views may be asked."""
    import onnx

    classes = model.graph.output[0].type.tensor_type.shape.dim[1].dim_value
    if core.mirrored:
        _ask_both_ways(model.graph, classes)
    _declare(model.graph, INPUT, np.uint8, core.shape, classes)
    finish(model)
    onnx.checker.check_model(model, full_check=True)


def _ask_both_ways(graph: Any, classes: int) -> None:
    """Puts the mirrored images behind the images, as one batch, and takes the mean of the two halves of the answers."""
    from onnx import helper, numpy_helper

    _rename(graph, {INPUT: "both_ways", OUTPUT: "answers"})
    last = np.iinfo(np.int64).min
    constants = {"mirror_start": [-1], "mirror_end": [last], "mirror_axis": [2], "mirror_step": [-1]}
    for name, value in {**constants, "mirror_halves": [2, -1, classes]}.items():
        graph.initializer.append(numpy_helper.from_array(np.array(value, np.int64), name))
    graph.node.insert(0, helper.make_node("Slice", [INPUT, *constants], ["mirrored"]))
    graph.node.insert(1, helper.make_node("Concat", [INPUT, "mirrored"], ["both_ways"], axis=0))
    graph.node.append(helper.make_node("Reshape", ["answers", "mirror_halves"], ["halves"]))
    graph.node.append(helper.make_node("ReduceMean", ["halves"], [OUTPUT], axes=[0], keepdims=0))


def views(graph: Any) -> int:
    """How many views of an image the model computes: two where it averages over the mirror image."""
    return 2 if any(node.op_type == "Concat" and INPUT in node.input for node in graph.node) else 1


def finish(model: Any) -> None:
    """Drops initializers nobody reads and operator sets nobody uses; sets names and versions."""
    import onnx

    graph = model.graph
    used = {name for node in graph.node for name in node.input}
    kept = [tensor for tensor in graph.initializer if tensor.name in used]
    del graph.initializer[:], model.opset_import[:], graph.value_info[:]
    graph.initializer.extend(kept)
    model.opset_import.append(onnx.helper.make_opsetid("", OPSET))
    for domain in sorted({node.domain for node in graph.node} - {"", "ai.onnx"}):
        model.opset_import.append(onnx.helper.make_opsetid(domain, 1))
    model.ir_version, graph.name, model.producer_name = IR_VERSION, "classifier", "modelkiln"
    model.producer_version, model.doc_string = "", ""


def shorten(model: Any) -> None:
    """Gives all tensors but the graph's input and output short names: TensorFlow's are 3% of a small compressed file.

    Layers keep theirs, by which cards speak of them, other nodes have none. It is the last thing done to a model.
    """
    import onnx

    graph = model.graph
    kept = {tensor.name for tensor in (*graph.input, *graph.output)} | {""}  # an operand left out has no name
    made = [name for node in graph.node for name in (*node.input, *node.output)]
    names = {name: f"t{place}" for place, name in enumerate(dict.fromkeys(made)) if name not in kept}
    _rename(graph, names)
    for tensor in graph.initializer:
        tensor.name = names[tensor.name]
    for node in graph.node:
        if node.op_type not in PRODUCTS:
            node.name = ""
    onnx.checker.check_model(model, full_check=True)


def initializer(graph: Any, name: str) -> Any:
    """The constant tensor of that name, or None."""
    return next((tensor for tensor in graph.initializer if tensor.name == name), None)


def attributes(node: Any) -> dict[str, Any]:
    """A node's attributes by name."""
    import onnx

    return {attribute.name: onnx.helper.get_attribute_value(attribute) for attribute in node.attribute}


def consumers(graph: Any, name: str) -> list[Any]:
    """The nodes that read a tensor."""
    return [node for node in graph.node if name in node.input]


def scale_first_convolution(model: Any, scale: float) -> bool:
    """Multiplies `scale` into the convolution that alone reads the pixels; False where there is no such."""
    from onnx import numpy_helper

    readers = consumers(model.graph, PIXELS)
    if len(readers) != 1 or readers[0].op_type != "Conv":
        return False
    weights = initializer(model.graph, readers[0].input[1])
    if weights is None or len(consumers(model.graph, weights.name)) != 1:
        return False
    scaled = (numpy_helper.to_array(weights).astype(np.float64) * scale).astype(np.float32)
    weights.CopyFrom(numpy_helper.from_array(scaled, weights.name))
    return True


def fold_flatten(model: Any) -> None:
    """Takes the Transpose before each flattening into the rows of the dense layer behind it."""
    import onnx

    typed = onnx.shape_inference.infer_shapes(model, data_prop=True).graph
    sizes = {info.name: [dim.dim_value for dim in info.type.tensor_type.shape.dim] for info in typed.value_info}
    for transpose, reshape, dense in list(_flattenings(model.graph)):
        _permute_rows(model.graph, dense, sizes[transpose.output[0]])
        reshape.input[0] = transpose.input[0]
        model.graph.node.remove(transpose)


def _flattenings(graph: Any) -> Iterator[tuple[Any, Any, Any]]:
    """Every Transpose(NCHW to NHWC) -> Reshape -> MatMul in which each tensor has one reader."""
    import onnx

    for transpose in graph.node:
        if transpose.op_type != "Transpose":
            continue
        reshape = only(graph, transpose.output[0], "Reshape")
        dense = reshape and only(graph, reshape.output[0], "MatMul")
        if not dense or attributes(transpose)["perm"] != [0, 2, 3, 1]:
            continue
        weights, shape = initializer(graph, dense.input[1]), initializer(graph, reshape.input[1])
        flat = shape is not None and onnx.numpy_helper.to_array(shape).tolist()[:1] in ([-1], [0])
        if flat and weights is not None and len(consumers(graph, weights.name)) == 1:
            yield transpose, reshape, dense


def only(graph: Any, name: str, kind: str) -> Any:
    """The one node that reads a tensor, if it is the only one and of that kind; else None."""
    readers = consumers(graph, name)
    return readers[0] if len(readers) == 1 and readers[0].op_type == kind else None


def _permute_rows(graph: Any, dense: Any, sizes: list[int]) -> None:
    from onnx import numpy_helper

    _, height, width, channels = sizes
    weights = initializer(graph, dense.input[1])
    rows = numpy_helper.to_array(weights)  # [height * width * channels, units]
    moved = rows.reshape(height, width, channels, -1).transpose(2, 0, 1, 3).reshape(rows.shape)
    weights.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(moved), weights.name))


def exposed(model: Any, as_written: bool = False) -> tuple[Any, list[str]]:
    """A session of a model with every float tensor as an output, and their names; `as_written`: not optimized."""
    import copy

    import onnx
    import onnxruntime as ort

    whole = copy.deepcopy(model)
    known = {output.name for output in whole.graph.output}
    typed = onnx.shape_inference.infer_shapes(whole).graph.value_info
    made = {name for node in whole.graph.node for name in node.output} - known
    floats = [i for i in typed if i.name in made and i.type.tensor_type.elem_type == onnx.TensorProto.FLOAT]
    whole.graph.output.extend(floats)
    options = ort.SessionOptions()
    options.log_severity_level = 3
    if as_written:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(whole.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session, [output.name for output in session.get_outputs()]


def optimized(path: Path) -> Any:
    """The graph that ONNX Runtime makes of a model file on this machine and then runs."""
    import onnx
    import onnxruntime as ort

    with tempfile.TemporaryDirectory() as folder:
        options = ort.SessionOptions()
        options.log_severity_level = 3  # it warns that what it writes fits this machine only: so it should
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
        options.optimized_model_filepath = str(Path(folder, "optimized.onnx"))
        ort.InferenceSession(path.read_bytes(), options, providers=["CPUExecutionProvider"])
        return onnx.load(options.optimized_model_filepath)
