"""Every network in the folder: its size, its contract, and that both Keras flavours build the same one."""

import dataclasses

import numpy as np
import pytest

import catalog
from catalog import KilnError
from training import network
from training.loop import keras_namespace

MODELS = catalog.plugin_names("training.models")
FAMILY = {"lenet", "simcnn", "resnet50", "mobilenetv2", "resnet18", "alexnet", "vgg16", "cnn1", "cnn2", "cnn3"}
# models.md: parameters at ten classes; those it states exactly, the others within its rounding
STATED = {"lenet": 62_006, "simcnn": 122_570, "cnn1": 181_162, "cnn2": 1_250_858, "cnn3": 4_210_090}
ROUNDED = {"resnet50": 23.6e6, "resnet18": 11.2e6, "vgg16": 14.7e6}


def recipe(model: str, name: str) -> catalog.Recipe:
    return dataclasses.replace(catalog.plugin("training.models", model).RECIPES[name], weights="none")


def test_the_whole_family_is_there():
    assert set(MODELS) >= FAMILY
    for model in FAMILY:
        assert {"report", "cpu", "reference"} <= set(catalog.plugin("training.models", model).RECIPES)


@pytest.mark.parametrize("model", MODELS)
def test_parameters_and_contract(model):
    keras = keras_namespace()
    module = catalog.plugin("training.models", model)
    logits = network.build(keras, model, (32, 32, 3), 10, recipe(model, "cpu"))
    default = network.build(keras, model, (32, 32, 3), 10, dataclasses.replace(recipe(model, "cpu"), stem="default"))
    assert default.count_params() == module.PARAMETERS
    if model in STATED:
        assert default.count_params() == STATED[model]
    if model in ROUNDED:
        assert default.count_params() == pytest.approx(ROUNDED[model], rel=0.005)
    saved = network.with_probabilities(keras, logits)
    assert (saved.inputs[0].dtype, tuple(saved.input_shape)) == ("uint8", (None, 32, 32, 3))
    images = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), dtype=np.uint8)
    probabilities = np.asarray(saved.predict(images, verbose=0))
    assert probabilities.shape == (2, 10) and probabilities.dtype == np.float32
    assert np.allclose(probabilities.sum(axis=1), 1, atol=1e-5)


@pytest.mark.parametrize(("model", "parameters"), [("mobilenetv2", 2_270_794), ("resnet50", 25_696_138)])
def test_the_reports_own_versions(model, parameters):
    logits = network.build(keras_namespace(), model, (32, 32, 3), 10, recipe(model, "report"))
    assert logits.count_params() == parameters


@pytest.mark.parametrize("model", ["lenet", "mobilenetv2"])
def test_tf_keras_twin_predicts_the_same(model):
    import tf_keras

    keras = keras_namespace()
    ours = network.build(keras, model, (32, 32, 3), 10, recipe(model, "cpu"))
    twin = network.build(tf_keras, model, (32, 32, 3), 10, recipe(model, "cpu"))
    twin.set_weights(ours.get_weights())
    images = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3), dtype=np.uint8)
    here, there = np.asarray(ours.predict(images, verbose=0)), twin.predict(images, verbose=0)
    assert np.abs(here - there).max() < 1e-4 * max(1, np.abs(here).max())


def test_flip_at_test_is_the_mean_of_both_views_and_in_the_file(tmp_path):
    keras = keras_namespace()
    logits = network.build(keras, "lenet", (32, 32, 3), 10, recipe("lenet", "cpu"))
    network.with_probabilities(keras, logits, flip=True).save(tmp_path / "flip.keras")
    both = keras.models.load_model(tmp_path / "flip.keras", compile=False)
    one = network.with_probabilities(keras, logits)
    images = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3), dtype=np.uint8)
    views = [np.asarray(one.predict(view, verbose=0)) for view in (images, np.ascontiguousarray(images[:, :, ::-1]))]
    assert np.allclose(np.asarray(both.predict(images, verbose=0)), np.mean(views, axis=0), atol=1e-6)
    assert not np.allclose(views[0], views[1], atol=1e-4)


def test_macs_by_hand():
    keras = keras_namespace()
    lenet = network.build(keras, "lenet", (32, 32, 3), 10, recipe("lenet", "cpu"))
    by_hand = 28 * 28 * 6 * 75 + 10 * 10 * 16 * 150 + 400 * 120 + 120 * 84 + 84 * 10
    assert network.macs(lenet) == network.macs(network.with_probabilities(keras, lenet)) == by_hand


def test_images_too_small_for_a_network_are_an_error_that_says_so():
    with pytest.raises(KilnError, match="lenet cannot be built for 8x8"):
        network.build(keras_namespace(), "lenet", (8, 8, 3), 10, recipe("lenet", "cpu"))
    with pytest.raises(KilnError, match="lenet takes images of one size; its recipe must not have `sizes`"):
        network.build(keras_namespace(), "lenet", (None, None, 3), 10, recipe("lenet", "cpu"))


@pytest.mark.parametrize("model", MODELS)
def test_every_recipe_names_a_stem_of_its_network_and_says_how_long_it_takes(model):
    module = catalog.plugin("training.models", model)
    for name, one in module.RECIPES.items():
        assert one.stem in getattr(module, "STEMS", ("default",)), name
        assert one.minutes and one.where, name
    with pytest.raises(KilnError, match=f"{model} has no stem 'tiny'; it has: default"):
        network.build(keras_namespace(), model, (32, 32, 3), 10, dataclasses.replace(recipe(model, "cpu"), stem="tiny"))


@pytest.mark.parametrize(("model", "last"), [("vgg16", "block4_pool"), ("mobilenetv2", None)])
def test_as_many_layers_are_frozen_as_the_recipe_says(model, last, monkeypatch):
    keras = keras_namespace()
    for name in ("VGG16", "MobileNetV2"):  # as if the ImageNet weights were there
        plain = getattr(keras.applications, name)
        monkeypatch.setattr(keras.applications, name, lambda weights, plain=plain, **more: plain(weights=None, **more))
    asked = recipe(model, "report") if last else dataclasses.replace(recipe(model, "report"), frozen_layers=3)
    asked = dataclasses.replace(asked, weights="imagenet")
    layers = network.build(keras, model, (32, 32, 3), 10, asked).layers[2:]  # behind input and scaling
    frozen = [layer.name for layer in layers if not layer.trainable]
    assert len(frozen) == asked.frozen_layers and frozen == [layer.name for layer in layers[: len(frozen)]]
    assert last is None or frozen[-1] == last
    drawn = network.build(keras, model, (32, 32, 3), 10, dataclasses.replace(asked, weights="none"))
    assert all(layer.trainable for layer in drawn.layers), "random weights would be frozen"


@pytest.mark.parametrize(("model", "blocks"), [("resnet18", 8), ("resnet50", 16)])
def test_every_residual_block_begins_as_the_identity(model, blocks):
    layers = network.build(keras_namespace(), model, (32, 32, 3), 10, recipe(model, "cpu")).layers
    gammas = [np.asarray(layer.gamma) for layer in layers if type(layer).__name__ == "BatchNormalization"]
    assert sum(not gamma.any() for gamma in gammas) == blocks and sum((gamma == 1).all() for gamma in gammas) > blocks


def test_missing_imagenet_weights_say_which_file_goes_where(monkeypatch):
    keras = keras_namespace()

    def refuse(*_args, **_kwargs):
        raise Exception("URL fetch failure on https://…: None -- [Errno -2] Name or service not known")

    monkeypatch.setattr(keras.applications, "MobileNetV2", refuse)
    report = catalog.plugin("training.models", "mobilenetv2").RECIPES["report"]
    with pytest.raises(KilnError, match=r"mobilenet_v2_weights.*no_top\.h5 into ~/\.keras/models/.*--weights none"):
        network.build(keras, "mobilenetv2", (32, 32, 3), 10, report)
