"""A trained model as teacher: its softened probabilities as labels (Hinton et al., 2015)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from catalog import Card, KilnError, Store
from training.data import Dataset

Labels = Callable[[NDArray[np.uint8], Callable[[], None]], NDArray[np.float32]]


def teacher_card(store: Store, teacher: str, dataset: Dataset) -> Card:
    """The teacher's card, once its files are verified.

    Raises:
        KilnError: It is not trained, altered, or trained on other data.
    """
    card = store.card(teacher)
    if card.dataset.sha256 != dataset.sha256:
        raise KilnError(
            f"the teacher {teacher} was trained on {card.dataset.name}, not on this {dataset.name}; "
            f"train it first: python -m training {card.architecture} --dataset {dataset.name}"
        )
    store.verify(store.model_dir(teacher), card.files, extra_allowed=True)
    return card


def labeller(keras: Any, store: Store, teacher: str, temperature: float, batch: int) -> Labels:
    """A function from uint8 `[N, H, W, 3]` to the teacher's probabilities `[N, classes]` at `temperature`.

    Its second argument is called between batches, and may end it with an exception. `batch` must be a multiple of the
    devices, and N too. Softmax(logits / T) is softmax(log(probabilities) / T), so the
    saved model's probabilities suffice.
    """
    model = keras.models.load_model(store.model_dir(teacher) / "model.keras", compile=False)

    def labels(images: NDArray[np.uint8], between: Callable[[], None]) -> NDArray[np.float32]:
        watcher = keras.callbacks.LambdaCallback(on_predict_batch_end=lambda batch, logs=None: between())
        probabilities = np.asarray(model.predict(images, batch_size=batch, verbose=0, callbacks=[watcher]))
        return soften(probabilities, temperature)

    return labels


def soften(probabilities: NDArray[np.float32], temperature: float) -> NDArray[np.float32]:
    """Probabilities at a higher temperature; rows still sum to one."""
    powered = np.maximum(probabilities, 1e-12) ** (1 / temperature)
    softened: NDArray[np.float32] = (powered / powered.sum(axis=1, keepdims=True)).astype(np.float32)
    return softened
