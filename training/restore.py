"""A network made trainable again from its float ONNX variant, such as those of `zoo/`: a transform without a training.

An exporter folds BatchNorm into the kernel before it, and the scale of the pixels into the first. What a layer computes
is still there, so each kernel layer of the network takes its kernel and bias from the graph. A BatchNorm behind it gets
the mean and the variance of what it is given, measured on training images, and the scale and offset that undo them:
the answers stay the graph's, and fine-tuning finds activations as normalized as it left them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import console
from catalog import Card, KilnError, Store, Variant
from training import batchnorm, distill, network
from training.complete import complete
from training.job import Job
from training.loop import Trained, keras_namespace

BATCH = 64
COMPARED = 256  # training images on which both must answer alike
ATOL = 1e-4  # of probabilities


@dataclass(eq=False)
class Affine:
    """What a convolution or matrix product computes with the factors and offsets behind it, in Keras' layout."""

    kernel: NDArray[np.float32]  # [kh, kw, in, out], depthwise [kh, kw, in, 1], or dense [in, out]
    bias: NDArray[np.float32]  # [channels out]


def variant_of(store: Store, model: str) -> tuple[Card, Path]:
    """The card of a model, and the verified file of its float32 ONNX variant as trained.

    Raises:
        KilnError: There is none, or it is altered.
    """
    card = store.card(model)
    wanted = Variant(model, "onnx")
    offered = {one.variant: one for one in store.variants(model, {}) if one.status == "ok"}
    if wanted not in offered:
        there = ", ".join(variant.version for variant in offered) or "none"
        raise KilnError(
            f"{store.root} has no {wanted.version} of {model}, from which it could be restored (there: {there}); "
            f"train it: python -m training {model} --dataset {card.dataset.name} --recipe {card.recipe_name}"
        )
    found = offered[wanted]
    store.verify(store.variant_dir(wanted), found.files, extra_allowed=True)
    return card, store.variant_dir(wanted) / found.file


def restore(job: Job, known: Card, path: Path, command: str) -> Card:
    """Leaves the network of an ONNX file in the job's folder, trainable again and with a card.

    Raises:
        KilnError: The file holds another network, or one whose kernels cannot be told apart.
    """
    keras = keras_namespace()
    data = job.dataset
    model = network.build(keras, job.architecture, data.x_train.shape[1:], len(data.classes), job.recipe)
    images = batchnorm.sample(data, job.seed)
    fill(keras, model, path, images)
    saved = network.with_probabilities(keras, model, flip=job.recipe.flip_at_test)
    answers = np.asarray(saved.predict(images[:COMPARED], batch_size=BATCH, verbose=0))
    apart = float(np.abs(answers - distill.answers_of(path, BATCH)(images[:COMPARED], lambda answered: None)).max())
    if not apart <= ATOL:
        raise KilnError(f"{path} holds another network than {job.architecture}: answers differ by {apart:.2g}")
    console.err.print(f"{job.model}: answers as {path.name} to {apart:.1g}", highlight=False)
    trained = Trained(keras, model, [], known.train_seconds, known.commit)
    notes = f"restored from {known.model}/{path.parent.name}, trained as this card says"
    return complete(job, trained, command, known, notes)


def fill(keras: Any, model: Any, path: Path, images: NDArray[np.uint8]) -> None:
    """Gives a network of logits the weights of an ONNX graph; `images` are for BatchNorm's statistics.

    Raises:
        KilnError: A layer has no counterpart in the graph.
    """
    affines = list(_affines(path))
    norms = {id(layer.input): layer for layer in model.layers if isinstance(layer, keras.layers.BatchNormalization)}
    offsets = {}
    for layer in model.layers:
        kernel = _kernel(layer)
        if kernel is None:
            continue
        found = next((one for one in affines if one.kernel.shape == tuple(kernel.shape)), None)
        if found is None:
            raise KilnError(
                f"{path} holds another network than {model.name}: nothing in it fits the layer {layer.name}"
            )
        affines.remove(found)
        kernel.assign(_as_keras_meets_it(keras, layer, found.kernel))
        norm = norms.get(id(layer.output))
        if layer.use_bias:
            layer.bias.assign(np.zeros_like(found.bias) if norm else found.bias)
        if norm:
            offsets[norm] = found.bias
    _normalize(keras, model, offsets, images)


def _kernel(layer: Any) -> Any:
    kind = type(layer).__name__
    return layer.kernel if kind in ("Conv2D", "DepthwiseConv2D", "Dense") else None


def _as_keras_meets_it(keras: Any, layer: Any, kernel: NDArray[np.float32]) -> NDArray[np.float32]:
    """The kernel for pixels that are scaled before it, and for features in the order of Keras' Flatten."""
    before = layer.input._keras_history.operation
    if isinstance(before, keras.layers.Rescaling):
        return (kernel / np.float32(before.scale)).astype(np.float32)
    if isinstance(before, keras.layers.Flatten) and len(before.input.shape) == 4:
        _, height, width, channels = before.input.shape
        by_channel = kernel.reshape(channels, height, width, -1)
        return by_channel.transpose(1, 2, 0, 3).reshape(kernel.shape)
    return kernel


def _affines(path: Path) -> Iterator[Affine]:
    """Those of a graph, from its beginning to its end."""
    try:
        import onnx
        from onnx import numpy_helper
    except ImportError as error:
        raise KilnError(f"reading {path} needs onnx; run: pip install -r requirements/export.txt") from error

    graph = onnx.load(str(path)).graph
    constants = {one.name: numpy_helper.to_array(one) for one in graph.initializer}
    takers: dict[str, list[Any]] = {}
    for node in graph.node:
        for name in node.input:
            takers.setdefault(name, []).append(node)
    for node in graph.node:
        if node.op_type not in ("Conv", "MatMul") or node.input[1] not in constants:
            continue
        kernel = constants[node.input[1]].astype(np.float32)
        bias = constants[node.input[2]] if len(node.input) > 2 else np.float32(0)
        scale, offset = _behind(node, takers, constants)
        channels = kernel.shape[0 if node.op_type == "Conv" else 1]
        along = (-1, *[1] * (kernel.ndim - 1)) if node.op_type == "Conv" else (1, -1)
        kernel = kernel * np.broadcast_to(scale, channels).reshape(along)
        if node.op_type == "Conv":  # [out, in / groups, kh, kw]
            grouped = any(one.name == "group" and one.i > 1 for one in node.attribute)
            kernel = kernel.transpose((2, 3, 0, 1) if grouped else (2, 3, 1, 0))
        yield Affine(kernel, np.broadcast_to(bias * scale + offset, channels).astype(np.float32))


def _behind(node: Any, takers: dict[str, list[Any]], constants: dict[str, Any]) -> tuple[Any, Any]:
    """The factors and offsets, each `[channels]` or one for all, that a node's output meets before anything else."""
    scale, offset = np.float32(1), np.float32(0)
    while len(followers := takers.get(node.output[0], [])) == 1 and followers[0].op_type in ("Mul", "Add"):
        (node,) = followers
        given = [constants[name].reshape(-1) for name in node.input if name in constants]
        if not given:
            break  # a residual connection
        if node.op_type == "Mul":
            scale, offset = scale * given[0], offset * given[0]
        else:
            offset = offset + given[0]
    return scale, offset


def _normalize(keras: Any, model: Any, offsets: dict[Any, NDArray[np.float32]], images: NDArray[np.uint8]) -> None:
    """Sets each BatchNorm such that it adds its offset, by the statistics of what it is given."""
    if not offsets:
        return
    for norm, offset in offsets.items():
        _set(norm, mean=np.zeros_like(offset), variance=np.ones_like(offset) - np.float32(norm.epsilon), offset=offset)
    given = keras.Model(model.inputs[0], [norm.input for norm in offsets] + model.outputs)  # a list, also of one
    sums = [np.zeros((2, len(offset))) for offset in offsets.values()]
    pixels = [0] * len(sums)
    for begin in range(0, len(images), BATCH):
        for number, value in enumerate(given.predict_on_batch(images[begin : begin + BATCH])[:-1]):
            flat = np.asarray(value, np.float64).reshape(-1, value.shape[-1])
            sums[number] += [flat.sum(axis=0), (flat**2).sum(axis=0)]
            pixels[number] += len(flat)
    for (norm, offset), (total, squares), count in zip(offsets.items(), sums, pixels, strict=True):
        mean = total / count
        _set(norm, mean, np.maximum(squares / count - mean**2, 0), offset)


def _set(norm: Any, mean: NDArray[Any], variance: NDArray[Any], offset: NDArray[Any]) -> None:
    norm.moving_mean.assign(mean.astype(np.float32))
    norm.moving_variance.assign(variance.astype(np.float32))
    norm.gamma.assign(np.sqrt(variance + norm.epsilon).astype(np.float32))
    norm.beta.assign((offset + mean).astype(np.float32))
