"""Static int8 for ONNX: integer convolutions and dense layers from the raw pixel to the logits.

Weights are symmetric int8 by output channel, those of dense layers by tensor where they were trained so or hold zeros
or clusters, those of clustered convolutions so that equal weights stay equal, activations uint8, ranges from
calibration images. The pixel needs no calibration: a byte b stands for b/255, so its scale is 1/255 and its zero point
0, and the byte that arrives IS the quantized value. ONNX Runtime's quantizer puts a QuantizeLinear there all the same;
it is taken out again. The logits stay in the float that the last integer product is scaled to, and Softmax stays
float.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import catalog
from export import compression, graph_inside
from export.onnx import calibration, clusters, rounding, stem
from export.onnx import floats as onnx_float
from export.onnx import graph as onnx_graph
from export.onnx.calibration import GPTQ, NEAREST, Choice, Ranges
from export.onnx.graph import INPUT, PIXELS, PRODUCTS, Core

FIRST = Choice()


class Quantizer:
    """Makes int8 models of one core by any choice of calibration; the ranges are measured once.

    `keras_path` is the model that the core was made of; without it, clusters are seen only where no BatchNorm was
    folded into them. In `scratch` the conversions of one export share what takes long.
    """

    def __init__(
        self, core: Core, images: NDArray[np.uint8], keras_path: Path | None = None, scratch: Path | None = None
    ) -> None:
        self.core, self.images, self.keras_path, self.scratch = core, images, keras_path, scratch
        self.prepared = _prepared(core)

    @functools.cached_property
    def spreads(self) -> dict[str, calibration.Spread]:
        """Of all tensors of the prepared network over the calibration images."""
        return calibration.measure(self.prepared, PIXELS, self.images, self.pixels)

    @property
    def layers(self) -> list[str]:
        """Names of the convolutions and dense layers, from the input on."""
        return [node.name for node in self.prepared.graph.node if node.op_type in PRODUCTS]

    @functools.cached_property
    def dense(self) -> dict[str, NDArray[np.float32]]:
        """Kernels of the dense layers, by tensor name."""
        from onnx import numpy_helper

        graph = self.prepared.graph
        products = [node for node in graph.node if node.op_type in ("MatMul", "Gemm")]
        found = [onnx_graph.initializer(graph, node.input[1]) for node in products]
        return {tensor.name: numpy_helper.to_array(tensor) for tensor in found if tensor is not None}

    @functools.cached_property
    def clusters(self) -> dict[str, NDArray[np.float32]]:
        """Scales by output channel that keep the values of clustered convolutions, by tensor name."""
        from onnx import numpy_helper

        graph = self.prepared.graph
        trained = list(graph_inside.stored(self.keras_path)) if self.keras_path else []
        found = {}
        for node in graph.node:
            tensor = onnx_graph.initializer(graph, node.input[1]) if node.op_type == "Conv" else None
            if tensor is None:
                continue
            if (scales := clusters.scales(numpy_helper.to_array(tensor), trained)) is not None:
                found[tensor.name] = scales
        return found

    @functools.cached_property
    def rounded(self) -> rounding.Roundings:
        """The layers, rounded by GPTQ."""
        path = None
        if self.scratch and self.keras_path:
            digest = calibration.digest_of(self.images)
            path = self.scratch / f"rounded-{catalog.sha256_of(self.keras_path)[:16]}-{digest[:16]}.npz"
        return rounding.kept(path, lambda: rounding.rounded(self.prepared, PIXELS, self.images, self.pixels))

    @property
    def choices(self) -> tuple[Choice, ...]:
        """All there are for this model; GPTQ would move weights out of the clusters they are in."""
        whole = calibration.CHOICES
        if self.clustered:
            whole = tuple(dataclasses.replace(choice, rounding=NEAREST) for choice in whole)
        return (*whole, *(calibration.CLUSTERED if self.clusters else ()))

    @property
    def clustered(self) -> bool:
        """Whether any kernel is."""
        return bool(self.clusters) or any(map(compression.clustered, self.dense.values()))

    def keeps(self, choice: Choice) -> bool:
        """Whether by this choice the kernels that hold few values keep them."""
        return choice.keeps_dense and (choice.clusters or not self.clusters)

    @property
    def pruned(self) -> bool:
        """Whether any kernel is."""
        return any(compression.pruned(layer.kernel) for layer in rounding.layers(self.prepared.graph))

    def pixels(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Raw images as the core's pixels."""
        moved = images.transpose(self.core.layout) if self.core.layout else images
        return np.ascontiguousarray(moved).astype(np.float32) * np.float32(self.core.scale)

    def model(
        self,
        choice: Choice = FIRST,
        learned: Ranges | None = None,
        *,
        widen: bool = True,
        quantized_input: bool = False,
    ) -> Any:
        """The core in QDQ form, from raw bytes to probabilities.

        Args:
            choice: Calibration, and the layers that stay float.
            learned: Ranges by tensor name that a quantization-aware model brings; they go before measured ones.
            widen: Lay the first convolution out for ONNX Runtime (`stem`).
            quantized_input: Scale bytes to float and quantize them again, for runtimes that want to see it so.
        """
        ranges = {**calibration.ranges(self.spreads, choice.method), **(learned or {})}
        model = self._qdq(choice, ranges)
        _float_logits(model.graph)
        if quantized_input:
            onnx_float.head(model, self.core, fold=False)
        else:
            _feed_bytes(model, self.core, widen)
        onnx_graph.take_bytes(model, self.core)
        return model

    def _qdq(self, choice: Choice, ranges: Ranges) -> Any:
        import onnxruntime.quantization as ort
        from onnxruntime.quantization.calibrate import TensorsData
        from onnxruntime.quantization.qdq_quantizer import QDQQuantizer
        from onnxruntime.quantization.quant_utils import save_and_reload_model_with_shape_infer
        from onnxruntime.quantization.registry import QDQRegistry, QLinearOpsRegistry

        limits = {name: (np.float32(low), np.float32(high)) for name, (low, high) in ranges.items()}
        pixel = {
            "quant_type": ort.QuantType.QUInt8,
            "scale": np.array(self.core.scale, np.float32),
            "zero_point": np.array(0, np.uint8),
        }
        one = {"quant_type": ort.QuantType.QInt8, "symmetric": True}
        overrides = {PIXELS: [pixel]} | ({name: [one] for name in self.dense} if choice.dense_by_tensor else {})
        if choice.clusters:
            zero = {"quant_type": ort.QuantType.QInt8, "zero_point": np.array(0, np.int8), "axis": 0}
            overrides |= {name: [zero | {"scale": scale} for scale in found] for name, found in self.clusters.items()}
        for layer, rounded, whole in self._rounded(choice):
            if not whole:
                zero = {"quant_type": ort.QuantType.QInt8, "zero_point": np.array(0, np.int8), "axis": layer.axis}
                overrides[layer.node.input[1]] = [zero | {"scale": scale} for scale in rounded.steps]
        last = [node.name for node in self.prepared.graph.node if node.op_type == "Softmax"]
        quantizer = QDQQuantizer(
            save_and_reload_model_with_shape_infer(self._weighted(choice)),
            choice.per_channel,
            False,  # reduce_range
            ort.QuantType.QInt8,
            ort.QuantType.QUInt8,
            TensorsData(ort.CalibrationMethod.MinMax, limits),
            [],
            [*last, *choice.floats],
            list({*QDQRegistry, *QLinearOpsRegistry}),
            {"WeightSymmetric": True, "TensorQuantOverrides": overrides},
        )
        quantizer.quantize_model()
        quantizer.model.topological_sort()
        return quantizer.model.model

    def _weighted(self, choice: Choice) -> Any:
        """The prepared network, with the weights of its quantized layers rounded by the choice."""
        if choice.rounding != GPTQ:
            return self.prepared
        model = copy.deepcopy(self.prepared)
        nodes = {node.name: node for node in model.graph.node}
        for layer, rounded, _ in self._rounded(choice):
            rounding.put(model.graph, nodes[layer.node.name], rounded)
        return model

    def _rounded(self, choice: Choice) -> Iterator[tuple[rounding.Layer, rounding.Rounded, bool]]:
        """The layers that a choice rounds by GPTQ, each with what it comes to and whether by one scale."""
        if choice.rounding != GPTQ:
            return
        for layer in rounding.layers(self.prepared.graph):
            node = layer.node
            if node.name in self.rounded and node.name not in choice.floats:
                whole = choice.keeps_dense if node.op_type in ("MatMul", "Gemm") else not choice.per_channel
                yield layer, self.rounded[node.name][whole], whole


def quantize(core: Core, images: NDArray[np.uint8]) -> Any:
    """The core as an int8 model that takes raw bytes; `images` uint8 `[N, H, W, 3]` calibrate it, by min-max."""
    return Quantizer(core, images).model()


def _prepared(core: Core) -> Any:
    """The core with BatchNorm and constants folded, its nodes named."""
    import onnx
    from onnxruntime.quantization.shape_inference import quant_pre_process

    with tempfile.TemporaryDirectory() as folder:
        whole, written = Path(folder, "core.onnx"), Path(folder, "prepared.onnx")
        onnx.save(core.model, whole)  # given the model itself, it would move the weights to a file of their own
        quant_pre_process(whole, written, skip_symbolic_shape=True)
        model = onnx.load(written)
    seen: set[str] = set()
    for place, node in enumerate(model.graph.node):
        if not node.name or node.name in seen:
            node.name = f"{node.op_type.lower()}_{place}"
        seen.add(node.name)
    return model


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


def _feed_bytes(model: Any, core: Core, widen: bool) -> None:
    """Puts the raw bytes, transposed where needed, in the place of the quantized pixels.

    A first layer that stays float gets what a float model has there.
    """
    import onnx

    graph = model.graph
    readers = onnx_graph.consumers(graph, PIXELS)
    if len(readers) != 1 or readers[0].op_type not in ("QuantizeLinear", *PRODUCTS):
        raise ValueError(f"the quantizer left the pixels to {[node.op_type for node in readers]}")
    if readers[0].op_type != "QuantizeLinear":
        onnx_float.head(model, core, fold=True)
        return
    quantized = readers[0].output[0]
    graph.node.remove(readers[0])
    group = stem.widen(graph, core, quantized) if widen else 1
    if core.layout:
        name = stem.side_by_side(graph, core, group)
        where = 1 if group > 1 else 0
        graph.node.insert(where, onnx.helper.make_node("Transpose", [name], [quantized], perm=core.layout))
        return
    for node in onnx_graph.consumers(graph, quantized):
        node.input[list(node.input).index(quantized)] = INPUT
