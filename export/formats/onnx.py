"""ONNX, run by ONNX Runtime: float32, float16, static int8 that takes the raw pixel as it is, and mixed.

`mixed` is int8 with as few layers left in float as an accuracy budget asks for; without a budget it is not made.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from catalog import KilnError
from export.formats import Conversion, Converted, Inside, Predict
from export.onnx.graph import IR_VERSION, OPSET

if TYPE_CHECKING:
    from export.onnx.graph import Core

SUFFIX = ".onnx"
PRECISIONS = ("fp32", "fp16", "int8")
BUDGETED = ("mixed",)
PACKAGES = ("onnxruntime", "onnx", "tf2onnx", "tensorflow", "keras", "numpy")
SERVABLE = True
OPSETS = range(13, 22)  # what `load` takes: 13 has quantization by channel, 21 is the last with IR version 10
DOMAINS = ("", "ai.onnx", "ai.onnx.ml", "com.microsoft")
PROVIDERS = {
    "cpu": ("CPUExecutionProvider",),
    "cuda": ("CUDAExecutionProvider", "CPUExecutionProvider"),
    "tensorrt": ("TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"),
}

LAYOUT = "first_kernel_layout"  # in settings: what laying the first convolution out anew adds to the file

_FLOAT: dict[str, Any] = {"opset": OPSET, "ir_version": IR_VERSION}
_INT8: dict[str, Any] = {
    **_FLOAT,
    "quantization": "static",
    "quantized_format": "QDQ",
    "weights": "int8, symmetric",
    "activations": "uint8",
    "reduce_range": False,
    "input_scale": "1/255",
    "input_zero_point": 0,
    "float_operators": ["Softmax"],
}
SETTINGS: dict[str, dict[str, Any]] = {
    "fp32": _FLOAT,
    "fp16": {**_FLOAT, "float16": "weights and activations; the answers are float32"},
    "int8": _INT8,
    "mixed": _INT8,
}


def convert(request: Conversion) -> Converted:
    """Writes `model.onnx`: uint8 `images` `[batch, H, W, 3]` to float32 `probabilities` `[batch, classes]`.

    Raises:
        KilnError: `mixed` without a budget or validation images.
        ValueError: The network does not begin with a cast to float, or an int8 graph that would compute in float.
    """
    from export.onnx import floats as onnx_float
    from export.onnx import graph, integers

    core = graph.core_of(request.keras_path, request.scratch)
    settings, floats = dict(SETTINGS[request.precision]), 0
    search: list[dict[str, Any]] = []
    if request.precision in ("int8", "mixed"):
        model, chosen, search = _quantized(request, core)
        settings |= chosen
        floats = len(chosen.get("float_layers", ()))
    else:
        model = onnx_float.half(core) if request.precision == "fp16" else onnx_float.finish(core)
    path = request.folder / f"model{SUFFIX}"
    graph.shorten(model)
    path.write_bytes(model.SerializeToString(deterministic=True))
    optimized = graph.optimized(path)
    if request.precision in ("int8", "mixed"):
        integers.check(core, optimized, floats)
    return Converted(path.name, settings, dict(Counter(n.op_type for n in optimized.graph.node)), search)


def _quantized(request: Conversion, core: Core) -> tuple[Any, dict[str, Any], list[dict[str, Any]]]:
    """The int8 or mixed model, how it was chosen, and what was tried."""
    from export.onnx import inside as onnx_inside
    from export.onnx import search as onnx_search
    from export.onnx.int8 import Quantizer

    quantizer = Quantizer(core, request.calibration, request.keras_path, request.scratch)
    found = onnx_search.chosen(request, quantizer, give=request.precision == "mixed")
    model, plain = (quantizer.model(found.choice, found.learned, widen=widen) for widen in (True, False))
    added = onnx_inside.added(model, plain)
    return model, found.settings | ({LAYOUT: added} if any(added.values()) else {}), found.log


def inside(path: Path) -> Inside:
    """Initializers that feed convolutions and dense layers, and the multiply-accumulates by inferred shapes."""
    from export.onnx import inside as onnx_inside

    return onnx_inside.inside(path)


def load(path: Path, threads: int, *, spinning: bool = True, provider: str = "cpu") -> Predict:
    """A session. With `spinning`, its threads wait for work in a loop: faster alone, worse in company.

    `provider` is one of `PROVIDERS`; ONNX Runtime would fall back to the CPU in silence, here that is an error.

    Raises:
        KilnError: The file is not a model of this project's tensor contract, or the provider is not active; the
            message names it and says why.
    """
    import onnxruntime as ort

    content = _checked(path)
    wanted = _providers(provider)
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.log_severity_level = 3  # errors
    options.add_session_config_entry("session.intra_op.allow_spinning", "1" if spinning else "0")
    try:
        session = ort.InferenceSession(content, options, providers=wanted)
    except Exception as error:  # ONNX Runtime has a dozen exception types and no common one
        raise KilnError(f"{path} cannot be loaded by ONNX Runtime {ort.__version__}: {_first_line(error)}") from error
    session.disable_fallback()
    if (active := session.get_providers())[0] != wanted[0]:
        raise KilnError(_inactive(provider, wanted[0], ", ".join(active)))
    _check_contract(path, session)
    name, output = session.get_inputs()[0].name, session.get_outputs()[0].name

    def predict(images: NDArray[np.uint8]) -> NDArray[np.float32]:
        result: NDArray[np.float32] = session.run([output], {name: images})[0]
        return result

    return predict


def _providers(provider: str) -> list[str]:
    import onnxruntime as ort

    if provider not in PROVIDERS:
        raise KilnError(f"no ONNX Runtime provider {provider[:40]!r}; there are: {', '.join(PROVIDERS)}")
    wanted, there = PROVIDERS[provider], ort.get_available_providers()
    if wanted[0] not in there:
        raise KilnError(_inactive(provider, wanted[0], f"this build has {', '.join(there)}"))
    return [name for name in wanted if name in there]


def _inactive(provider: str, name: str, why: str) -> str:
    return (
        f"ONNX Runtime was asked for {provider!r}, but {name} is not active ({why}). It needs the GPU build with its "
        "CUDA, cuDNN or TensorRT libraries: make setup SET=gpu; or ask for 'cpu'"
    )


def _checked(path: Path) -> bytes:
    """The file's bytes, once they are known to need no other file and no operators beyond those in `OPSETS`."""
    from export.onnx.wire import read_header

    try:
        content = path.read_bytes()
        header = read_header(content)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise KilnError(f"{path} cannot be read as an ONNX model: {reason}. Export it again with --force") from error
    opset = header.opsets.get("", header.opsets.get("ai.onnx", 0))
    if header.graphs != 1 or not header.opsets:
        raise KilnError(f"{path} is not an ONNX model. Export it again with --force")
    if header.external:
        raise KilnError(f"{path} keeps tensors in other files; a model here is one file. Save it without external data")
    if opset not in OPSETS:
        raise KilnError(f"{path} has opset {opset}; from {OPSETS[0]} to {OPSETS[-1]} are read. Export it again")
    if foreign := sorted(set(header.opsets) - set(DOMAINS)):
        raise KilnError(f"{path} needs operators of {foreign[0]!r}, which are not known here. Export it again")
    return content


def _check_contract(path: Path, session: Any) -> None:
    """One uint8 [N, H, W, 3] in and one float [N, classes] out, N free."""
    inputs, outputs = (
        [(t.type, t.shape) for t in tensors] for tensors in (session.get_inputs(), session.get_outputs())
    )
    fits = len(inputs) == len(outputs) == 1 and (inputs[0][0], outputs[0][0]) == ("tensor(uint8)", "tensor(float)")
    if fits:
        shape, result = inputs[0][1], outputs[0][1]
        fits = len(shape) == 4 and len(result) == 2 and shape[3] == 3 and not isinstance(shape[0], int)
        fits = fits and all(isinstance(size, int) for size in (*shape[1:], result[1]))
    if not fits:
        raise KilnError(
            f"{path} takes {inputs} and gives {outputs}; a model here takes one uint8 [N, H, W, 3] "
            "and gives one float [N, classes]. Export it again"
        )


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:300]
