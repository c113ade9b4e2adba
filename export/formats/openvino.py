"""OpenVINO IR, run by OpenVINO on the CPU: float32, bfloat16 as the runtime computes it, int8.

IR is two files, `model.xml` and `model.bin`. It is made from this project's own ONNX, int8 from its quantized form, so
every format has the same calibration. Which precision to compute in is written into the file: left to itself the
runtime takes bfloat16 for float32 wherever the processor has it.
"""

from __future__ import annotations

import importlib.util
import math
import queue
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from catalog import KilnError
from export.formats import Conversion, Converted, Inside, Predict

SUFFIX = ".xml"
PRECISIONS = ("fp32", "bf16", "int8")
PACKAGES = ("openvino", "onnx", "onnxruntime", "tf2onnx", "tensorflow", "keras", "numpy")
SERVABLE = importlib.util.find_spec("openvino") is not None  # the service's own requirements do without it
_HINTS = {"fp32": "f32", "bf16": "bf16", "int8": "f32"}
_KEY = ["modelkiln", "inference_precision"]
_PASSES = ("Convert", "Multiply", "Subtract", "Reshape", "Transpose", "FakeQuantize")
_PRODUCTS = ("Convolution", "GroupConvolution", "MatMul")
SETTINGS: dict[str, dict[str, Any]] = {
    "fp32": {"from": "onnx-fp32", "inference_precision": "f32"},
    "bf16": {"from": "onnx-fp32", "inference_precision": "bf16", "stored_as": "float32"},
    "int8": {"from": "onnx-int8", "inference_precision": "f32"},
}


def _openvino() -> Any:
    """The package without its telemetry, which would send events, and fork to do so from a process with threads."""
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]  # its import fails then, as intended
    import openvino

    return openvino


def convert(request: Conversion) -> Converted:
    """Writes `model.xml` and `model.bin`.

    Raises:
        KilnError: The parent is no model of this project's tensor contract.
        ValueError: An int8 graph that would compute in float.
    """
    import onnx

    from export.onnx import floats
    from export.onnx import graph as onnx_graph

    ov, core = _openvino(), onnx_graph.core_of(request.keras_path, request.scratch)
    settings: dict[str, Any] = {}
    search: list[dict[str, Any]] = []
    if request.precision == "int8":
        model, settings, search = _quantized(request, core)
    else:
        model = floats.finish(core)
    source, path = request.folder / "source.onnx", request.folder / f"model{SUFFIX}"
    onnx_graph.shorten(model)
    onnx.save(model, source)
    try:
        graph = ov.convert_model(source)
    finally:
        source.unlink()
    graph.set_rt_info(_HINTS[request.precision], _KEY)
    ov.save_model(graph, path, compress_to_fp16=False)
    operators = _operators(_compiled(path, request.threads))
    if request.precision == "int8":
        _check_integer(graph, operators)
    elif request.precision == "bf16":
        settings["bf16_in_hardware"] = "BF16" in ov.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    return Converted(path.name, {**SETTINGS[request.precision], **settings}, operators, search)


def _quantized(request: Conversion, core: Any) -> tuple[Any, dict[str, Any], list[dict[str, Any]]]:
    """The int8 ONNX model as OpenVINO likes it: the pixel's scale and rounding stated, which it then drops itself."""
    from export.onnx import search as onnx_search
    from export.onnx.int8 import Quantizer

    quantizer = Quantizer(core, request.calibration, request.keras_path, request.scratch)
    found = onnx_search.chosen(request, quantizer)
    return quantizer.model(found.choice, found.learned, quantized_input=True), found.settings, found.log


def _operators(compiled: Any) -> dict[str, int]:
    """Of the graph that runs, by layer type and precision: `Convolution u8`."""
    counts: Counter[str] = Counter()
    for node in compiled.get_runtime_model().get_ordered_ops():
        told = node.get_rt_info()
        kind, precision = (told[key].astype(str) for key in ("layerType", "runtimePrecision"))
        if kind not in ("Const", "Input", "Output"):
            counts[f"{kind} {precision}"] += 1
    return dict(counts)


def _check_integer(graph: Any, operators: dict[str, int]) -> None:
    """That every convolution and dense layer runs on bytes."""
    asked = sum(op.get_type_name() in _PRODUCTS for op in graph.get_ops())
    got = sum(n for name, n in operators.items() if name.split()[0] in _RUN and name.split()[1] in ("u8", "i8"))
    if got < asked:
        raise ValueError(f"only {got} of {asked} convolutions and dense layers run in integers: {operators}")


_RUN = ("Convolution", "FullyConnected", "MatMul", "GroupConvolution")


def inside(path: Path) -> Inside:
    """Constants in `model.bin` that feed convolutions and dense layers; multiply-accumulates by the stated shapes."""
    graph = _read(path)
    return Inside(list(_weights(graph)), _macs(graph))


def _weights(graph: Any) -> Iterator[NDArray[Any]]:
    seen: set[str] = set()
    for op in graph.get_ordered_ops():
        if op.get_type_name() not in _PRODUCTS:
            continue
        found = op.input_value(1).get_node()
        while found.get_type_name() in _PASSES:
            found = found.input_value(0).get_node()
        if found.get_type_name() == "Constant" and found.get_friendly_name() not in seen:
            seen.add(found.get_friendly_name())
            yield np.array(found.data)


def _macs(graph: Any) -> int | None:
    total = 0
    for op in graph.get_ordered_ops():
        kind = op.get_type_name()
        if kind not in _PRODUCTS:
            continue
        output, weights = op.output(0).get_partial_shape(), op.input_value(1).get_partial_shape()
        sizes = [*list(output)[1:], *list(weights)]
        if any(size.is_dynamic for size in sizes):
            return None
        kernel = [size.get_length() for size in weights]
        # Convolution [out, in, kh, kw], GroupConvolution [groups, out, in, kh, kw], MatMul [in, out] or transposed
        transposed = kind == "MatMul" and op.get_attributes()["transpose_b"]
        each = {
            "Convolution": kernel[1:],
            "GroupConvolution": kernel[2:],
            "MatMul": kernel[-1 if transposed else -2 :][:1],
        }
        total += math.prod(size.get_length() for size in list(output)[1:]) * math.prod(each[kind])
    return total * _views(graph)


def _views(graph: Any) -> int:
    """Two where the model puts its images and their mirror images into one batch."""
    joined = [op for op in graph.get_ops() if op.get_type_name() == "Concat" and op.get_attributes()["axis"] == 0]
    feeds = [op.input_value(i).get_node().get_type_name() for op in joined for i in range(op.get_input_size())]
    return 2 if "Parameter" in feeds else 1


def load(path: Path, threads: int, *, spinning: bool = True) -> Predict:
    """A compiled model, and of inference requests as many as are in use at once; it knows no `spinning`.

    Raises:
        KilnError: The files are no model of this project's tensor contract; the message names them and says why.
    """
    compiled = _compiled(path, threads)
    _check_contract(path, compiled)
    idle: queue.SimpleQueue[Any] = queue.SimpleQueue()

    def predict(images: NDArray[np.uint8]) -> NDArray[np.float32]:
        try:
            request = idle.get_nowait()
        except queue.Empty:
            request = compiled.create_infer_request()
        try:
            return np.array(request.infer([np.ascontiguousarray(images)])[0], np.float32)
        finally:
            idle.put(request)

    return predict


def _read(path: Path) -> Any:
    """The graph; bytes are read, not mapped, so that a file replaced under a running server does it no harm."""
    try:
        description, weights = path.read_bytes(), path.with_suffix(".bin").read_bytes()
    except OSError as error:
        raise KilnError(f"{path} cannot be read as an OpenVINO model: {error.strerror} ({error.filename})") from error
    try:
        return _openvino().Core().read_model(description, weights)
    except RuntimeError as error:
        raise KilnError(
            f"{path} cannot be loaded by OpenVINO: {_reason(error)}. Export it again with --force"
        ) from error


def _compiled(path: Path, threads: int) -> Any:
    graph = _read(path)
    try:
        hint = graph.get_rt_info(_KEY).value
    except RuntimeError as error:
        raise KilnError(f"{path} does not say which precision to compute in. Export it again with --force") from error
    settings = {
        "INFERENCE_NUM_THREADS": threads,
        "INFERENCE_PRECISION_HINT": hint,
        "PERFORMANCE_HINT": "LATENCY",
        "NUM_STREAMS": 1,
        "ENABLE_CPU_PINNING": False,  # a thread bound to a core waits whenever anybody else is on it: 10 times slower
    }
    try:
        return _openvino().Core().compile_model(graph, "CPU", settings)
    except RuntimeError as error:
        raise KilnError(f"{path} cannot be compiled by OpenVINO: {_reason(error)}") from error


def _reason(error: RuntimeError) -> str:
    """The last line of OpenVINO's, which comes after where in its source it was thrown."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[-1] if lines else "no reason given")[:300]


def _check_contract(path: Path, compiled: Any) -> None:
    inputs, outputs = (
        [(port.get_element_type().get_type_name(), str(port.get_partial_shape())) for port in ports]
        for ports in (compiled.inputs, compiled.outputs)
    )
    fits = len(inputs) == len(outputs) == 1 and (inputs[0][0], outputs[0][0]) == ("u8", "f32")
    if fits:
        shape, result = (list(ports[0].get_partial_shape()) for ports in (compiled.inputs, compiled.outputs))
        fits = len(shape) == 4 and len(result) == 2 and shape[0].is_dynamic and not shape[3].is_dynamic
        fits = fits and shape[3].get_length() == 3 and not any(s.is_dynamic for s in (*shape[1:3], result[1]))
    if not fits:
        raise KilnError(
            f"{path} takes {inputs} and gives {outputs}; a model here takes one uint8 [N, H, W, 3] "
            "and gives one float32 [N, classes]. Export it again"
        )
