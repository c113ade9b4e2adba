"""Fine-tuning that keeps its best epoch: what it ends with, and that a stopped run ends with the same."""

from __future__ import annotations

import dataclasses
import gc
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from catalog import KilnError, Recipe
from export.transforms import Progress, Stopped, Work
from export.tuning import finetune, steps
from training import data, epochs
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


def test_a_fine_tuning_says_how_far_its_teacher_is_and_can_be_stopped_meanwhile(digits: Any, tmp_path: Path) -> None:
    seen: list[Progress] = []
    work = dataclasses.replace(work_of(digits, tmp_path, 1e-2), progress=seen.append, stop=lambda: True)
    work = dataclasses.replace(work, recipe=dataclasses.replace(work.recipe, teacher="trained"))
    keras = keras_namespace()
    model, teacher = network(keras), network(keras)
    with pytest.raises(Stopped):
        finetune.tune(keras, model, work, teacher=lambda x, told: steps.softened(keras, teacher, x, 4.0, told))
    assert seen == [Progress(0, 32, "epoch 1/4  the teacher answered 256 of 256 images")]


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


@pytest.mark.parametrize("distilled", [False, True], ids=["from labels", "from a teacher too"])
def test_classes_weigh_as_in_training(digits: Any, tmp_path: Path, distilled: bool) -> None:
    rare = np.flatnonzero((digits.y_train != 0) | (np.arange(256) < 64))  # of one class, few are left
    few = dataclasses.replace(digits, x_train=digits.x_train[rare], y_train=digits.y_train[rare])
    plain = work_of(few, tmp_path, 1e-2)
    plain = dataclasses.replace(
        plain, recipe=dataclasses.replace(plain.recipe, epochs=1, teacher="trained" if distilled else "")
    )
    weighed = dataclasses.replace(
        plain,
        checkpoints=tmp_path / "weighed",
        recipe=dataclasses.replace(plain.recipe, class_weights=True),
    )
    keras, fitted = keras_namespace(), list[Any]()

    def run(work: Work) -> list[np.ndarray]:
        model = network(keras)
        fit = model.fit
        model.fit = lambda *arrays, **named: fitted.append(named["sample_weight"]) or fit(*arrays, **named)  # type: ignore[func-returns-value]
        teacher = network(keras)
        finetune.tune(keras, model, work, teacher=lambda x, told: steps.softened(keras, teacher, x, 4.0, told))
        return list(model.get_weights())

    one, other = run(plain), run(weighed)
    assert fitted[0] is None
    np.testing.assert_array_equal(fitted[1], epochs.draw(weighed.recipe, few, few_seed := 0, 0)[2])
    assert few_seed == weighed.seed and fitted[1].max() > 1.5
    assert not all(np.allclose(a, b, atol=1e-6) for a, b in zip(one, other, strict=True))


def test_a_loss_that_is_nan_ends_the_run_and_the_last_good_checkpoint_stays(digits: Any, tmp_path: Path) -> None:
    seen: list[Progress] = []
    work = dataclasses.replace(work_of(digits, tmp_path, 1e-2), progress=seen.append)
    with pytest.raises(Stopped):
        tuned(dataclasses.replace(work, stop=lambda: seen[-1].done >= 12), keep_best=False)
    (before,) = work.checkpoints.iterdir()
    keras, saved = keras_namespace(), before.stat().st_mtime_ns
    model = network(keras)
    fit = model.fit

    def ruin(*arrays: Any, **named: Any) -> Any:
        model.layers[-1].bias.assign(np.full(10, np.nan, np.float32))
        return fit(*arrays, **named)

    model.fit = ruin
    with pytest.raises(KilnError, match="level: the loss is NaN or infinite in epoch 3 of fine-tuning"):
        finetune.tune(keras, model, work)
    assert [path.stat().st_mtime_ns for path in work.checkpoints.iterdir()] == [saved]
    _, told = tuned(work, keep_best=False)  # and it goes on from there
    assert [row["epoch"] for row in told.history] == [1, 2, 3, 4]


def test_a_weight_or_an_answer_that_is_nan_is_an_error(digits: Any, tmp_path: Path) -> None:
    keras, work = keras_namespace(), work_of(digits, tmp_path, 1e-2)
    model = network(keras)
    model.layers[-1].bias.assign(np.full(10, np.inf, np.float32))
    with pytest.raises(KilnError, match="an output of the fine-tuned network is NaN or infinite"):
        finetune.validation_top1(model, digits)
    run = finetune._Run(keras, model, work, work.recipe, "", None, False, 60.0)
    with pytest.raises(KilnError, match="a weight is NaN or infinite in epoch 1"):
        run.save()
    assert not any(work.checkpoints.glob("e*"))


def test_the_images_of_an_epoch_are_let_go(digits: Any, tmp_path: Path) -> None:
    """`tf_keras` keeps those of every fit in a cycle: gigabytes, until Python happens to look for cycles."""
    import tf_keras

    gc.collect()
    gc.disable()
    try:
        finetune.tune(tf_keras, network(tf_keras), work_of(digits, tmp_path, 1e-2))
        held = [thing for thing in gc.get_objects() if getattr(type(thing), "__name__", "") == "EagerTensor"]
        assert sum(tuple(tensor.shape) == digits.x_train.shape for tensor in held) <= 1  # after four epochs
    finally:
        gc.enable()
