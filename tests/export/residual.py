"""A network with what LeNet lacks: BatchNorm, ReLU6, a depthwise convolution, an addition, a pooling over the image."""

from __future__ import annotations

import shutil
from typing import Any

import numpy as np

import catalog
from catalog import CARD, Store
from export.transforms import MODEL


def logits() -> Any:
    """Uint8 images to ten logits; weights and statistics are random, depthwise filters of very different sizes."""
    import keras

    keras.utils.set_random_seed(0)
    layers, rng = keras.layers, np.random.default_rng(0)

    def normed(x: Any, name: str, relu: bool = True) -> Any:
        x = layers.BatchNormalization(name=f"{name}_bn")(x)
        return layers.ReLU(6.0, name=f"{name}_relu")(x) if relu else x

    image = keras.Input((32, 32, 3), dtype="uint8", name="image")
    x = layers.Rescaling(1 / 255, name="pixels")(image)
    first = normed(layers.Conv2D(8, 3, 2, "same", use_bias=False, name="first")(x), "first")
    x = normed(layers.DepthwiseConv2D(3, 1, "same", use_bias=False, name="depthwise")(first), "depthwise")
    x = normed(layers.Conv2D(8, 1, use_bias=False, name="narrow")(x), "narrow", relu=False)
    x = layers.Add(name="add")([first, x])
    x = normed(layers.Conv2D(16, 3, 2, "same", use_bias=False, name="last")(x), "last")
    x = layers.GlobalAveragePooling2D(name="pool")(x)
    network = keras.Model(image, layers.Dense(10, name="logits")(x), name="residual")
    for layer in network.layers:
        if type(layer).__name__ == "BatchNormalization":
            layer.set_weights([rng.uniform(0.5, 1.5, weight.shape) for weight in layer.get_weights()])
    kernel = network.get_layer("depthwise").get_weights()[0]
    network.get_layer("depthwise").set_weights([kernel * np.geomspace(0.01, 1, 8)[:, None]])
    return network


def write(trained: Store, store: Store, network: Any, flip: bool = False) -> None:
    """Files the network in `store` as `tiny`, under the card that `tiny` has in `trained`; its hash aside."""
    import keras

    from training import network as networks

    folder = store.model_dir("tiny")
    folder.mkdir(parents=True)
    networks.with_probabilities(keras, network, flip).save(folder / MODEL)
    shutil.copyfile(trained.model_dir("tiny") / CARD, folder / CARD)
    card = catalog.read_card(catalog.Card, folder / CARD)
    told = catalog.to_json(card).replace(card.files[MODEL], catalog.sha256_of(folder / MODEL))
    catalog.write_atomic(folder / CARD, told)
