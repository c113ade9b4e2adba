"""Averaged weights get BatchNorm statistics of their own, and nothing else of the network moves."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from catalog import Recipe, Store
from training import batchnorm, data, loop, network
from training.job import Job


def dropping(keras: Any, shape: Any, classes: int, recipe: Recipe) -> Any:
    """A convolution, a BatchNorm and a dropout before a second pair, for images of any size."""
    image = keras.Input(shape, dtype="uint8", name="image")
    x = keras.layers.Conv2D(4, 3, use_bias=False, name="first")(keras.layers.Rescaling(1 / 255)(image))
    x = keras.layers.Dropout(0.5)(keras.layers.BatchNormalization()(x))
    x = keras.layers.BatchNormalization()(keras.layers.Conv2D(6, 3, use_bias=False)(x))
    return keras.Model(image, keras.layers.Dense(classes)(keras.layers.GlobalAveragePooling2D()(x)), name="dropping")


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Job:
    monkeypatch.setattr(network, "plugin", lambda *_: SimpleNamespace(build=dropping))
    whole = data.load("digits")
    few = dataclasses.replace(
        whole, x_train=whole.x_train[:64], y_train=whole.y_train[:64], x_val=whole.x_val[:20], y_val=whole.y_val[:20]
    )
    recipe = Recipe(batch_size=8, epochs=4, average=0.9, optimizer="sgd", learning_rate=0.5, cutmix=1.0)
    recipe = dataclasses.replace(recipe, augment="basic", sizes=((0.0, 16), (0.5, 32)))
    return Job("m", "dropping", "test", recipe, few, 0, Store(tmp_path), checkpoint_seconds=0.0)


def test_statistics_are_those_of_the_network_without_dropout(asked):
    run = loop.prepare(asked)
    images = batchnorm.sample(asked.dataset, 0)
    assert len(images) == 64 and not np.array_equal(images, asked.dataset.x_train)
    norms = [layer for layer in run.model.layers if isinstance(layer, run.keras.layers.BatchNormalization)]
    norms[1].trainable = False
    frozen = np.array(norms[1].moving_mean)
    for _ in range(2):  # whatever they were before
        batchnorm.measure(run.keras, run.model, images, 16)
    before = run.keras.Model(run.model.inputs, run.model.get_layer("first").output)
    maps = np.asarray(before.predict(images, verbose=0), np.float64)
    np.testing.assert_allclose(norms[0].moving_mean, maps.mean(axis=(0, 1, 2)), atol=1e-5)
    of_batches = maps.reshape(4, -1, maps.shape[-1]).var(axis=1).mean(axis=0)
    np.testing.assert_allclose(norms[0].moving_variance, of_batches, rtol=1e-3)
    assert np.array_equal(norms[1].moving_mean, frozen)
    (dropout,) = (layer for layer in run.model.layers if isinstance(layer, run.keras.layers.Dropout))
    assert norms[0].momentum == 0.99 and dropout.rate == 0.5


def test_a_validation_by_averaged_weights_leaves_the_run_as_it_was(asked):
    run = loop.prepare(asked)
    run.epoch(*run.draw(0))
    before = [np.array(v) for v in run.model.variables]
    with run.averaged((32, 32)):
        inside = [np.array(v) for v in run.model.variables]
    assert all(np.array_equal(a, b) for a, b in zip(before, map(np.array, run.model.variables), strict=True))
    moved = [v.path for v, a, b in zip(run.model.variables, before, inside, strict=True) if not np.array_equal(a, b)]
    assert {name.rsplit("/", 1)[1] for name in moved} >= {"kernel", "gamma", "beta", "moving_mean", "moving_variance"}


def test_validation_is_at_the_size_of_the_epoch(asked, monkeypatch):
    run = loop.prepare(asked)
    sizes = []
    predict = run.model.predict

    def watched(x: Any, *arguments: Any, **more: Any) -> Any:
        sizes.append(x.shape[1:3])
        return predict(x, *arguments, **more)

    monkeypatch.setattr(run.model, "predict", watched)
    for epoch in range(3):
        run.epoch(*run.draw(epoch))
    assert sizes == [(16, 16), (16, 16), (32, 32)]


def test_a_resumed_run_with_everything_random_ends_in_the_same_weights(asked, tmp_path):
    """BatchNorm, dropout, cutmix, an average and growing images, stopped after every step."""
    whole = loop.train(dataclasses.replace(asked, store=Store(tmp_path / "whole")))
    stops = 0
    stopped = dataclasses.replace(asked, watch=lambda done, *_: True)
    while True:
        try:
            done = loop.train(stopped)
            break
        except loop.Interrupted:
            stops += 1
            assert stops < 20
            if stops > 1:  # the first stop is inside the first epoch
                assert len((stopped.folder / "history.csv").read_text().splitlines()) == stops
    assert stops >= 2
    assert network.weights_sha256(done.model) == network.weights_sha256(whole.model)
    assert all(row["images_per_s"] > 0 and row["seconds"] > 0 for row in done.history)
    same = [{k: v for k, v in row.items() if k not in ("seconds", "images_per_s")} for row in done.history]
    assert same == [{k: v for k, v in row.items() if k not in ("seconds", "images_per_s")} for row in whole.history]
