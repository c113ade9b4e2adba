"""Fine-tuning that keeps its best epoch: what it ends with, and that a stopped run ends with the same."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from catalog import Recipe
from export.transforms import Progress, Stopped, Work
from export.tuning import finetune
from training import data
from training.loop import keras_namespace


@pytest.fixture(scope="module")
def digits() -> Any:
    loaded = data.load("digits", validation=0.2)
    return dataclasses.replace(loaded, x_train=loaded.x_train[:256], y_train=loaded.y_train[:256])


def work_of(digits: Any, folder: Path, rate: float) -> Work:
    recipe = Recipe(epochs=4, batch_size=32, learning_rate=rate)
    image = folder / "model.keras"  # never read: the network is built here
    return Work(image, folder, folder / "kept", "level", {}, "net", recipe, digits, 0, "0", image, "0", lambda _: None)


def network(keras: Any) -> Any:
    keras.utils.set_random_seed(0)
    image = keras.Input((32, 32, 3), dtype="uint8")
    pixels = keras.layers.Rescaling(1 / 255)(image)
    logits = keras.layers.Dense(10)(keras.layers.Flatten()(keras.layers.AveragePooling2D(4)(pixels)))
    return keras.Model(image, logits)


def tuned(work: Work, keep_best: bool = True) -> tuple[Any, finetune.Tuned]:
    keras = keras_namespace()
    model = network(keras)
    return model, finetune.tune(keras, model, work, keep_best=keep_best)


@pytest.mark.parametrize("rate", [1e-2, 1e3], ids=["that learns", "that ruins"])
def test_the_best_epoch_is_kept_the_start_among_them(digits: Any, tmp_path: Path, rate: float) -> None:
    work = work_of(digits, tmp_path, rate)
    model, told = tuned(work)
    assert [row["epoch"] for row in told.history] == [0, 1, 2, 3, 4]
    assert told.kept == max(told.history, key=lambda row: row["val_accuracy"])
    top1 = finetune.validation_top1(model, digits)
    assert top1 is not None and top1 / 100 == pytest.approx(told.kept["val_accuracy"], abs=1e-6)
    if rate < 1:
        assert told.kept["epoch"] > 0
    last, plain = tuned(dataclasses.replace(work, checkpoints=tmp_path / "plain"), keep_best=False)
    assert plain.history == told.history[1:] and plain.kept == plain.history[-1]
    same = [np.array_equal(a, b) for a, b in zip(model.get_weights(), last.get_weights(), strict=True)]
    assert all(same) == (told.kept["epoch"] == 4)


def test_without_a_validation_split_the_last_is_kept(digits: Any, tmp_path: Path) -> None:
    none = dataclasses.replace(digits, x_val=digits.x_val[:0], y_val=digits.y_val[:0])
    _, told = tuned(work_of(none, tmp_path, 1e-2))
    assert told.kept == told.history[-1] and told.kept["epoch"] == 4


def test_a_stopped_run_remembers_its_best(digits: Any, tmp_path: Path) -> None:
    (tmp_path / "straight").mkdir()
    expected, told = tuned(work_of(digits, tmp_path / "straight", 3e-1))
    seen: list[Progress] = []
    work = dataclasses.replace(work_of(digits, tmp_path, 3e-1), progress=seen.append)
    with pytest.raises(Stopped):
        tuned(dataclasses.replace(work, stop=lambda: seen[-1].done >= 24))  # in the last epoch
    model, again = tuned(work)
    assert (again.history, again.kept) == (told.history, told.kept)
    assert all(np.array_equal(a, b) for a, b in zip(model.get_weights(), expected.get_weights(), strict=True))
