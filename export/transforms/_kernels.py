"""What the weight-compressing transforms share: which kernels they take, and what became of them."""

from __future__ import annotations

from typing import Any

import numpy as np

from export.tuning.twin import Weights

SPARED = 0.05  # share of the weights to prune that the smallest kernels may keep
KINDS = ("Conv2D", "Dense")  # DepthwiseConv2D is closed to pruning and clustering: few weights, all of them needed


def copy_of(tf_keras: Any, model: Any) -> Any:
    """The same network with weights of its own: the tools wrap the very layers they are given, and change them."""
    copied = tf_keras.models.clone_model(model)
    copied.set_weights(model.get_weights())
    return copied


def kernels(model: Any) -> list[Any]:
    """The layers of a network whose kernels the tools can compress, in their order."""
    return [layer for layer in model.layers if type(layer).__name__ in KINDS]


def prunable(model: Any, parameters: dict[str, Any]) -> list[str]:
    """Names of the layers to prune: all but the first convolution and the last dense layer.

    For a pattern of m zeros in n, only kernels whose input channels come in whole groups of n.
    """
    group = parameters.get("zeros_of", [0, 1])[1]
    inner = kernels(model)[1:-1]
    return [layer.name for layer in inner if layer.kernel.shape[-2] % group == 0]


def heavy(weights: Weights, chosen: list[str]) -> list[str]:
    """`chosen` without the smallest kernels, as many as together hold at most the share `SPARED` of the weights.

    Convolutions near the image have few weights, each of which works at every pixel: zeros there save little and cost
    most.
    """
    left = SPARED * size(weights, chosen)
    spared = set()
    for name in sorted(chosen, key=lambda name: weights[name][0].size):
        left -= weights[name][0].size
        if left < 0:
            break
        spared.add(name)
    return [name for name in chosen if name not in spared]


def size(weights: Weights, chosen: list[str]) -> int:
    """Weights in the kernels of the chosen layers."""
    return sum(weights[name][0].size for name in chosen)


def lamp(weights: Weights, chosen: list[str], sparsity: float) -> dict[str, float]:
    """How sparse each chosen kernel becomes, so that of all their weights the share `sparsity` is zero.

    By the scores of Lee et al., Layer-adaptive sparsity for the magnitude-based pruning (ICLR 2021): a weight's square
    as a share of the squares in its kernel that are no smaller. Wide dense layers give more than narrow convolutions.
    """
    scores = {}
    for name in chosen:
        squares = np.sort(np.square(weights[name][0].ravel().astype(np.float64)))
        scores[name] = squares / np.maximum(np.cumsum(squares[::-1])[::-1], 1e-300)
    together = np.sort(np.concatenate(list(scores.values())))
    limit = together[min(round(sparsity * len(together)), len(together) - 1)]
    return {name: float(np.mean(values < limit)) for name, values in scores.items()}


def others(model: Any, chosen: list[str]) -> list[str]:
    """Layers with a kernel of any kind that were not chosen."""
    return [layer.name for layer in model.layers if "kernel" in _names(layer) and layer.name not in chosen]


def _names(layer: Any) -> str:
    return " ".join(weight.name for weight in layer.weights)


def sparsity(weights: Weights, chosen: list[str]) -> dict[str, float]:
    """The share of zeros in each chosen layer's kernel, 0..1."""
    return {name: round(float(np.mean(weights[name][0] == 0)), 4) for name in chosen}


def together(weights: Weights, chosen: list[str]) -> float:
    """The share of zeros in all chosen kernels, 0..1."""
    return round(sum(int(np.sum(weights[name][0] == 0)) for name in chosen) / size(weights, chosen), 4)


def distinct(weights: Weights, chosen: list[str]) -> dict[str, int]:
    """How many different values each chosen layer's kernel holds."""
    return {name: len(np.unique(weights[name][0])) for name in chosen}
