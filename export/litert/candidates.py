"""Better weights and ranges for a quantized LiteRT file, tried on images that were held out of training.

TensorFlow's converter rounds every weight to the nearest and gives every activation the range of its smallest and
largest value. What ONNX files are made of is known better (`export/onnx/rounding.py`, `export/onnx/calibration.py`),
and both converters start from the same network and the same calibration images: kernels are found again by what is in
them, activations by the smallest and largest value they took.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from export.litert import graph as litert_graph
from export.onnx import calibration, rounding
from export.onnx.calibration import GPTQ, NEAREST
from export.onnx.graph import OUTPUT, PIXELS
from export.onnx.int8 import Quantizer
from export.onnx.rounding import Layer, Rounded, Roundings

STEP = 0.51  # of a scale, by which a weight that was rounded to it differs at most
NEAR = 2e-3  # of a range, by which two runtimes' smallest and largest values differ at most


@dataclass(frozen=True)
class Candidate:
    """One way to quantize: a rule for ranges, how weights are rounded, and the file."""

    method: str
    rounding: str
    content: bytes

    @property
    def words(self) -> dict[str, object]:
        """For a card's log."""
        return {"calibration": self.method, "per_channel": True, "rounding": self.rounding}


def candidates(plain: bytes, quantizer: Quantizer) -> Iterator[Candidate]:
    """The converter's file as it is, and with each rule for ranges the file of rounded weights.

    Args:
        plain: int8, weights rounded to the nearest, ranges by min-max.
        quantizer: Of the same network and the same calibration images.
    """
    yield Candidate("minmax", NEAREST, plain)
    together, count = rounded(plain, rounding.layers(quantizer.prepared.graph), quantizer.rounded)
    if count:
        yield Candidate("minmax", GPTQ, together)
    for method in calibration.METHODS[1:]:
        content, changed = ranged(together, quantizer.spreads, calibration.ranges(quantizer.spreads, method))
        if changed:
            yield Candidate(method, GPTQ if count else NEAREST, content)


def ranged(content: bytes, spreads: dict[str, calibration.Spread], ranges: calibration.Ranges) -> tuple[bytes, int]:
    """The file with the activations' ranges in place of the values that `spreads` saw, and how many are others.

    Tensors of one scale and zero point keep one of both: some operators ask for it. The logits keep what they have.
    """
    model = litert_graph.read(content)
    known = [(min(s.low, 0.0), max(s.high, 0.0), *ranges[n]) for n, s in spreads.items() if n not in (PIXELS, OUTPUT)]
    scales: dict[tuple[float, int], tuple[float, int]] = {}
    for scale, zero in litert_graph.activations(model):
        low, high = (-128 - zero) * scale, (127 - zero) * scale
        near = [new for *old, new in ((*k[:2], k[2:]) for k in known) if _near(old, low, high)]
        if near and near[0] != (low, high):
            scales[scale, zero] = _quantized(*near[0])
    litert_graph.rescale(model, scales)
    return litert_graph.written(model), len(scales)


def _near(old: list[float], low: float, high: float) -> bool:
    return max(abs(old[0] - low), abs(old[1] - high)) <= NEAR * (high - low)


def _quantized(low: float, high: float) -> tuple[float, int]:
    """Scale and int8 zero point of a range that holds zero."""
    scale = max(high - low, 1e-9) / 255
    return scale, int(np.clip(np.round(-128 - low / scale), -128, 127))


def rounded(content: bytes, layers: list[Layer], roundings: Roundings) -> tuple[bytes, int]:
    """The file with the layers' weights and biases as they were rounded, and how many of the layers it has."""
    model, left = litert_graph.read(content), list(layers)
    for product in litert_graph.products(model):
        found = next((layer for layer in left if _same(product, _turned(product, layer, layer.kernel))), None)
        if found is None:
            continue
        left.remove(found)
        made = roundings[found.node.name][len(product.scales) == 1]
        _put(product, found, made)
    return litert_graph.written(model), len(layers) - len(left)


def _turned(product: litert_graph.Product, layer: Layer, kernel: NDArray[np.float32]) -> NDArray[np.float32]:
    """A layer's kernel with its axes in LiteRT's order: filters, rows, columns, channels; of a matrix rows, inputs."""
    filters = layer.filters(kernel)
    if filters.ndim == 2:
        return filters
    return filters.transpose((1, 2, 3, 0) if product.axis == 3 else (0, 2, 3, 1))


def _same(product: litert_graph.Product, floats: NDArray[np.float32]) -> bool:
    """Whether its integers are those weights, each rounded to the nearest."""
    if product.kernel.shape != floats.shape:
        return False
    return bool(np.all(np.abs(floats / _by_channel(product, product.scales) - product.kernel) <= STEP))


def _by_channel(product: litert_graph.Product, values: NDArray[Any]) -> NDArray[Any]:
    """Of values by channel, what goes with a kernel of LiteRT's order."""
    return values.reshape([-1 if axis == product.axis else 1 for axis in range(product.kernel.ndim)])


def _put(product: litert_graph.Product, layer: Layer, made: Rounded) -> None:
    product.set_scales(made.steps.astype(np.float64))
    steps = _by_channel(product, product.scales)
    product.set_kernel(np.clip(np.round(_turned(product, layer, made.kernel) / steps), -127, 127).astype(np.int8))
    if product.bias is not None and layer.bias is not None and made.bias is not None:
        moved = (made.bias.astype(np.float64) - layer.bias) / product.bias_scales
        product.set_bias(product.bias + np.round(moved).astype(np.int32))
