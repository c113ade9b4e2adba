"""A trained model as teacher: its softened probabilities as labels (Hinton et al., 2015).

A teacher is a model of the store, `resnet18`, or one of its ONNX variants, `mobilenetv2/onnx-int8`, which answers on a
CPU in a fraction of the time; `zoo/` has such ones of four networks, for CIFAR-10.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from catalog import ROOT, DatasetInfo, KilnError, Recipe, Store, VariantCard, usable_cores
from training import devices, epochs
from training.data import Dataset

VIEWS = 16  # of each training image that a teacher is asked about, unless a recipe or `--views` says otherwise
Answered = Callable[[int], None]  # told between batches how many images are answered; may end it with an exception
Labels = Callable[[NDArray[np.uint8], Answered], NDArray[np.float32]]


class Taught:
    """A teacher's answers about the images of each epoch, asked for once where the recipe's `views` come again."""

    def __init__(self, recipe: Recipe, data: Dataset, seed: int, labels: Labels, count: int = 1) -> None:
        """`labels` answers numbers of images that `count` devices can share."""
        self._recipe, self._data, self._seed, self._labels, self._count = recipe, data, seed, labels, count
        self._known: dict[tuple[int, ...], NDArray[np.float32]] = {}  # by view and size, in the data's order

    def about(self, x: NDArray[np.uint8], epoch: int, told: Callable[[int, int], None]) -> NDArray[np.float32]:
        """The answers `[N, classes]` about the epoch's images as `epochs.draw` gave them, in their order.

        `told` learns between batches how many images are answered, of how many, and may end it with an exception.
        """
        if not self._recipe.views:
            return self._asked(x, told)
        seen = (epochs.view(self._recipe, epoch), *x.shape[1:3])
        if seen not in self._known:
            self._known[seen] = np.full((len(self._data.x_train), len(self._data.classes)), np.nan, np.float32)
        known = self._known[seen]
        order = epochs.order(self._data, self._seed, epoch)[: len(x)]
        new = np.isnan(known[order, 0])
        if new.any():  # all, or what sat the earlier epochs out
            known[order[new]] = self._asked(x[new], told)
        return known[order]

    def _asked(self, x: NDArray[np.uint8], told: Callable[[int, int], None]) -> NDArray[np.float32]:
        whole = epochs.sized(x, *self._data.x_train.shape[1:3])  # a teacher knows images of its own size only
        padded = devices.padded(whole, self._count)
        return self._labels(padded, lambda answered: told(min(answered, len(x)), len(x)))[: len(x)]


@dataclass(frozen=True)
class Teacher:
    """A verified file that answers, and the hash of what it answers by: a model's weights, or the file of a variant."""

    path: Path
    sha256: str


def find(store: Store, teacher: str, dataset: Dataset | DatasetInfo) -> Teacher:
    """The teacher of that name in the store, or that variant in the zoo.

    Raises:
        KilnError: It is not trained or exported, altered, or trained on other data.
    """
    model, _, version = teacher.partition("/")
    if version:
        kept, variant = _variant(store, model, version)
        _same_data(teacher, model, variant.dataset, dataset)
        folder = kept.variant_dir(variant.variant)
        kept.verify(folder, variant.files, extra_allowed=True)
        return Teacher(folder / variant.file, variant.files[variant.file])
    try:
        card = store.card(model)
    except KilnError as error:
        offered = [f"{model}/{one.variant.version}" for one in _variants(_zoo(), model)]
        raise KilnError(
            f"{error}, or let one of zoo/ teach: {', '.join(offered)}" if offered else str(error)
        ) from error
    _same_data(teacher, card.architecture, card.dataset, dataset)
    store.verify(store.model_dir(model), card.files, extra_allowed=True)
    return Teacher(store.model_dir(model) / "model.keras", card.weights_sha256)


def labeller(keras: Any, path: Path, temperature: float, batch: int) -> Labels:
    """A function from uint8 `[N, H, W, 3]` to the probabilities `[N, classes]` at `temperature` of a teacher's file.

    `batch` must be a multiple of the devices, and N too. Softmax(logits / T) is softmax(log(probabilities) / T), so the
    saved model's probabilities suffice.
    """
    answers = answers_of(path, batch) if path.suffix == ".onnx" else _keras(keras, path, batch)
    return lambda images, answered: soften(answers(images, answered), temperature)


def _keras(keras: Any, path: Path, batch: int) -> Labels:
    model = keras.models.load_model(path, compile=False)

    def answers(images: NDArray[np.uint8], answered: Answered) -> NDArray[np.float32]:
        return predicted(keras, model, images, batch, answered)

    return answers


def predicted(keras: Any, model: Any, images: NDArray[np.uint8], batch: int, answered: Answered) -> NDArray[np.float32]:
    """What a model of either Keras says about all images, `answered` told after each batch."""
    told = keras.callbacks.LambdaCallback(
        on_predict_batch_end=lambda index, logs=None: answered(min((index + 1) * batch, len(images)))
    )
    return np.asarray(model.predict(images, batch_size=batch, verbose=0, callbacks=[told]), np.float32)


def answers_of(path: Path, batch: int) -> Labels:
    """Of an ONNX file, its probabilities as they are, by ONNX Runtime on the CPU.

    It takes all cores that the process may use or `OMP_NUM_THREADS` allows it.

    Raises:
        KilnError: ONNX Runtime is not installed.
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise KilnError(f"{path} needs onnxruntime; run: pip install -r requirements/export.txt") from error

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = int(os.environ.get("OMP_NUM_THREADS") or usable_cores())
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # Keras computes between its calls
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    (images_name,) = (one.name for one in session.get_inputs())

    def answers(images: NDArray[np.uint8], answered: Answered) -> NDArray[np.float32]:
        parts = []
        for begin in range(0, len(images), batch):
            parts.append(session.run(None, {images_name: images[begin : begin + batch]})[0])
            answered(min(begin + batch, len(images)))
        return np.concatenate(parts)

    return answers


def soften(probabilities: NDArray[np.float32], temperature: float) -> NDArray[np.float32]:
    """Probabilities at a higher temperature; rows still sum to one."""
    powered = np.maximum(probabilities, 1e-12) ** (1 / temperature)
    softened: NDArray[np.float32] = (powered / powered.sum(axis=1, keepdims=True)).astype(np.float32)
    return softened


def _zoo() -> Store:
    return Store(ROOT / "zoo")


def _variants(store: Store, model: str) -> list[VariantCard]:
    """The variants that could teach, in either precision."""
    return [one for one in store.variants(model, {}) if one.status == "ok" and one.variant.format == "onnx"]


def _variant(store: Store, model: str, version: str) -> tuple[Store, VariantCard]:
    """The variant and the store it is in; the user's own before that of `zoo/`."""
    known = []
    for kept in (store, _zoo()):
        for one in _variants(kept, model):
            if one.variant.version == version:
                return kept, one
            known.append(one.variant.version)
    there = f"of {model} there are: {', '.join(sorted(set(known)))}" if known else f"of {model} there is none"
    raise KilnError(f"no ONNX variant {version[:80]!r} could teach; {there}. Make them: python -m export {model}")


def _same_data(teacher: str, architecture: str, trained: DatasetInfo, dataset: Dataset | DatasetInfo) -> None:
    if trained.sha256 != dataset.sha256:
        raise KilnError(
            f"the teacher {teacher} was trained on {trained.name}, not on this {dataset.name}; "
            f"train it first: python -m training {architecture} --dataset {dataset.name}"
        )
