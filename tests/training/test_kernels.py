"""The faster kernels compute what Keras' own layers compute, and leave no trace in what is saved."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from catalog import Recipe
from training import kernels, optimize
from training.loop import keras_namespace
from training.models import mobilenetv2


def two_blocks(keras: Any) -> Any:
    """uint8 `[N, H, W, 3]` to logits `[N, 10]` by the first convolution and two blocks of MobileNetV2."""
    image = keras.Input((None, None, 3), dtype="uint8")
    x = mobilenetv2._convolution(keras.layers, keras.layers.Rescaling(1 / 255)(image), 8, 3)
    x = mobilenetv2._inverted_residual(keras.layers, x, 6, 12, 2)
    x = mobilenetv2._inverted_residual(keras.layers, x, 6, 12, 1)
    return keras.Model(image, keras.layers.Dense(10)(keras.layers.GlobalAveragePooling2D()(x)))


def one_step(keras: Any, model: Any, images: np.ndarray, labels: np.ndarray) -> tuple[float, list[np.ndarray]]:
    """The loss and all weights after one step of plain SGD."""
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(0.01), loss, jit_compile=False)
    return float(model.train_on_batch(images, labels)), model.get_weights()


def test_a_step_gives_the_same_loss_weights_and_statistics(tmp_path: Path) -> None:
    keras = keras_namespace()
    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 256, (16, 16, 16, 3), dtype=np.uint8), rng.integers(0, 10, 16)
    plain, fast = (two_blocks(keras) for _ in range(2))
    fast.set_weights(plain.get_weights())
    kernels.use(keras, fast)
    assert sum("call" in vars(layer) for layer in fast.layers) == 7 + 4  # BatchNorms and 1x1 convolutions

    (plain_loss, plain_weights), (fast_loss, fast_weights) = (one_step(keras, m, images, labels) for m in (plain, fast))

    assert fast_loss == pytest.approx(plain_loss, abs=1e-4)
    for ours, theirs in zip(fast_weights, plain_weights, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=2e-3, rtol=2e-3)
    fast.set_weights(plain_weights)
    larger = rng.integers(0, 256, (16, 24, 24, 3), dtype=np.uint8)
    for batch in (images, larger):  # another size retraces with unknown shapes
        np.testing.assert_allclose(fast.predict(batch, verbose=0), plain.predict(batch, verbose=0), atol=1e-3)
    fast.save(tmp_path / "fast.keras")
    again = keras.models.load_model(tmp_path / "fast.keras")
    assert not any("call" in vars(layer) for layer in again.layers)
    np.testing.assert_allclose(again.predict(images, verbose=0), fast.predict(images, verbose=0), atol=1e-3)


def test_in_bfloat16_batchnorm_stays_one_operation_over_float_statistics() -> None:
    keras = keras_namespace()
    rng = np.random.default_rng(1)
    images = rng.normal(3, 2, (16, 8, 8, 4)).astype(np.float32)
    models = []
    for _ in range(2):
        image = keras.Input((8, 8, 4))
        models.append(keras.Model(image, keras.layers.BatchNormalization(dtype="mixed_bfloat16")(image)))
    plain, fast = models
    kernels.use(keras, fast)
    for _ in range(3):
        theirs, ours = plain(images, training=True), fast(images, training=True)
    assert ours.dtype == theirs.dtype == "bfloat16"
    np.testing.assert_allclose(np.float32(ours), np.float32(theirs), atol=0.03)
    for a, b in zip(fast.get_weights(), plain.get_weights(), strict=True):
        assert a.dtype == np.float32
        np.testing.assert_allclose(a, b, rtol=0.01, atol=1e-4)


def test_in_bfloat16_a_step_is_as_near_to_float_as_keras_own() -> None:
    """Rounded otherwise, not worse: twice the error that Keras' own layers have at most."""
    keras = keras_namespace()
    rng = np.random.default_rng(2)
    images, labels = rng.integers(0, 256, (16, 16, 16, 3), dtype=np.uint8), rng.integers(0, 10, 16)
    exact = two_blocks(keras)
    start = exact.get_weights()
    losses = {"exact": one_step(keras, exact, images, labels)[0]}
    keras.mixed_precision.set_global_policy("mixed_bfloat16")
    try:
        for name in ("plain", "fast"):
            model = two_blocks(keras)
            model.set_weights(start)
            if name == "fast":
                kernels.use(keras, model)
            losses[name] = one_step(keras, model, images, labels)[0]
    finally:
        keras.mixed_precision.set_global_policy("float32")
    assert abs(losses["plain"] - losses["exact"]) < 0.1  # else this says nothing
    assert abs(losses["fast"] - losses["exact"]) <= max(2 * abs(losses["plain"] - losses["exact"]), 0.02)


def test_a_strided_1x1_convolution_takes_every_other_pixel() -> None:
    keras = keras_namespace()
    image = keras.Input((7, 8, 4))
    shortcut = keras.layers.Conv2D(6, 1, strides=2, padding="same", use_bias=False)
    model = keras.Model(image, shortcut(image))
    x = np.random.default_rng(0).normal(size=(2, 7, 8, 4)).astype(np.float32)
    before = np.asarray(model(x))
    kernels.use(keras, model)
    assert "call" in vars(shortcut)
    np.testing.assert_allclose(np.asarray(model(x)), before, atol=1e-5)


def test_a_frozen_batch_norm_keeps_its_statistics() -> None:
    keras = keras_namespace()
    image = keras.Input((8, 8, 4))
    norm = keras.layers.BatchNormalization()
    model = keras.Model(image, norm(image))
    kernels.use(keras, model)
    norm.trainable = False
    before = [np.array(w) for w in norm.get_weights()]
    x = np.random.default_rng(0).normal(3, 2, (16, 8, 8, 4)).astype(np.float32)
    out = np.asarray(model(x, training=True))
    np.testing.assert_allclose(out, x / np.sqrt(1 + norm.epsilon), rtol=1e-5)
    for a, b in zip(before, norm.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


OPTIMIZERS = {
    "sgd": Recipe(optimizer="sgd", learning_rate=0.05, schedule="cosine", weight_decay=5e-3, average=0.9),
    "plain": Recipe(optimizer="sgd", learning_rate=0.05),
    "adam": Recipe(optimizer="adam", learning_rate=1e-2, average=0.9),
    "adamw": Recipe(optimizer="adamw", learning_rate=1e-2, schedule="onecycle", weight_decay=0.05, average=0.9),
}


@pytest.mark.parametrize("recipe", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_an_update_in_one_operation_is_keras_own(recipe: Recipe) -> None:
    """Weights, moments, decay and average, over eight steps, the first of which only copies into the average."""
    keras = keras_namespace()
    rng = np.random.default_rng(0)
    start = [rng.normal(size=shape).astype(np.float32) for shape in ((3, 3, 3, 4), (4,), (4, 2))]
    gradients = [[rng.normal(size=w.shape).astype(np.float32) for w in start] for _ in range(8)]
    states = []
    for fast in (False, True):
        names = ("kernel", "bias", "kernel")
        variables = [keras.Variable(w, name=kind) for kind, w in zip(names, start, strict=True)]
        optimizer = optimize.optimizer(keras, recipe, 8)
        optimizer.build(variables)
        if fast:
            kernels.update(keras, optimizer)
            assert "_backend_update_step" in vars(optimizer)
        for step in gradients:
            optimizer.apply([keras.ops.convert_to_tensor(g) for g in step], variables)
        states.append([np.asarray(v) for v in (*variables, *optimizer.variables)])
    for ours, theirs, begun in zip(states[1], states[0], [*start, *states[0][len(start) :]], strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=2e-5, atol=1e-6)
        assert begun is theirs or not np.allclose(ours, begun)  # it moved


def test_an_optimizer_without_one_operation_keeps_keras_own() -> None:
    keras = keras_namespace()
    for optimizer in (keras.optimizers.RMSprop(), keras.optimizers.SGD(), keras.optimizers.Adam(amsgrad=True)):
        kernels.update(keras, optimizer)
        assert "_backend_update_step" not in vars(optimizer)
