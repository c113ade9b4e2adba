"""BatchNorm's statistics of weights that no step has trained: the averaged ones.

The moving mean and variance in a network are of the weights that were trained. Under others, such as their average,
they are wrong, and most so where the learning rate is high; so they are measured anew, as Izmailov et al. (2018) do
after averaging weights.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from training.augment import Images
from training.data import Dataset

IMAGES = 2048  # whose mean differs from that of all by a fiftieth of a standard deviation


def sample(data: Dataset, seed: int) -> Images:
    """Training images without augmentation, the same ones for the same seed: `[at most IMAGES, H, W, 3]`."""
    chosen = np.random.default_rng([seed, IMAGES]).permutation(len(data.x_train))[:IMAGES]
    return data.x_train[chosen]


def measure(keras: Any, model: Any, images: Images, batch_size: int) -> None:
    """Sets every BatchNorm's moving mean and variance to their means over whole batches of `images`.

    Layers that are frozen keep theirs; without any other this costs nothing.
    """
    layers = list(model._flatten_layers(include_self=False))
    norms = [layer for layer in layers if isinstance(layer, keras.layers.BatchNormalization) and layer.trainable]
    if not norms:
        return
    size = min(batch_size, len(images))
    with _without_dropout(keras, layers), _own_momentum(norms):
        for seen in range(len(images) // size):
            for norm in norms:
                norm.momentum = seen / (seen + 1)
            model(images[seen * size : (seen + 1) * size], training=True)


@contextmanager
def _own_momentum(norms: list[Any]) -> Iterator[None]:
    kept = [norm.momentum for norm in norms]
    try:
        yield
    finally:
        for norm, momentum in zip(norms, kept, strict=True):
            norm.momentum = momentum


@contextmanager
def _without_dropout(keras: Any, layers: list[Any]) -> Iterator[None]:
    drops = [(layer, layer.rate) for layer in layers if isinstance(layer, keras.layers.Dropout)]
    for layer, _ in drops:
        layer.rate = 0.0
    try:
        yield
    finally:
        for layer, rate in drops:
            layer.rate = rate
