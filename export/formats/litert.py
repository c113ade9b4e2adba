"""LiteRT, once TensorFlow Lite, run by its interpreter with the XNNPACK delegate."""

from __future__ import annotations

import threading
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from catalog import KilnError
from export.formats import Conversion, Converted, Predict

SUFFIX = ".tflite"
PRECISIONS = ("fp32",)
PACKAGES = ("ai-edge-litert", "tensorflow", "keras", "numpy")
SERVABLE = True
SETTINGS: dict[str, dict[str, Any]] = {
    "fp32": {"operator_sets": ["TFLITE_BUILTINS"], "frozen": True, "batch": "resized at run time"}
}


def convert(request: Conversion) -> Converted:
    """Writes `model.tflite` of built-in operators only, its batch size free.

    Raises:
        KilnError: The parent is no model of this project's tensor contract.
        Exception: What TensorFlow's converter raises, of several types.
    """
    import tensorflow as tf

    from export.frozen import freeze

    frozen = freeze(request.keras_path)

    def network(image: Any) -> Any:
        feed = {frozen.input: image}
        return tf.graph_util.import_graph_def(frozen.graph, input_map=feed, return_elements=[frozen.output])[0]

    image = tf.TensorSpec((None, frozen.height, frozen.width, 3), tf.uint8, name="image")
    function = tf.compat.v1.wrap_function(network, [image])
    converter = tf.lite.TFLiteConverter.from_concrete_functions([function])
    converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS]
    path = request.folder / f"model{SUFFIX}"
    path.write_bytes(converter.convert())
    operators, delegated = _operators(path)
    return Converted(path.name, {**SETTINGS[request.precision], "delegate_partitions": delegated}, operators)


def _operators(path: Path) -> tuple[dict[str, int], int]:
    """Operators of the graph by name, and in how many pieces the delegate runs it: one is best."""
    interpreter = _interpreter(path, 1)
    interpreter.allocate_tensors()
    counts = Counter(detail["op_name"] for detail in interpreter._get_ops_details())
    delegated = counts.pop("DELEGATE", 0)
    return dict(counts), delegated


def load(path: Path, threads: int, *, spinning: bool = True) -> Predict:
    """An interpreter, one call at a time, resized when the batch size changes; it knows no `spinning`.

    Raises:
        KilnError: The file is not a model of this project's tensor contract; the message names it and says why.
    """
    interpreter = _interpreter(path, threads)
    source, target = _contract(path, interpreter)
    lock = threading.Lock()
    held = 0  # the batch size that memory is laid out for

    def predict(images: NDArray[np.uint8]) -> NDArray[np.float32]:
        nonlocal held
        with lock:
            if len(images) != held:
                held = 0  # should the next lines fail, the layout is unknown
                interpreter.resize_tensor_input(source, images.shape, strict=True)
                interpreter.allocate_tensors()
                held = len(images)
            interpreter.set_tensor(source, images)
            interpreter.invoke()
            result: NDArray[np.float32] = interpreter.get_tensor(target)
            return result

    return predict


def _interpreter(path: Path, threads: int) -> Any:
    from ai_edge_litert.interpreter import Interpreter

    try:
        content = path.read_bytes()
        return Interpreter(model_content=content, num_threads=threads)
    except OSError as error:
        raise KilnError(f"{path} cannot be read as a LiteRT model: {error.strerror}") from error
    except (ValueError, RuntimeError) as error:
        first = (str(error).strip() or type(error).__name__).splitlines()[0][:300]
        raise KilnError(f"{path} cannot be loaded by LiteRT: {first}. Export it again with --force") from error


def _contract(path: Path, interpreter: Any) -> tuple[int, int]:
    """Indices of the one input and the one output, once both are what they should be."""
    inputs, outputs = (
        [(np.dtype(detail["dtype"]).name, detail["shape_signature"].tolist()) for detail in details]
        for details in (interpreter.get_input_details(), interpreter.get_output_details())
    )
    fits = len(inputs) == len(outputs) == 1 and (inputs[0][0], outputs[0][0]) == ("uint8", "float32")
    if fits:
        shape, result = inputs[0][1], outputs[0][1]
        fits = (
            len(shape) == 4 and len(result) == 2 and shape[0] == -1 and min(*shape[1:], result[1]) > 0 and shape[3] == 3
        )
    if not fits:
        raise KilnError(
            f"{path} takes {inputs} and gives {outputs}; a model here takes one uint8 [N, H, W, 3] "
            "and gives one float32 [N, classes]. Export it again"
        )
    return interpreter.get_input_details()[0]["index"], interpreter.get_output_details()[0]["index"]
