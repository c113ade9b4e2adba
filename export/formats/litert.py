"""LiteRT, once TensorFlow Lite, run by its interpreter with the XNNPACK delegate: float32, float16 weights, int8."""

from __future__ import annotations

import dataclasses
import threading
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from catalog import KilnError
from export.formats import Conversion, Converted, Inside, Predict

if TYPE_CHECKING:
    from export.frozen import Frozen

SUFFIX = ".tflite"
PRECISIONS = ("fp32", "fp16", "int8")
PACKAGES = ("ai-edge-litert", "tensorflow", "keras", "numpy")
SERVABLE = True
_FLOAT: dict[str, Any] = {"operator_sets": ["TFLITE_BUILTINS"], "frozen": True, "batch": "resized at run time"}
SETTINGS: dict[str, dict[str, Any]] = {
    "fp32": _FLOAT,
    "fp16": {**_FLOAT, "float16": "weights; computes in float32"},
    "int8": {
        **_FLOAT,
        "operator_sets": ["TFLITE_BUILTINS_INT8"],
        "quantization": "static, full integer",
        "per_channel": True,
        "input_scale": "1/255",
        "float_operators": ["SOFTMAX"],
    },
}


def convert(request: Conversion) -> Converted:
    """Writes `model.tflite` of built-in operators only, its batch size free.

    Raises:
        KilnError: The parent is no model of this project's tensor contract.
        ValueError: An int8 graph that would compute in float.
        Exception: What TensorFlow's converter raises, of several types.
    """
    from export.frozen import frozen_of

    path, settings = request.folder / f"model{SUFFIX}", dict(SETTINGS[request.precision])
    search: list[dict[str, Any]] = []
    if request.precision == "int8":
        chosen, search = _quantized(request, path)
        settings |= chosen
    else:
        path.write_bytes(_float(frozen_of(request.keras_path, request.scratch), request.precision))
    operators, delegated = _operators(path)
    return Converted(path.name, settings | {"delegate_partitions": delegated}, operators, search)


def _quantized(request: Conversion, path: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Writes an int8 file; how it is quantized, and what was tried on the images held out of training.

    What was trained to be quantized, and what was clustered, stays as the converter makes it.
    """
    from export import parity
    from export.frozen import frozen_of
    from export.litert import candidates as litert_candidates
    from export.litert import graph as litert_graph
    from export.onnx import graph, search
    from export.onnx.calibration import NEAREST, judge
    from export.onnx.int8 import Quantizer

    frozen = frozen_of(request.keras_path, request.scratch, one_view=True)
    plain = litert_graph.float_logits(_integer(frozen, request.calibration))
    _check_integer(litert_graph.operators(plain))
    core = graph.core_of(request.keras_path, request.scratch)
    quantizer = Quantizer(core, request.calibration, request.keras_path, request.scratch)
    made = [litert_candidates.Candidate("minmax", NEAREST, plain)]
    if not quantizer.clustered and not (request.keras_path.parent / "ranges.json").is_file():
        made = list(litert_candidates.candidates(plain, quantizer))
    if frozen.mirrored:
        made = [dataclasses.replace(m, content=litert_graph.both_ways(m.content, frozen.classes)) for m in made]
    log, damages = list[dict[str, Any]](), [0.0]
    if len(made) > 1:
        tried = search.bench(request, quantizer, {})
        labels = None if tried.labels is None else tried.labels[: search.MOST]
        for one in made:
            path.write_bytes(one.content)
            predict = load(path, request.threads)
            answers = parity.in_batches(predict, tried.images[: search.MOST], search.BATCH, frozen.classes)
            log.append({**one.words, **judge(answers, tried.reference[: search.MOST], labels).words()})
        damages = [float(step["damage"]) for step in log]
    best = made[damages.index(min(damages))]
    path.write_bytes(best.content)
    return {"calibration_method": best.method, "rounding": best.rounding}, log


def _float(frozen: Frozen, precision: str) -> bytes:
    import tensorflow as tf

    converter = _converter(frozen, frozen.input, tf.uint8)
    converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS]
    if precision == "fp16":
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
        converter.target_spec.supported_types = [tf.float16]
    content: bytes = converter.convert()
    return content


def _integer(frozen: Frozen, images: NDArray[np.uint8]) -> bytes:
    """Integers throughout; the byte that arrives is the quantized pixel, at the scale the network would multiply by."""
    import tensorflow as tf

    from export.litert.graph import scaled_pixels

    name, scale = scaled_pixels(frozen.graph, frozen.input)

    def samples() -> Iterator[list[NDArray[np.float32]]]:
        for image in images:
            yield [image[None].astype(np.float32) * np.float32(scale)]

    converter = _converter(frozen, name, tf.float32, 255 * scale)
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    converter.representative_dataset = samples
    converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
    converter.inference_input_type, converter.inference_output_type = tf.uint8, tf.float32
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Statistics for quantized inputs")  # they come from the samples
        content: bytes = converter.convert()
    return content


def _converter(frozen: Frozen, start: str, dtype: Any, largest: float = 0.0) -> Any:
    """TensorFlow's converter for the network from the tensor `start` on, of the range 0 to `largest` if it is set."""
    import tensorflow as tf

    def network(image: Any) -> Any:
        if largest:
            image = tf.quantization.fake_quant_with_min_max_args(image, 0.0, largest)
        return tf.graph_util.import_graph_def(frozen.graph, input_map={start: image}, return_elements=[frozen.output])[
            0
        ]

    image = tf.TensorSpec((None, frozen.height, frozen.width, 3), dtype, name="image")
    return tf.lite.TFLiteConverter.from_concrete_functions([tf.compat.v1.wrap_function(network, [image])])


def _check_integer(operators: list[tuple[str, str]]) -> None:
    """That everything before DEQUANTIZE and SOFTMAX is in integers."""
    floats = [kind for kind, dtype in operators if dtype.startswith("FLOAT")]
    if floats != ["DEQUANTIZE", "SOFTMAX"]:
        raise ValueError(f"{', '.join(floats)} would run in float")


def inside(path: Path) -> Inside:
    """Kernels and matrices in the file's buffers."""
    from export.litert import graph as litert_graph

    return litert_graph.inside(path)


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
