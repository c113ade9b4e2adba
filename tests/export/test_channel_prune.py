"""The transform `channels50`: rounds of pruning and mending that keep the budget and may be killed anywhere."""

from __future__ import annotations

import dataclasses
import functools
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import catalog
from catalog import KilnError, Recipe, Store, plugin
from export import transforming, transforms
from export.transforms import Progress, Stopped, Work, channel_prune
from export.tuning import twin
from training import data, devices, network
from training.loop import keras_namespace

STEPS = 16  # an epoch


@pytest.fixture(scope="module")
def digits() -> Any:
    loaded = data.load("digits", validation=0.1)
    return dataclasses.replace(loaded, x_train=loaded.x_train[: 32 * STEPS], y_train=loaded.y_train[: 32 * STEPS])


Make = Callable[..., Work]


def work_of(trained: Store, digits: Any, root: Path, **changes: Any) -> Work:
    """channels50 on `tiny`, two rounds of three epochs together, of 512 images."""
    card = trained.card("tiny")
    recipe = channel_prune.TUNING.recipe("any", card.recipe, transforms.Finetuning(3))
    work = Work(
        keras_path=trained.model_dir("tiny") / "model.keras",
        folder=root / "made",
        checkpoints=root / "checkpoints",
        level="channels50",
        parameters={**channel_prune.LEVELS["channels50"], "rounds": 2, "images": 128},
        architecture="lenet",
        recipe=dataclasses.replace(recipe, batch_size=32, learning_rate=2e-3),
        dataset=digits,
        seed=0,
        parent_sha256=card.weights_sha256,
        teacher_path=trained.model_dir("tiny") / "model.keras",
        teacher_sha256=card.weights_sha256,
        progress=lambda _: None,
    )
    work.folder.mkdir(exist_ok=True)
    return dataclasses.replace(work, **changes)


@pytest.fixture
def make(trained: Store, digits: Any, tmp_path: Path) -> Make:
    return functools.partial(work_of, trained, digits, tmp_path)


@dataclass(frozen=True)
class Done:
    work: Work
    told: dict[str, Any]
    seen: list[Progress]


@pytest.fixture(scope="module")
def uninterrupted(trained: Store, digits: Any, tmp_path_factory: pytest.TempPathFactory) -> Done:
    seen: list[Progress] = []
    work = work_of(trained, digits, tmp_path_factory.mktemp("uninterrupted"), progress=seen.append)
    return Done(work, channel_prune.apply(work), seen)


def weights(work: Work) -> list[np.ndarray]:
    return keras_namespace().saving.load_model(work.folder / "model.keras", compile=False).get_weights()


def same(work: Work, other_work: Work) -> bool:
    one, other = weights(work), weights(other_work)
    return len(one) == len(other) and all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))


def test_the_budget_is_kept_and_told(uninterrupted: Done, digits: Any):
    work, told, seen = uninterrupted.work, uninterrupted.told, uninterrupted.seen
    keras = keras_namespace()
    parent = keras.saving.load_model(work.keras_path, compile=False)
    small = keras.saving.load_model(work.folder / "model.keras", compile=False)

    assert network.macs(small) == told["macs"][1] <= 0.5 * told["macs"][0] == 0.5 * network.macs(parent)
    assert told["weights"] == [62_006, small.count_params()]
    assert told["channels"]["logits"] == [10, 10] and told["channels"]["conv2d"][0] == 6
    assert {name: after for name, (_, after) in told["channels"].items()} == {
        layer.name: layer.output.shape[-1] for layer in small.layers if type(layer).__name__ in ("Conv2D", "Dense")
    }
    first, last = told["rounds"]
    assert 0.5 < first["macs"] / told["macs"][0] <= 0.5**0.5 and last["macs"] == told["macs"][1]
    assert first["epochs"] + last["epochs"] == 3
    assert json.loads(json.dumps(told)) == told  # it goes into a card

    assert (small.inputs[0].dtype, small.input_shape) == ("uint8", (None, 32, 32, 3))
    answers = np.asarray(small.predict(digits.x_val, verbose=0))
    assert answers.dtype == np.float32 and np.allclose(answers.sum(axis=1), 1, atol=1e-5)
    assert 100 * np.mean(answers.argmax(axis=1) == digits.y_val) == pytest.approx(last["val_top1"], abs=1e-3)
    assert last["val_top1"] > 50  # it was mended: chance is 10

    steps = [at.done for at in seen]
    assert steps == sorted(steps) and steps[-1] == seen[-1].total == 3 * STEPS
    assert "acc" in seen[-1].figures


def test_it_computes_in_bfloat16_where_the_parent_did_and_the_device_gains_from_it(
    make: Make, uninterrupted: Done, monkeypatch: pytest.MonkeyPatch
):
    assert uninterrupted.told["compute_dtype"] == "float32" and not uninterrupted.work.recipe.mixed_precision
    parent = Recipe(mixed_precision=True).decisive()
    assert [
        plugin("export.transforms", name).TUNING.recipe("lenet", parent).mixed_precision
        for name in ("channel_prune", "prune", "cluster", "quantize_aware")
    ] == [True, False, False, False]

    computed: list[set[str]] = []
    fit = keras_namespace().Model.fit

    def watched(model: Any, *arrays: Any, **named: Any) -> Any:
        computed.append({layer.compute_dtype for layer in model.layers[1:-1]})
        assert model.layers[-1].compute_dtype == "float32"
        return fit(model, *arrays, **named)

    monkeypatch.setattr(keras_namespace().Model, "fit", watched)
    monkeypatch.setattr(devices, "gains_from_bfloat16", lambda _: True)
    work = make()
    work = dataclasses.replace(work, recipe=dataclasses.replace(work.recipe, mixed_precision=True))
    told = channel_prune.apply(work)
    assert computed and all(types == {"bfloat16"} for types in computed)
    assert told["compute_dtype"] == "bfloat16" and told["rounds"][-1]["val_top1"] > 50
    keras = keras_namespace()
    small = keras.saving.load_model(work.folder / "model.keras", compile=False)
    assert {layer.compute_dtype for layer in small.layers} == {"float32"}
    assert not same(work, uninterrupted.work)


def stop_at(work: Work, step: int) -> Work:
    """The same work, by a user who asks to stop once `step` steps are done."""
    reached: list[int] = []
    return dataclasses.replace(work, progress=lambda at: reached.append(at.done), stop=lambda: reached[-1] >= step)


@pytest.mark.slow
@pytest.mark.parametrize(
    "moments", [(2,), (STEPS + 1, 2 * STEPS + 3)], ids=["in the first round", "in the second, twice"]
)
def test_stopped_and_gone_on_gives_the_same_weights(make: Make, uninterrupted: Done, moments: tuple[int, ...]):
    for moment in moments:
        with pytest.raises(Stopped):
            channel_prune.apply(stop_at(make(), moment))
        assert not (make().folder / "model.keras").exists()
    channel_prune.apply(make())
    assert same(make(), uninterrupted.work)


@pytest.mark.slow
def test_killed_without_saving_goes_on_from_its_round(make: Make, uninterrupted: Done):
    def die(at: Progress) -> None:
        if at.done > STEPS + 2:
            raise SystemExit("killed")

    with pytest.raises(SystemExit):
        channel_prune.apply(make(progress=die))
    rounds = make().checkpoints
    assert (rounds / "round0" / "done.keras").is_file() and not (rounds / "round1" / "done.keras").exists()
    begun = (rounds / "round0" / "done.keras").stat().st_mtime_ns
    channel_prune.apply(make())
    assert (rounds / "round0" / "done.keras").stat().st_mtime_ns == begun
    assert same(make(), uninterrupted.work)


def test_what_was_begun_otherwise_is_dropped_and_the_same_goes_on(make: Make, uninterrupted: Done):
    shutil.copytree(uninterrupted.work.checkpoints, make().checkpoints)
    channel_prune.apply(make())  # every round is done: nothing is trained
    assert same(make(), uninterrupted.work)
    with pytest.raises(KilnError, match="asked for"):
        channel_prune.apply(make(parameters={**make().parameters, "macs_share": 1e-4}))
    assert not list(make().checkpoints.glob("round*"))


@pytest.mark.slow
def test_batchnorm_scales_as_criterion_and_a_flipping_parent(make: Make, trained: Store, tmp_path: Path):
    keras = keras_namespace()
    plain = twin.network_in(keras.saving.load_model(trained.model_dir("tiny") / "model.keras", compile=False))
    network.with_probabilities(keras, plain, flip=True).save(tmp_path / "flip.keras")
    work = make(keras_path=tmp_path / "flip.keras")
    work = dataclasses.replace(
        work,
        parameters={**work.parameters, "criterion": "scale", "rounds": 1},
        recipe=dataclasses.replace(work.recipe, epochs=1),
    )
    told = channel_prune.apply(work)
    assert told["macs"][1] <= 0.5 * told["macs"][0]
    written = keras.saving.load_model(work.folder / "model.keras", compile=False)
    images = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3), dtype=np.uint8)
    mirrored = np.ascontiguousarray(images[:, :, ::-1])
    there, back = (np.asarray(written.predict(view, verbose=0)) for view in (images, mirrored))
    assert np.allclose(there, back, atol=1e-5)


@pytest.mark.parametrize(("epochs", "rounds"), [(1, 3), (2, 3), (3, 3), (4, 3), (5, 5), (33, 3), (60, 5), (7, 1)])
def test_epochs_of_rounds(epochs: int, rounds: int):
    lengths = channel_prune.epochs_of(epochs, rounds)
    assert sum(lengths) == epochs and min(lengths) >= 1 and len(lengths) == min(rounds, epochs)
    assert lengths[-1] == max(lengths)


def test_the_levels_of_the_transform():
    stages = {stage.level: stage for stage in transforms.levels().values() if stage.file == "channel_prune"}
    assert {
        level: (stage.parameters["macs_share"], stage.parameters["criterion"]) for level, stage in stages.items()
    } == {
        "channels50": (0.5, "taylor"),
        "channels25": (0.25, "taylor"),
        "channels50_scale": (0.5, "scale"),
        "channels25_scale": (0.25, "scale"),
    }
    assert catalog.plugin("export.transforms", "channel_prune").ORDER == 0


def test_what_it_is_distilled_by_stands_in_its_recipe_and_a_change_makes_it_due(
    trained: Store, monkeypatch: pytest.MonkeyPatch, uninterrupted: Done
) -> None:
    (stage,), parent = transforms.chain("channels50"), trained.card("tiny")
    smooth = dataclasses.replace(parent, architecture="any", recipe={**parent.recipe, "label_smoothing": 0.1})
    recipe = transforming._recipe(smooth, stage, transforms.ITS_OWN)
    distilled = {"teacher": "trained", "distill_weight": 0.7, "temperature": 4.0, "label_smoothing": 0.0}
    assert recipe.items() >= distilled.items()
    assert uninterrupted.told["distilled"] == distilled
    tuning = dataclasses.replace(channel_prune.TUNING, changes={"label_smoothing": 0.0, "temperature": 2.0})
    monkeypatch.setattr(channel_prune, "TUNING", tuning)
    assert transforming._recipe(smooth, stage, transforms.ITS_OWN) == {**recipe, "temperature": 2.0}


def test_small_networks_have_no_channels_to_spare_and_are_trained_as_long_again(trained: Store) -> None:
    (stage,), parent = transforms.chain("channels50"), trained.card("tiny")
    long = dataclasses.replace(parent, recipe={**parent.recipe, "epochs": 150, "learning_rate": 2e-3})

    def told(name: str) -> list[object]:
        recipe = transforming._recipe(dataclasses.replace(long, architecture=name), stage, transforms.ITS_OWN)
        return [recipe[key] for key in ("epochs", "learning_rate", "teacher")]

    assert told("lenet") == [90, 2e-3, ""]
    assert told("simcnn") == [225, 2e-3, ""]  # its last round is half of that
    assert told("mobilenetv2") == [45, 1e-3, "trained"]
