"""A network made trainable again from its ONNX variant, such as those of `zoo/`: a transform without a training.

What a layer computes is still in the graph (`affines.py`), so each kernel layer of the network takes its kernel and
bias from there. A BatchNorm behind it gets the mean and the variance of what it is given, measured on training images,
and the scale and offset that undo them: the answers stay the graph's, and fine-tuning finds activations as normalized
as it left them. Where there is no float variant, the integers of the int8 one serve: the weights are those that it
computes with, activations are no longer rounded, and so most answers are the same, not all.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import console
from catalog import Card, KilnError, Store, Variant, VariantCard
from training import affines, batchnorm, distill, network
from training.complete import complete
from training.job import Job
from training.loop import Trained, keras_namespace

BATCH = 64
COMPARED = 256  # training images on which both must answer alike
ATOL = 1e-4  # of probabilities
ALIKE = 0.95  # share of same answers where the file is int8; an export of int8 must reach as much
PRECISIONS = ("fp32", "int8")  # the first that there is


def variant_of(store: Store, model: str) -> tuple[Card, VariantCard, Path]:
    """The card of a model, that of its float32 ONNX variant as trained, or else its int8 one, and the verified file.

    Raises:
        KilnError: There is neither, or it is altered.
    """
    card = store.card(model)
    offered = {one.variant: one for one in store.variants(model, {}) if one.status == "ok"}
    wanted = [Variant(model, "onnx", precision) for precision in PRECISIONS]
    found = next((offered[variant] for variant in wanted if variant in offered), None)
    if found is None:
        there = ", ".join(variant.version for variant in offered) or "none"
        raise KilnError(
            f"{store.root} has no {' or '.join(variant.version for variant in wanted)} of {model}, from which it could "
            f"be restored (there: {there}); "
            f"train it: python -m training {model} --dataset {card.dataset.name} --recipe {card.recipe_name}"
        )
    folder = store.variant_dir(found.variant)
    store.verify(folder, found.files, extra_allowed=True)
    return card, found, folder / found.file


def restore(job: Job, known: Card, variant: VariantCard, path: Path, command: str) -> Card:
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
    alike, told = _alike(saved, path, images, exactly=variant.variant.precision == "fp32")
    if not alike:
        raise KilnError(f"{path} holds another network than {job.architecture}: {told}")
    console.err.print(f"{job.model}: {told}", highlight=False)
    trained = Trained(keras, model, [], known.train_seconds, known.commit)
    notes = f"restored from {variant.variant}, trained as this card says"
    return complete(job, trained, command, known, notes)


def _alike(model: Any, path: Path, images: NDArray[np.uint8], exactly: bool) -> tuple[bool, str]:
    """Whether the answers of a model and a file are near enough, and how near they are in words."""
    some = images[:COMPARED] if exactly else images
    answers = np.asarray(model.predict(some, batch_size=BATCH, verbose=0))
    theirs = distill.answers_of(path, BATCH)(some, lambda answered: None)
    if exactly:
        apart = float(np.abs(answers - theirs).max())
        return apart <= ATOL, f"answers as {path.name} to {apart:.1g}"
    share = float(np.mean(answers.argmax(axis=1) == theirs.argmax(axis=1)))
    return share >= ALIKE, f"{share:.1%} of its answers are those of {path.name}"


def fill(keras: Any, model: Any, path: Path, images: NDArray[np.uint8]) -> None:
    """Gives a network of logits the weights of an ONNX graph; `images` are for BatchNorm's statistics.

    Raises:
        KilnError: A layer has no counterpart in the graph.
    """
    there = affines.read(path)
    norms = {id(layer.input): layer for layer in model.layers if isinstance(layer, keras.layers.BatchNormalization)}
    offsets = {}
    layers = [layer for layer in model.layers if _kernel(layer) is not None]
    if there and _reads_more(there[0], layers[0]):
        there[0] = affines.narrowed(there[0], layers[0])
    for layer in layers:
        kernel = _kernel(layer)
        found = next((one for one in there if one.kernel.shape == tuple(kernel.shape)), None)
        if found is None:
            raise KilnError(
                f"{path} holds another network than {model.name}: nothing in it fits the layer {layer.name}"
            )
        there.remove(found)
        kernel.assign(_as_keras_meets_it(keras, layer, found))
        norm = norms.get(id(layer.output))
        if layer.use_bias:
            layer.bias.assign(np.zeros_like(found.bias) if norm else found.bias)
        if norm:
            offsets[norm] = found.bias
    _normalize(keras, model, offsets, images)


def _kernel(layer: Any) -> Any:
    kind = type(layer).__name__
    return layer.kernel if kind in ("Conv2D", "DepthwiseConv2D", "Dense") else None


def _reads_more(first: affines.Affine, layer: Any) -> bool:
    """Whether the graph's first convolution takes several pixels of a row in one step."""
    if not first.kernel.ndim == layer.kernel.ndim == 4:
        return False
    pixels, rest = divmod(first.kernel.shape[2], layer.input.shape[-1])
    return pixels > 1 and not rest


def _as_keras_meets_it(keras: Any, layer: Any, found: affines.Affine) -> NDArray[np.float32]:
    """The kernel for pixels that are scaled before it, and for features in the order of Keras' Flatten."""
    before, kernel = layer.input._keras_history.operation, found.kernel
    if isinstance(before, keras.layers.Rescaling):
        return (kernel / np.float32(before.scale)).astype(np.float32)
    if isinstance(before, keras.layers.Flatten) and len(before.input.shape) == 4 and not found.channels_last:
        _, height, width, channels = before.input.shape
        by_channel = kernel.reshape(channels, height, width, -1)
        return by_channel.transpose(1, 2, 0, 3).reshape(kernel.shape)
    return kernel


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
