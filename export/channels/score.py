"""What each channel is worth: how much the loss, or what flows through the network, would miss it."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from export.channels import Wiring

Scores = NDArray[np.float64]
"""float64 `[channels]`, by channel number; zero where nobody asked."""

BATCH = 64


def taylor(model: Any, wired: Wiring, images: NDArray[np.uint8], labels: NDArray[np.int64]) -> Scores:
    """First-order estimate of how much the cross-entropy changes without a channel, squared and averaged over images.

    With a gate of 1 on a channel's output, the gradient at the gate is the sum over its pixels of output times
    gradient; a coupled channel's gates are closed together, so theirs are summed before squaring (Molchanov et al.,
    2019, "Importance estimation for neural network pruning", equation 8).

    `model` gives logits, `labels` are class indices. The network runs as at inference; TensorFlow only.
    """
    import keras
    import tensorflow as tf

    gates = _gates(model, wired)
    probe = keras.Model(model.inputs[0], [*(tensor for _, tensor in gates), model.outputs[0]])
    squares = np.zeros(wired.count)
    for first in range(0, len(images), BATCH):
        x, y = images[first : first + BATCH], labels[first : first + BATCH]
        with tf.GradientTape() as tape:
            *outputs, logits = probe(x, training=False)
            loss = tf.reduce_sum(tf.nn.sparse_softmax_cross_entropy_with_logits(y, tf.cast(logits, tf.float32)))
        each = np.zeros((wired.count, len(x)))
        for (ids, _), output, slope in zip(gates, outputs, tape.gradient(loss, outputs), strict=True):
            product = tf.cast(output * slope, tf.float64)
            np.add.at(each, ids, tf.reduce_sum(product, axis=range(1, len(product.shape) - 1)).numpy().T)
        squares += (each**2).sum(axis=1)
    return squares / len(images)


def _gates(model: Any, wired: Wiring) -> list[tuple[NDArray[np.int64], Any]]:
    """Channel numbers and output of every layer that makes channels which may go; with its BatchNorm, if it has one."""
    prunable = {name for group in wired.groups for name in group.leaves}
    gates = []
    for place in wired.places.values():
        if place.name in prunable and place.kind in ("Conv2D", "Dense"):
            layer = model.get_layer(place.name)
            behind = [node.operation for node in layer._outbound_nodes if node.operation.name in wired.places]
            if len(behind) == 1 and type(behind[0]).__name__ == "BatchNormalization":
                layer = behind[0]
            gates.append((place.leave, layer.output))
    return gates


def scale(model: Any, wired: Wiring) -> Scores:
    """The mean size of the BatchNorm scales a channel passes through (Liu et al., 2017), needing no images.

    A channel that passes none is worth the length of the filters that make it. Sizes in one group say nothing about
    those in another.
    """
    sums, counts = np.zeros(wired.count), np.zeros(wired.count)
    lengths = np.zeros(wired.count)
    for place in wired.places.values():
        layer = model.get_layer(place.name)
        if place.kind == "BatchNormalization" and layer.scale:
            np.add.at(sums, place.enter, np.abs(np.asarray(layer.gamma)))
            np.add.at(counts, place.enter, 1)
        elif place.kind in ("Conv2D", "Dense"):
            kernel = np.asarray(layer.get_weights()[0], np.float64)
            np.add.at(lengths, place.leave, np.sqrt((kernel.reshape(-1, kernel.shape[-1]) ** 2).sum(axis=0)))
    worth: Scores = np.where(counts > 0, sums / np.maximum(counts, 1), lengths)
    return worth
