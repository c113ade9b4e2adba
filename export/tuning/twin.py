"""Crossing between Keras 3 and `tf_keras`, which alone the compression tools accept, with nothing lost either way.

A twin is built layer by layer from the Keras 3 network, under the same names, so weights travel by name. All its layers
can be trained, also those that an ImageNet recipe froze: they have to mend. What these tools do leaves a network's
structure as it was, so the way back is setting weights: the parent's file with the twin's weights in it. Both ways the
two are run on the same images, and their probabilities must agree within `TOLERANCE`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from catalog import KilnError
from export.transforms import TEACHER, Work
from export.tuning import steps
from training import distill, loop

TOLERANCE = 1e-5
IMAGES = 16  # random ones, that are compared at each crossing

# What decides a layer's work; initializers, regularizers and names of dtypes do not cross.
_ARGUMENTS: dict[str, tuple[str, ...]] = {
    "Rescaling": ("scale", "offset"),
    "Conv2D": ("filters", "kernel_size", "strides", "padding", "dilation_rate", "groups", "activation", "use_bias"),
    "DepthwiseConv2D": (
        *("kernel_size", "strides", "padding", "depth_multiplier"),
        *("dilation_rate", "activation", "use_bias"),
    ),
    "Dense": ("units", "activation", "use_bias"),
    "BatchNormalization": ("axis", "momentum", "epsilon", "center", "scale"),
    "ReLU": ("max_value", "negative_slope", "threshold"),
    "Activation": ("activation",),
    "MaxPooling2D": ("pool_size", "strides", "padding"),
    "AveragePooling2D": ("pool_size", "strides", "padding"),
    "GlobalAveragePooling2D": ("keepdims",),
    "GlobalMaxPooling2D": ("keepdims",),
    "ZeroPadding2D": ("padding",),
    "Dropout": ("rate",),
    "Flatten": (),
    "Add": (),
}


@dataclass(frozen=True)
class Twin:
    """A trained classifier in both worlds; `logits` and `model` have layers of the same names and equal weights."""

    whole: Any  # Keras 3, as its file has it: to probabilities, perhaps averaged over the mirror image
    logits: Any  # Keras 3, the network in it up to the softmax
    model: Any  # tf_keras, the same network
    largest_difference: float  # of a probability, when it crossed


Weights = dict[str, list[NDArray[np.float32]]]
"""Arrays by layer name, each layer's in Keras' order (kernel, bias; gamma, beta, moving mean, moving variance)."""


def cross(path: Path) -> Twin:
    """Loads a trained model and builds its `tf_keras` twin.

    Raises:
        KilnError: The file is no model of the tensor contract, or holds a layer that cannot cross.
        RuntimeError: The two disagree.
    """
    import tf_keras

    from export.frozen import load_keras

    whole = load_keras(path)
    logits = network_in(whole)
    model = _rebuild(tf_keras, logits)
    _carry(logits, weights_of(logits), model)
    difference = disagreement(logits, model)
    if difference > TOLERANCE:
        raise RuntimeError(f"the tf_keras twin of {path.name} differs by {difference:.1e} in a probability")
    return Twin(whole, logits, model, difference)


def teacher(start: Twin, work: Work) -> distill.Labels:
    """Whom the fine-tuning asks: the network as trained, in `tf_keras`, or the one that the recipe names.

    The former is `start`, the twin of the work's model, for a chain's first link.

    Raises:
        KilnError: As `cross`.
        RuntimeError: As `cross`.
    """
    import tf_keras

    temperature = work.recipe.temperature
    if work.recipe.teacher != TEACHER:
        return distill.labeller(loop.keras_namespace(), work.teacher_path, temperature, steps.PREDICT_BATCH)
    model = start.model if work.teacher_sha256 == work.parent_sha256 else cross(work.teacher_path).model
    return lambda images, answered: steps.softened(tf_keras, model, images, temperature, answered)


def cross_back(twin: Twin, changed: Weights, path: Path) -> float:
    """Writes the parent with the changed layers' weights, reads it back and compares; the largest difference.

    `changed` need name only the layers whose weights differ.

    Raises:
        RuntimeError: The file predicts otherwise than the twin with these weights.
    """
    import keras

    _carry(twin.logits, changed, twin.model)
    _carry(twin.model, changed, twin.logits)
    twin.whole.save(path)
    written = network_in(keras.saving.load_model(path, compile=False, safe_mode=True))
    difference = disagreement(written, twin.model)
    if difference > TOLERANCE:
        raise RuntimeError(f"{path.name} differs by {difference:.1e} in a probability from the network it was made of")
    return difference


def network_in(whole: Any) -> Any:
    """The logits network in a saved classifier: what feeds its softmax, or the network a flipping one calls twice.

    Raises:
        KilnError: There is no softmax at its end.
    """
    import keras

    inner = [layer for layer in whole.layers if isinstance(layer, keras.Model)]
    if len(inner) == 1:
        return inner[0]
    last = whole.layers[-1]
    if type(last).__name__ != "Softmax":
        raise KilnError(f"the network ends with {type(last).__name__}, not with a softmax; train it again")
    return keras.Model(whole.inputs[0], last.input, name=whole.name)


def weights_of(model: Any) -> Weights:
    """All weights of a model, by layer."""
    return {layer.name: layer.get_weights() for layer in model.layers if layer.weights}


def disagreement(network: Any, model: Any) -> float:
    """The largest difference of a probability between two logits networks, on the same random images."""
    _, height, width, channels = network.inputs[0].shape
    images = np.random.default_rng(0).integers(0, 256, (IMAGES, height, width, channels), np.uint8)
    first, second = (_softmax(np.asarray(side(images, training=False))) for side in (network, model))
    return float(np.abs(first - second).max())


def _softmax(logits: NDArray[Any]) -> NDArray[np.float64]:
    powers = np.exp(logits.astype(np.float64) - logits.max(axis=1, keepdims=True))
    shares: NDArray[np.float64] = powers / powers.sum(axis=1, keepdims=True)
    return shares


def _carry(source: Any, arrays: Weights, target: Any) -> None:
    """Sets the target's weights by layer name, once their shapes are known to be the source's."""
    for name, values in arrays.items():
        shapes = [tuple(weight.shape) for weight in target.get_layer(name).weights]
        if shapes != [tuple(weight.shape) for weight in source.get_layer(name).weights]:
            raise RuntimeError(f"the layer {name} has weights of other shapes in its twin")
        target.get_layer(name).set_weights(values)


def _rebuild(tf_keras: Any, network: Any) -> Any:
    """The network in `tf_keras`: each layer of the same arguments and name, called on the twins of its inputs."""
    source = network.inputs[0]
    image = tf_keras.Input(tuple(source.shape[1:]), dtype="uint8", name=network.layers[0].name)
    made: dict[int, Any] = {id(source): image}
    for layer in network.layers:
        kind = type(layer).__name__
        if kind == "InputLayer":
            continue
        if kind not in _ARGUMENTS or len(layer._inbound_nodes) < 1:
            known = ", ".join(_ARGUMENTS)
            raise KilnError(f"the layer {layer.name} is a {kind}, which tf_keras is not given; it takes {known}")
        config = layer.get_config()
        arguments = {name: config[name] for name in _ARGUMENTS[kind]}
        if kind == "Dropout":  # a few epochs need none, and its random state could not be resumed
            arguments["rate"] = 0.0
        twin = getattr(tf_keras.layers, kind)(**arguments, name=layer.name)
        node = layer._inbound_nodes[0]
        feeds = [made[id(tensor)] for tensor in node.input_tensors]
        made[id(node.outputs[0])] = twin(feeds if kind == "Add" else feeds[0])
    return tf_keras.Model(image, made[id(network.outputs[0])], name=network.name)
