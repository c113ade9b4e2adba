"""A Keras model as a TensorFlow graph whose weights and shapes are constants: what the converters start from.

Both converters produce far better files from it than from the model. Keras' Flatten reads the batch size at run time
(Shape, StridedSlice, Pack); the constant `[-1, features]` in its place keeps LiteRT's graph in one XNNPACK partition
and ONNX's free of shape arithmetic. And with variables left in, LiteRT does not know that weights are constant and
transposes every kernel in every call: 100 times slower.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import catalog
from catalog import KilnError


@dataclass(frozen=True)
class Frozen:
    """A `GraphDef` with the names of its one input and one output tensor ("image:0").

    Where it is `mirrored`, the model's answer is the mean of the graph's for the image and for its mirror image.
    """

    graph: Any
    input: str
    output: str
    height: int
    width: int
    classes: int
    mirrored: bool = False


def load_keras(path: Path) -> Any:
    """A `.keras` file as a Keras model, uncompiled; nothing in it is executed as code.

    Raises:
        KilnError: It is another kind of file, needs custom code, or breaks the tensor contract
            (uint8 `[N, H, W, 3]` in, float32 `[N, classes]` out).
    """
    if path.suffix != ".keras":
        raise KilnError(
            f"{path.name} is not a .keras file; HDF5 files and pickles are not read. Save it with model.save"
        )
    import keras

    try:
        model = keras.saving.load_model(path, compile=False, safe_mode=True)
    except (ValueError, TypeError, OSError, KeyError) as error:
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise KilnError(f"{path.name} cannot be loaded by Keras {keras.__version__}: {first}") from error
    _check_contract(path, model)
    return model


def _check_contract(path: Path, model: Any) -> None:
    inputs = [(tuple(tensor.shape), str(tensor.dtype)) for tensor in model.inputs]
    outputs = [(tuple(tensor.shape), str(tensor.dtype)) for tensor in model.outputs]
    fits = len(inputs) == len(outputs) == 1 and inputs[0][1] == "uint8" and outputs[0][1] == "float32"
    if fits:
        shape, result = inputs[0][0], outputs[0][0]
        fits = (
            len(shape) == 4 and shape[3] == 3 and None not in shape[1:] and len(result) == 2 and result[1] is not None
        )
    if not fits:
        raise KilnError(
            f"{path.name} takes {inputs} and gives {outputs}; a model here takes one uint8 [N, H, W, 3] "
            "and gives one float32 [N, classes]"
        )


def frozen_of(keras_path: Path, scratch: Path | None, one_view: bool = False) -> Frozen:
    """As `freeze`; one export does it once, in `scratch`, and later conversions do without Keras.

    Raises:
        KilnError: As `load_keras`.
    """
    if scratch is None:
        return freeze(keras_path, one_view)
    digest = catalog.sha256_of(keras_path)[:16] + ("-view" if one_view else "")
    graph, told = scratch / f"frozen-{digest}.pb", scratch / f"frozen-{digest}.json"
    if not told.is_file():
        made = freeze(keras_path, one_view)
        graph.write_bytes(made.graph.SerializeToString())
        about: dict[str, Any] = {"input": made.input, "output": made.output}
        about |= {"height": made.height, "width": made.width, "classes": made.classes, "mirrored": made.mirrored}
        catalog.write_atomic(told, json.dumps(about))
        return made
    from tensorflow.core.framework import graph_pb2

    return Frozen(graph_pb2.GraphDef.FromString(graph.read_bytes()), **json.loads(told.read_text()))


def freeze(path: Path, one_view: bool = False) -> Frozen:
    """Traces a `.keras` model for inference with a free batch size.

    With `one_view`, of a model that averages over the mirror image only what it asks of either.

    Raises:
        KilnError: As `load_keras`.
        ValueError: The model averages otherwise than over its image and the mirror image.
    """
    import tensorflow as tf
    from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

    model = load_keras(path)
    view = _view(model) if one_view else None
    model = view or model
    _, height, width, _ = model.inputs[0].shape
    image = tf.TensorSpec((None, height, width, 3), tf.uint8, name="image")
    traced = tf.function(lambda image: model(image, training=False)).get_concrete_function(image)
    constant = convert_variables_to_constants_v2(traced)
    graph = constant.graph.as_graph_def()
    _fix_reshapes(graph)
    classes = int(model.outputs[0].shape[1])
    names = constant.inputs[0].name, constant.outputs[0].name
    return Frozen(graph, *names, height, width, classes, mirrored=view is not None)


def _view(model: Any) -> Any:
    """What a model that averages over the mirror image asks of either, as `training.network` makes such; else None."""
    import keras
    import numpy as np

    inner = [layer for layer in model.layers if isinstance(layer, keras.Model)]
    if len(inner) != 1 or type(model.layers[-1]).__name__ != "Average":
        return None
    softmax = keras.layers.Softmax(dtype="float32", name="softmax")
    view = keras.Model(inner[0].inputs[0], softmax(inner[0].outputs[0]), name=inner[0].name)
    images = np.random.default_rng(0).integers(0, 256, (4, *model.inputs[0].shape[1:]), np.uint8)
    both, there, back = (
        np.asarray(asked(shown, training=False))
        for asked, shown in ((model, images), (view, images), (view, np.ascontiguousarray(images[:, :, ::-1])))
    )
    if np.abs(both - (there + back) / 2).max() > 1e-5:
        raise ValueError("the model averages over other views than the image and its mirror image")
    return view


def _fix_reshapes(graph: Any) -> None:
    """Puts the constant `[-1, …]` where a Reshape's shape is packed from the batch size and constants."""
    import tensorflow as tf

    nodes = {node.name: node for node in graph.node}
    for node in [node for node in graph.node if node.op == "Reshape"]:
        shape = nodes[node.input[1].split(":")[0]]
        sizes = [nodes[name.split(":")[0]] for name in shape.input]
        if shape.op != "Pack" or any(size.op != "Const" for size in sizes[1:]):
            continue
        target = [-1, *(int(tf.make_ndarray(size.attr["value"].tensor)) for size in sizes[1:])]
        if -1 in target[1:]:
            continue
        name = shape.name
        shape.Clear()
        shape.name, shape.op = name, "Const"
        shape.attr["dtype"].type = tf.int32.as_datatype_enum
        shape.attr["value"].tensor.CopyFrom(tf.make_tensor_proto(target, tf.int32))
