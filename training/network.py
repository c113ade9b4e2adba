"""What a network is apart from its training: how it is built, saved, counted and hashed."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np

from catalog import KilnError, Recipe, plugin


def build(
    keras: Any, architecture: str, shape: tuple[int | None, int | None, int], classes: int, recipe: Recipe
) -> Any:
    """The network of `training/models/<architecture>.py`: uint8 `[N, H, W, 3]` to logits `[N, classes]`.

    Raises:
        KilnError: No such network or stem, or its downsampling leaves nothing of an image this small.
    """
    module = plugin("training.models", architecture)
    stems = getattr(module, "STEMS", ("default",))
    if recipe.stem not in stems:
        raise KilnError(f"{architecture} has no stem {recipe.stem[:40]!r}; it has: {', '.join(stems)}")
    try:
        return module.build(keras, shape, classes, recipe)
    except (ValueError, ZeroDivisionError) as error:
        if shape[0] is None:
            raise KilnError(f"{architecture} takes images of one size; its recipe must not have `sizes`") from error
        reason = str(error).splitlines()[0]
        raise KilnError(f"{architecture} cannot be built for {shape[0]}x{shape[1]} images: {reason}") from error


def with_probabilities(keras: Any, logits: Any, flip: bool = False) -> Any:
    """The model that is saved: uint8 `[N, H, W, 3]` to float32 probabilities `[N, classes]`, the tensor contract.

    With `flip`, the mean over the image and its mirror image, at twice the work.
    """
    softmax = keras.layers.Softmax(dtype="float32", name="softmax")
    if not flip:
        return keras.Model(logits.inputs, softmax(logits.outputs[0]), name=logits.name)
    image = keras.Input(logits.input_shape[1:], dtype="uint8", name="image")
    both = [softmax(logits(image)), softmax(logits(keras.ops.flip(image, axis=2)))]
    return keras.Model(image, keras.layers.Average(name="probabilities")(both), name=logits.name)


def in_precision(keras: Any, model: Any) -> Any:
    """The network of logits that was loaded, computing as the global policy says; logits and weights stay float32.

    A file tells the policy that its layers were saved under, which would win.
    """
    policy = keras.config.dtype_policy()
    *inner, _ = [layer for layer in model.layers if type(layer).__name__ != "InputLayer"]
    for layer in inner:
        layer.dtype_policy = policy
    return model


def macs(model: Any) -> int:
    """Multiply-accumulates of all convolutions and dense layers for one image, layers inside layers included."""
    total = 0
    for layer in model._flatten_layers(include_self=False) if hasattr(model, "_flatten_layers") else model.layers:
        kind = type(layer).__name__
        if kind == "Dense":
            total += layer.input.shape[-1] * layer.units
        elif kind in ("Conv2D", "DepthwiseConv2D"):
            _, height, width, _ = layer.output.shape
            kernel = layer.weights[0].shape  # [kh, kw, in / groups, out]; depthwise [kh, kw, in, multiplier]
            total += int(np.prod(kernel)) * height * width
    return total


def weights_sha256(model: Any) -> str:
    """SHA-256 over shapes and bytes of all weights in order: what two runs share if and only if they agree."""
    digest = hashlib.sha256()
    for weight in model.get_weights():
        array = np.ascontiguousarray(weight)
        digest.update(f"{array.dtype}{array.shape}".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()
