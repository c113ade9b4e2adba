"""A network for tests of what surrounds a network."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from catalog import Recipe
from training import network


def any_size(keras: Any, shape: Any, classes: int, recipe: Recipe) -> Any:
    """A network of one convolution and a BatchNorm, for images of any size: quick to compile."""
    image = keras.Input(shape, dtype="uint8", name="image")
    x = keras.layers.Conv2D(4, 3, use_bias=False)(keras.layers.Rescaling(1 / 255)(image))
    x = keras.layers.GlobalAveragePooling2D()(keras.layers.BatchNormalization()(x))
    return keras.Model(image, keras.layers.Dense(classes)(x), name="any_size")


def stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    """Has `any_size` built, whatever architecture is asked for."""
    monkeypatch.setattr(network, "plugin", lambda *_: SimpleNamespace(build=any_size))
