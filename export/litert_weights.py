"""Puts weights that were rounded elsewhere into a quantized LiteRT file.

TensorFlow's converter rounds every weight to the nearest. It sets scales by the same rule as ONNX Runtime's quantizer,
from the same weights, so what GPTQ made of a layer for ONNX (`export/onnx/rounding.py`) holds here as it is: only the
order of the axes differs. Kernels are told apart by what is in them.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from export import litert_graph
from export.onnx.rounding import Layer, Rounded, Roundings

STEP = 0.51  # of a scale, by which a weight that was rounded to it differs at most


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
    steps = _by_channel(product, product.scales)
    product.set_kernel(np.clip(np.round(_turned(product, layer, made.kernel) / steps), -127, 127).astype(np.int8))
    if product.bias is not None and layer.bias is not None and made.bias is not None:
        moved = (made.bias.astype(np.float64) - layer.bias) / product.bias_scales
        product.set_bias(product.bias + np.round(moved).astype(np.int32))
