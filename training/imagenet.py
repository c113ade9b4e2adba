"""Networks that `keras.applications` brings, with its ImageNet weights or without."""

from __future__ import annotations

import os
from typing import Any

import catalog
from catalog import KilnError, Recipe
from training.models import Shape

_URL = "https://storage.googleapis.com/tensorflow/keras-applications"
_FILES = {
    "ResNet50": f"{_URL}/resnet/resnet50_weights_tf_dim_ordering_tf_kernels_notop.h5",
    "MobileNetV2": f"{_URL}/mobilenet_v2/mobilenet_v2_weights_tf_dim_ordering_tf_kernels_1.0_224_no_top.h5",
    "VGG16": f"{_URL}/vgg16/vgg16_weights_tf_dim_ordering_tf_kernels_notop.h5",
}


def application(keras: Any, name: str, shape: Shape, recipe: Recipe) -> tuple[Any, Any]:
    """The application without its top: its input (uint8 `[N, H, W, 3]`) and its feature map `[N, h, w, channels]`.

    The first `recipe.frozen_layers` layers of ImageNet weights are not trained; without these weights all are. Inputs
    are scaled to [0, 1], as the reports did.

    Raises:
        KilnError: The ImageNet weights are neither in Keras' cache nor to be had; the message says what to put where.
    """
    image = keras.Input(shape, dtype="uint8", name="image")
    scaled = keras.layers.Rescaling(1 / 255)(image)
    weights = "imagenet" if recipe.weights == "imagenet" else None
    try:
        body = getattr(keras.applications, name)(include_top=False, weights=weights, input_tensor=scaled)
    except Exception as error:
        if weights is None or not ("URL fetch failure" in str(error) or isinstance(error, OSError)):
            raise
        where = os.environ.get("KERAS_HOME", "~/.keras")
        raise KilnError(
            f"the ImageNet weights of {name} could not be downloaded. Put {_FILES[name]} into {where}/models/ under "
            "its own name, or train from nothing with --weights none"
        ) from error
    if weights:
        for layer in body.layers[: recipe.frozen_layers + 2]:  # the input and the scaling come first
            layer.trainable = False
    return image, body.output


def recipes() -> list[str]:
    """The recipes that take these weights, as `<model> <recipe>`."""
    return [
        f"{model} {name}"
        for model in catalog.plugin_names("training.models")
        for name, recipe in catalog.plugin("training.models", model).RECIPES.items()
        if recipe.stem == "imagenet"
    ]
