"""Static int8 for ONNX: integer convolutions and dense layers from the raw pixel to the logits.

Weights are symmetric int8 by output channel, activations uint8, ranges from calibration images. The pixel needs no
calibration: a byte b stands for b/255, so its scale is 1/255 and its zero point 0, and the byte that arrives IS the
quantized value. ONNX Runtime's quantizer puts a QuantizeLinear there all the same; it is taken out again. The logits
stay in the float that the last integer product is scaled to, and Softmax stays float.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from export import onnx_graph, onnx_stem
from export.onnx_graph import INPUT, PIXELS, Core

BATCH = 64
DENSE = ("QGemm", "QLinearMatMul", "MatMulIntegerToFloat", "MatMulInteger")
CONVOLUTION = ("QLinearConv", "ConvInteger")
_MOVES = ("Transpose", "Reshape", "Flatten", "MaxPool", "NhwcMaxPool")  # these move bytes about and compute nothing


def quantize(core: Core, images: NDArray[np.uint8]) -> Any:
    """The core as an int8 model in QDQ form that takes raw bytes; `images` uint8 `[N, H, W, 3]` calibrate it."""
    import onnx
    from onnxruntime.quantization.shape_inference import quant_pre_process

    with tempfile.TemporaryDirectory() as folder:
        whole, prepared, written = (Path(folder, name) for name in ("core.onnx", "prepared.onnx", "int8.onnx"))
        onnx.save(core.model, whole)  # given the model itself, it would move the weights to a file of their own
        quant_pre_process(whole, prepared, skip_symbolic_shape=True)
        _quantize_static(prepared, written, core, images)
        model = onnx.load(written)
    _float_logits(model.graph)
    _feed_bytes(model.graph, core)
    onnx_graph.take_bytes(model, core.shape)
    return model


def _quantize_static(prepared: Path, written: Path, core: Core, images: NDArray[np.uint8]) -> None:
    import onnx
    from onnxruntime import quantization as ort

    class Reader(ort.CalibrationDataReader):  # type: ignore[misc]  # ONNX Runtime's is untyped
        def __init__(self) -> None:
            self.batches = _batches(core, images)

        def get_next(self) -> dict[str, NDArray[np.float32]] | None:
            return next(self.batches, None)

    pixel = {
        "quant_type": ort.QuantType.QUInt8,
        "scale": np.array(core.scale, np.float32),
        "zero_point": np.array(0, np.uint8),
    }
    last = [node.name for node in onnx.load(prepared).graph.node if node.op_type == "Softmax"]
    ort.quantize_static(
        prepared,
        written,
        Reader(),
        quant_format=ort.QuantFormat.QDQ,
        calibrate_method=ort.CalibrationMethod.MinMax,
        activation_type=ort.QuantType.QUInt8,
        weight_type=ort.QuantType.QInt8,
        per_channel=True,
        nodes_to_exclude=last,
        extra_options={"WeightSymmetric": True, "TensorQuantOverrides": {PIXELS: [pixel]}},
    )


def _batches(core: Core, images: NDArray[np.uint8]) -> Iterator[dict[str, NDArray[np.float32]]]:
    """Calibration images as the core's pixels, float32 in 0..1."""
    for start in range(0, len(images), BATCH):
        batch = images[start : start + BATCH]
        moved = batch.transpose(core.layout) if core.layout else batch
        yield {PIXELS: np.ascontiguousarray(moved).astype(np.float32) * np.float32(core.scale)}


def _float_logits(graph: Any) -> None:
    """Takes away QuantizeLinear and DequantizeLinear between the last layer and a Softmax."""
    made = {node.output[0]: node for node in graph.node}
    for softmax in [node for node in graph.node if node.op_type == "Softmax"]:
        dequantize = made.get(softmax.input[0])
        quantize = made.get(dequantize.input[0]) if dequantize and dequantize.op_type == "DequantizeLinear" else None
        if dequantize is None or quantize is None or quantize.op_type != "QuantizeLinear":
            continue
        softmax.input[0] = quantize.input[0]
        for node in (dequantize, quantize):
            if not onnx_graph.consumers(graph, node.output[0]):
                graph.node.remove(node)


def _feed_bytes(graph: Any, core: Core) -> None:
    """Puts the raw bytes, transposed where needed, in the place of the quantized pixels."""
    import onnx

    readers = onnx_graph.consumers(graph, PIXELS)
    if len(readers) != 1 or readers[0].op_type != "QuantizeLinear":
        raise ValueError(f"the quantizer left the pixels to {[node.op_type for node in readers]}")
    quantized = readers[0].output[0]
    graph.node.remove(readers[0])
    group = onnx_stem.widen(graph, core, quantized)
    if core.layout:
        name = onnx_stem.side_by_side(graph, core, group)
        where = 1 if group > 1 else 0
        graph.node.insert(where, onnx.helper.make_node("Transpose", [name], [quantized], perm=core.layout))
        return
    for node in onnx_graph.consumers(graph, quantized):
        node.input[list(node.input).index(quantized)] = INPUT


def check_integer(core: Core, optimized: Any) -> None:
    """That the graph which runs computes in integers from the first byte on.

    Raises:
        ValueError: A convolution or dense layer stayed float, or the bytes meet a float step first; says which.
    """
    wanted = Counter(node.op_type for node in core.model.graph.node)
    present = Counter(node.op_type for node in optimized.graph.node)
    for kinds, integer in ((("Conv",), CONVOLUTION), (("MatMul", "Gemm"), DENSE)):
        asked, got = (sum(count[kind] for kind in names) for count, names in ((wanted, kinds), (present, integer)))
        if got < asked:
            raise ValueError(f"only {got} of {asked} {kinds[0]} run in integers; the graph holds {dict(present)}")
    _check_pixels(optimized.graph, INPUT, core.scale)


def _check_pixels(graph: Any, name: str, scale: float) -> None:
    from onnx import numpy_helper

    for node in onnx_graph.consumers(graph, name):
        if node.op_type in _MOVES:
            _check_pixels(graph, node.output[0], scale)
        elif node.op_type not in (*CONVOLUTION, *DENSE):
            raise ValueError(f"the raw pixels meet {node.op_type} before the first integer product")
        elif node.op_type in ("QLinearConv", "QLinearMatMul", "QGemm"):  # (x, x_scale, x_zero_point, …)
            found = [onnx_graph.initializer(graph, node.input[i]) for i in (1, 2)]
            told, zero = (float(numpy_helper.to_array(tensor).reshape(-1)[0]) for tensor in found)
            if zero != 0 or not np.isclose(told, scale, rtol=1e-6):
                raise ValueError(f"the pixels' scale is {told} and zero point {zero:g}, not {scale} and 0")
