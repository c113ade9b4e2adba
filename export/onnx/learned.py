"""The ranges a quantization-aware model learned, from its layers to the tensors of an ONNX graph.

tf2onnx cannot turn fake quantization into integers, so the model is exported as float and its ranges travel beside it.
A converter renames, folds and moves tensors about; which of them is a layer's output is therefore found by value: both
networks run on the same images, and the tensor that holds the layer's numbers is the layer's.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from catalog import KilnError, from_json, write_atomic
from export.onnx import graph

IMAGES = 4
LEVELS = 255  # steps of an asymmetric 8-bit range


@dataclass(frozen=True)
class Learned:
    """By Keras layer name: the range of its output, and the largest magnitude of its kernel by output channel.

    Dense kernels have one magnitude for all channels. Weights are symmetric, `magnitude / 127` a step.
    """

    activations: dict[str, Any]
    weights: dict[str, list[float]]

    @property
    def dense_by_tensor(self) -> bool:
        """Whether kernels were trained with one scale for all of their channels."""
        return any(len(sizes) == 1 for sizes in self.weights.values())


def write(learned: Learned, path: Path) -> None:
    """Writes `ranges.json`."""
    write_atomic(path, json.dumps(asdict(learned), indent=2) + "\n")


def read(path: Path) -> Learned:
    """What `write` wrote.

    Raises:
        KilnError: The file is not that.
    """
    try:
        found = from_json(Learned, json.loads(path.read_text(encoding="utf-8")))
        pairs = {name: (float(low), float(high)) for name, (low, high) in found.activations.items()}
    except (OSError, ValueError, TypeError) as error:
        raise KilnError(f"{path.name} cannot be read as learned ranges: {error}") from error
    return Learned(pairs, found.weights)


def nudged(low: float, high: float) -> tuple[float, float]:
    """The range in which zero is one of the 256 levels, as fake quantization moves it in training."""
    low, high = min(low, 0.0), max(high, 0.0)
    scale = (high - low) / LEVELS
    if scale == 0:
        return 0.0, 0.0
    zero = round(-low / scale)
    return -zero * scale, (LEVELS - zero) * scale


def by_tensor(
    prepared: Any,
    pixels: Callable[[NDArray[np.uint8]], NDArray[np.float32]],
    keras_path: Path,
    learned: Learned,
) -> dict[str, tuple[float, float]]:
    """The learned range of every tensor of a float ONNX model that is the output of a layer with one.

    Args:
        prepared: The model that is going to be quantized.
        pixels: Makes its input of uint8 images `[N, H, W, 3]`.
        keras_path: The Keras model it was converted from.
        learned: What quantization-aware training left.

    Raises:
        ValueError: A layer's output is nowhere in the graph.
    """
    names = list(learned.activations)
    outputs, shape = _layer_outputs(keras_path, names)
    images = np.random.default_rng(0).integers(0, 256, (IMAGES, *shape), np.uint8)
    wanted = outputs(images)
    found: dict[str, tuple[float, float]] = {}
    missing = set(names)
    for tensor, values in _tensors(prepared, pixels(images)).items():
        for name, output in zip(names, wanted, strict=True):
            if _same(values, output):
                found[tensor] = nudged(*learned.activations[name])
                missing.discard(name)
    if missing:
        raise ValueError(f"the output of the layer {sorted(missing)[0]} is nowhere in the ONNX graph")
    return found


def _layer_outputs(path: Path, names: list[str]) -> tuple[Callable[[Any], list[NDArray[Any]]], tuple[int, ...]]:
    import keras

    from export.frozen import load_keras
    from export.tuning.twin import network_in

    network = network_in(load_keras(path))
    watch = keras.Model(network.inputs[0], [network.get_layer(name).output for name in names])

    def outputs(images: NDArray[np.uint8]) -> list[NDArray[Any]]:
        answers = watch(images, training=False)
        return [np.asarray(output) for output in (answers if isinstance(answers, list) else [answers])]

    return outputs, tuple(network.inputs[0].shape[1:])


def _tensors(model: Any, feed: NDArray[np.float32]) -> dict[str, NDArray[np.float32]]:
    """Every float tensor the model computes of this input, by name."""
    session, names = graph.exposed(model, as_written=True)
    answers = session.run(names, {session.get_inputs()[0].name: feed})
    return dict(zip(names, answers, strict=True))


def _same(tensor: NDArray[np.float32], output: NDArray[np.float32]) -> bool:
    """Whether an ONNX tensor holds a layer's output: channels first or last, a global pool squeezed or not yet."""
    forms = [output, output.transpose(0, 3, 1, 2) if output.ndim == 4 else output[:, :, None, None]]
    near = 1e-3 * max(float(np.abs(output).max()), 1e-6)
    return any(tensor.shape == form.shape and np.allclose(tensor, form, rtol=0, atol=near) for form in forms)
