"""Coupled channels, for every network in the folder: cutting what is zero changes nothing, and budgets are kept."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest

import catalog
from catalog import KilnError
from export import channels
from export.channels import choose, score
from export.transforms import channel_prune
from training import network
from training.loop import keras_namespace

MODELS = catalog.plugin_names("training.models")
SHORT: dict[str, dict[str, Any]] = {  # the same blocks, fewer of them
    "mobilenetv2": {"_STAGES": ((1, 16, 1), (6, 24, 2), (6, 32, 2)), "_STRIDES": {"cifar": (1, 2, 2)}},
    "resnet18": {"_STAGES": ((64, 1), (128, 2))},
    "resnet50": {"_STAGES": ((64, 2, 1), (128, 2, 2))},
    "vgg16": {"_STAGES": ((64, 2), (128, 2), (256, 1))},
}


def built(name: str, side: int = 32, stem: str = "default") -> Any:
    """A network in which every weight matters: random biases, BatchNorm scales, shifts and statistics."""
    keras, rng = keras_namespace(), np.random.default_rng(0)
    keras.utils.set_random_seed(0)
    recipe = dataclasses.replace(catalog.plugin("training.models", name).RECIPES["cpu"], stem=stem, weights="none")
    model = network.build(keras, name, (side, side, 3), 10, recipe)
    for layer in model.layers:
        shaken = [
            w if w.ndim > 1 else w + rng.uniform(-0.2, 0.2, w.shape).astype("float32") for w in layer.get_weights()
        ]
        layer.set_weights(shaken)
    return model


def zeroed(model: Any, wired: channels.Wiring, keep: channels.Keep) -> None:
    """Sets to zero what makes or scales the channels that are not kept."""
    for place in wired.places.values():
        gone, layer = ~keep[place.leave], model.get_layer(place.name)
        arrays = layer.get_weights()
        if place.kind in ("Conv2D", "Dense"):
            arrays[0][..., gone] = 0
            if len(arrays) > 1:
                arrays[1][gone] = 0
        elif place.kind == "BatchNormalization":
            arrays[0][gone] = 0  # gamma
            arrays[1][gone] = 0  # beta
        layer.set_weights(arrays)


def answers(model: Any, side: int = 32) -> np.ndarray:
    images = np.random.default_rng(1).integers(0, 256, (4, side, side, 3), dtype=np.uint8)
    return np.asarray(model(images, training=False))


def assert_cut_well(model: Any, side: int = 32) -> None:
    wired = channels.wiring(model)
    everything = wired.everything()
    assert wired.macs(everything) == network.macs(model)
    budget = network.macs(model) // 2
    keep = choose.choose(wired, np.random.default_rng(2).random(wired.count), budget)
    whole = answers(model, side)
    zeroed(model, wired, keep)
    before = answers(model, side)
    small = channels.without(model, wired, keep)
    after = answers(small, side)
    size = np.abs(before).max()
    assert np.abs(whole - before).max() > 1e-3 * size and before.std() > 1e-3 * size  # there was something to lose
    assert np.abs(after - before).max() <= 1e-5 * max(1, size)
    assert network.macs(small) == wired.macs(keep) <= budget
    assert small.count_params() < model.count_params()
    assert (small.input_shape, small.output_shape) == (model.input_shape, model.output_shape)
    assert small.inputs[0].dtype == "uint8" and small.name == model.name
    for group in wired.groups:
        width, left = len(group.channels), int(keep[group.channels].sum())
        assert left >= width / 8 and (left == width or left % choose.multiple(width) == 0)
    told = channels.widths(wired, channels.wiring(small))
    assert told["logits"] == [10, 10] and any(after < before for before, after in told.values())


@pytest.mark.parametrize("name", MODELS)
def test_cutting_zero_channels_changes_nothing(name, monkeypatch):
    for attribute, value in SHORT.get(name, {}).items():
        monkeypatch.setattr(catalog.plugin("training.models", name), attribute, value)
    assert_cut_well(built(name))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "stem"),
    [
        *((name, "default") for name in SHORT),
        ("mobilenetv2", "imagenet"),
        ("resnet50", "imagenet"),
        ("vgg16", "imagenet"),
    ],
)
def test_cutting_zero_channels_of_the_whole_network(name, stem):
    assert_cut_well(built(name, stem=stem))


@pytest.mark.parametrize(
    ("name", "short"),
    [
        *((name, True) for name in ("lenet", "simcnn", "cnn1", "mobilenetv2", "resnet18")),
        *(pytest.param(name, False, marks=pytest.mark.slow) for name in ("mobilenetv2", "resnet18")),
    ],
)
def test_a_quarter_of_the_work_is_reached_in_rounds_whatever_the_scores(name, short, monkeypatch):
    """As `channels25` goes about it, without a training: floors and multiples are those of the network before."""
    for attribute, value in SHORT.get(name, {}).items() if short else ():
        monkeypatch.setattr(catalog.plugin("training.models", name), attribute, value)
    model, parameters = built(name), channel_prune.LEVELS["channels25"]
    first = channels.wiring(model)
    full, total = [len(group.channels) for group in first.groups], network.macs(model)
    scores, rounds = np.random.default_rng(4), parameters["rounds"]
    for number in range(rounds):
        budget = int(parameters["macs_share"] ** ((number + 1) / rounds) * total)
        wired = channels.wiring(model)
        model = channels.without(model, wired, choose.choose(wired, scores.random(wired.count), budget, full))
        assert network.macs(model) <= budget
    assert network.macs(model) <= total / 4 and model.output_shape == (None, 10)
    assert network.macs(model) > 0.15 * total  # no more was taken than blocks of channels make it


@pytest.fixture(scope="module")
def branching() -> Any:
    """Convolution, residual and depthwise branch, concatenation, flatten: 8x8 images, 3 classes."""
    keras = keras_namespace()
    keras.utils.set_random_seed(0)
    layers = keras.layers
    image = keras.Input((8, 8, 3), dtype="uint8", name="image")
    first = layers.Conv2D(8, 3, padding="same", name="first")(layers.Rescaling(1 / 255)(image))
    first = layers.ReLU()(layers.BatchNormalization(name="norm")(first))
    wide = layers.ReLU()(layers.Conv2D(12, 1, name="wide")(first))
    deep = layers.DepthwiseConv2D(3, padding="same", depth_multiplier=2, name="deep")(wide)
    back = layers.Conv2D(8, 1, name="back")(deep)
    side = layers.Conv2D(4, 1, activation="relu", name="side")(first)
    both = layers.Concatenate()([layers.Add()([first, back]), side])
    flat = layers.Flatten()(layers.MaxPooling2D(4)(both))  # 2 * 2 * 12
    return keras.Model(image, layers.Dense(3, name="logits")(flat))


def test_the_groups_of_a_branching_network(branching):
    wired = channels.wiring(branching)
    groups = {group.name: group for group in wired.groups}
    assert {name: len(group.channels) for name, group in groups.items()} == {"first": 8, "wide": 12, "side": 4}
    assert {"first", "back"} <= set(groups["first"].leaves)  # joined by Add
    assert {"wide", "side", "norm"} <= set(groups["first"].enters) and groups["first"].enters["logits"] == 4  # pixels
    assert groups["wide"].leaves["deep"] == 2  # filters a channel
    assert groups["wide"].enters["back"] == 2
    assert groups["side"].enters["logits"] == 4
    keep = wired.everything()
    keep[groups["wide"].channels[:5]] = keep[groups["first"].channels[[1, 3]]] = keep[groups["side"].channels[0]] = (
        False
    )
    zeroed(branching, wired, keep)
    small = channels.without(branching, wired, keep)
    assert np.abs(answers(small, 8) - answers(branching, 8)).max() < 1e-5
    assert network.macs(small) == wired.macs(keep)
    assert [small.get_layer(n).output.shape[-1] for n in ("first", "wide", "deep", "back", "side")] == [6, 7, 14, 6, 3]


def test_what_is_not_understood_stays_or_is_refused():
    keras = keras_namespace()
    layers = keras.layers
    image = keras.Input((8, 8, 3), dtype="uint8", name="image")
    x = layers.Conv2D(8, 3, name="before")(layers.Rescaling(1 / 255)(image))
    y = layers.Conv2D(8, 3, name="free")(layers.UnitNormalization()(x))  # mixes the channels
    done = layers.Dense(3, name="logits")(layers.GlobalAveragePooling2D()(y))
    assert [group.name for group in channels.wiring(keras.Model(image, done)).groups] == ["free"]
    grouped = layers.Conv2D(8, 3, groups=2, name="split")(x)
    with pytest.raises(KilnError, match=r"split.*2 groups"):
        channels.wiring(keras.Model(image, layers.GlobalAveragePooling2D()(grouped)))
    any_size = keras.Input((None, None, 3), dtype="uint8")
    with pytest.raises(KilnError, match="images of any size"):
        channels.wiring(keras.Model(any_size, layers.GlobalAveragePooling2D()(layers.Conv2D(4, 3)(any_size))))


def test_taylor_is_the_squared_slope_at_a_gate(branching):
    """Against finite differences, for a channel that two layers make and `Add` joins."""
    wired = channels.wiring(branching)
    rng = np.random.default_rng(3)
    images, labels = rng.integers(0, 256, (6, 8, 8, 3), dtype=np.uint8), rng.integers(0, 3, 6)
    branching.get_layer("norm").set_weights([rng.uniform(0.5, 1.5, 8).astype("float32") for _ in range(4)])
    branching.get_layer("back").set_weights(
        [rng.normal(0, 0.3, w.shape) for w in branching.get_layer("back").get_weights()]
    )
    found = score.taylor(branching, wired, images, labels)
    group = next(group for group in wired.groups if group.name == "first")

    def losses(channel: int, gate: float) -> np.ndarray:
        kept = {name: branching.get_layer(name).get_weights() for name in ("norm", "back")}
        norm, back = ([array.copy() for array in kept[name]] for name in ("norm", "back"))
        norm[0][channel] *= gate
        norm[1][channel] *= gate
        back[0][..., channel] *= gate
        back[1][channel] *= gate
        branching.get_layer("norm").set_weights(norm)
        branching.get_layer("back").set_weights(back)
        logits = np.asarray(branching(images, training=False), np.float64)
        for name, arrays in kept.items():
            branching.get_layer(name).set_weights(arrays)
        return np.log(np.exp(logits).sum(axis=1)) - logits[np.arange(6), labels]

    for channel in (0, 5):
        slopes = (losses(channel, 1.01) - losses(channel, 0.99)) / 0.02
        assert found[group.channels[channel]] == pytest.approx(float((slopes**2).mean()), rel=0.02)


def test_scale_is_the_batchnorm_scale_or_the_length_of_the_filters(branching):
    wired = channels.wiring(branching)
    found = score.scale(branching, wired)
    groups = {group.name: group.channels for group in wired.groups}
    assert np.allclose(found[groups["first"]], np.abs(branching.get_layer("norm").get_weights()[0]))
    kernel = branching.get_layer("side").get_weights()[0].reshape(-1, 4)
    assert np.allclose(found[groups["side"]], np.linalg.norm(kernel, axis=0))


def test_the_least_valuable_go_and_a_budget_out_of_reach_is_said():
    wired = channels.wiring(built("simcnn"))
    total = wired.macs(wired.everything())
    scores = np.ones(wired.count)
    for group in wired.groups:
        scores[group.channels[::2]] = 1e-6
    keep = choose.choose(wired, scores, round(0.6 * total))
    for group in wired.groups:
        if (left := int(keep[group.channels].sum())) >= len(group.channels) // 2:
            assert keep[group.channels[1::2]].all(), (group.name, left)
    with pytest.raises(KilnError, match=r"at the least.*milder"):
        choose.choose(wired, scores, total // 1000)
    halves = [2 * len(group.channels) for group in wired.groups]  # floors are those of the network before
    assert wired.macs(choose.choose(wired, scores, 600_000)) <= 600_000
    with pytest.raises(KilnError, match="at the least"):
        choose.choose(wired, scores, 600_000, halves)
