"""Networks made trainable again: what the exporters folded is found again, and the answers stay."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

import catalog
from catalog import Recipe, Store, Variant
from export.formats import Conversion, onnx
from tests.export import train_tiny
from training import network, restore
from training.__main__ import app
from training.loop import keras_namespace

IMAGES = np.random.default_rng(0).integers(0, 256, (96, 32, 32, 3), dtype=np.uint8)


def lively(keras: Any, model: Any) -> None:
    """Gives every BatchNorm statistics, scales and offsets as after a training, some scales negative."""
    rng = np.random.default_rng(1)
    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            count = layer.gamma.shape[0]
            scale = rng.uniform(0.5, 1.5, count) * rng.choice([-1, 1], count)
            values = scale, rng.normal(0, 0.3, count), rng.normal(0, 0.1, count), rng.uniform(0.05, 0.4, count)
            layer.set_weights([np.asarray(value, np.float32) for value in values])


def exported_and_found(keras: Any, architecture: str, stem: str, precision: str, folder: Path) -> tuple[Any, Any]:
    """A network as if it were trained, and another that was filled with what an ONNX file of it holds."""
    recipe = Recipe(stem=stem)
    keras.utils.set_random_seed(0)
    trained = network.build(keras, architecture, (32, 32, 3), 10, recipe)
    lively(keras, trained)
    network.with_probabilities(keras, trained).save(folder / "model.keras")
    onnx.convert(Conversion(folder / "model.keras", folder, precision, IMAGES))
    keras.utils.set_random_seed(1)
    again = network.build(keras, architecture, (32, 32, 3), 10, recipe)
    restore.fill(keras, again, folder / "model.onnx", IMAGES)
    return trained, again


@pytest.mark.parametrize(
    ("architecture", "stem"), [("lenet", "default"), ("mobilenetv2", "fast"), ("resnet18", "default")]
)
def test_a_network_is_found_again_in_its_graph(architecture: str, stem: str, tmp_path: Path) -> None:
    """Kernels behind Flatten, depthwise ones, those of residual blocks; pixels scaled within the first kernel."""
    keras = keras_namespace()
    trained, again = exported_and_found(keras, architecture, stem, "fp32", tmp_path)
    expected = np.asarray(trained.predict(IMAGES, verbose=0))
    np.testing.assert_allclose(
        np.asarray(again.predict(IMAGES, verbose=0)), expected, atol=1e-3 * np.abs(expected).max()
    )

    norms = [layer for layer in again.layers if isinstance(layer, keras.layers.BatchNormalization)]
    if norms:
        given = keras.Model(again.inputs[0], [norms[-1].input, norms[-1].output])
        before, after = (np.asarray(value) for value in given.predict(IMAGES, verbose=0))
        channels = before.shape[-1]
        mean, spread = before.reshape(-1, channels).mean(axis=0), after.reshape(-1, channels).std(axis=0)
        np.testing.assert_allclose(norms[-1].moving_mean, mean, atol=1e-4 * np.abs(before).max())
        np.testing.assert_allclose(norms[-1].gamma, spread, rtol=0.01, atol=0.05)


@pytest.mark.parametrize(("architecture", "stem"), [("lenet", "default"), ("mobilenetv2", "fast"), ("cnn1", "default")])
def test_a_network_is_found_again_in_its_integers(architecture: str, stem: str, tmp_path: Path) -> None:
    """Also the first kernel, laid out for pixels side by side: valid, same, at stride 2."""
    keras = keras_namespace()
    trained, again = exported_and_found(keras, architecture, stem, "int8", tmp_path)
    for was, found in zip(_folded(keras, trained), _folded(keras, again), strict=True):
        assert np.linalg.norm(found - was) <= 0.05 * np.linalg.norm(was)


def _folded(keras: Any, model: Any) -> list[Any]:
    """The kernels as integers have them: BatchNorm's scale within."""
    norms = {id(layer.input): layer for layer in model.layers if isinstance(layer, keras.layers.BatchNormalization)}
    kernels = []
    for layer in model.layers:
        if not hasattr(layer, "kernel"):
            continue
        kernel, norm = np.asarray(layer.kernel), norms.get(id(layer.output))
        if norm:
            scale = np.asarray(norm.gamma) / np.sqrt(np.asarray(norm.moving_variance) + norm.epsilon)
            depthwise = isinstance(layer, keras.layers.DepthwiseConv2D)
            kernel = kernel * (scale.reshape(-1, 1) if depthwise else scale)
        kernels.append(kernel)
    return kernels


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """A store with `tiny`, a LeNet of the digits, and its float ONNX variant."""
    from export.__main__ import app as export

    store = Store(tmp_path_factory.mktemp("exported"))
    train_tiny.main(str(store.root))
    asked = ["tiny", "--store", str(store.root), "--formats", "onnx", "--precisions", "fp32,int8"]
    assert CliRunner().invoke(export, asked).exit_code == 0
    return store


def run(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["restore", *arguments])
    return result.exit_code, result.output if result.exception is None else f"{result.output}{result.exception}"


def test_a_restored_network_has_a_card_and_can_be_trained_on(exported: Store, tmp_path: Path) -> None:
    asked = ["tiny", "--source", str(exported.root), "--store", str(tmp_path)]
    status, _ = run(*asked)
    assert status == 0
    was, card, store = exported.card("tiny"), Store(tmp_path).card("tiny"), Store(tmp_path)
    assert card.accuracy == was.accuracy
    assert (card.architecture, card.recipe, card.dataset) == (was.architecture, was.recipe, was.dataset)
    assert card.notes == "restored from tiny/onnx-fp32, trained as this card says"
    store.verify(store.model_dir("tiny"), card.files, extra_allowed=True)
    page = (store.model_dir("tiny") / "index.html").read_text()
    assert "curves" not in page and "history.csv" not in page

    keras = keras_namespace()
    first, second = (
        keras.models.load_model(one.model_dir("tiny") / "model.keras", compile=False) for one in (exported, store)
    )
    for a, b in zip(first.get_weights(), second.get_weights(), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7)

    status, said = run(*asked)
    assert status != 0 and "has a model or an unfinished run; give --name, or replace it with --force" in said
    assert run(*asked, "--force")[0] == 0
    assert run(*asked, "--name", "other")[0] == 0 and store.card("other").model == "other"


def test_of_a_model_without_a_float_variant_the_integers_are_restored(exported: Store, tmp_path: Path) -> None:
    source = Store(tmp_path / "source")
    shutil.copytree(exported.model_dir("tiny"), source.model_dir("tiny"))
    shutil.rmtree(source.variant_dir(Variant("tiny", "onnx")))
    asked = ["tiny", "--source", str(source.root), "--store", str(tmp_path / "store")]
    status, said = run(*asked)
    assert status == 0, said
    assert "% of its answers are those of model.onnx" in said
    was, card = exported.card("tiny"), Store(tmp_path / "store").card("tiny")
    assert card.notes == "restored from tiny/onnx-int8, trained as this card says"
    assert card.weights_sha256 != was.weights_sha256
    assert abs(card.accuracy.correct - was.accuracy.correct) <= 0.02 * card.accuracy.images


def test_what_cannot_be_restored_is_told_before_anything_is_replaced(exported: Store, tmp_path: Path) -> None:
    source = tmp_path / "source"
    path = catalog.Store(source).model_dir("tiny") / "variants" / "onnx-fp32"
    path.mkdir(parents=True)
    card = exported.card("tiny")
    (path.parents[1] / "card.json").write_text(catalog.to_json(dataclasses.replace(card, architecture="simcnn")))
    asked = ["tiny", "--source", str(source), "--store", str(tmp_path / "store")]
    assert (
        "has no onnx-fp32 or onnx-int8 of tiny, from which it could be restored (there: none); train it"
        in run(*asked)[1]
    )

    there = exported.model_dir("tiny") / "variants" / "onnx-fp32"
    for file in there.iterdir():
        (path / file.name).write_bytes(file.read_bytes())
    assert "holds another network than simcnn: nothing in it fits the layer" in run(*asked)[1]
    (path / "model.onnx").write_bytes(b"altered")
    assert "is corrupt" in run(*asked)[1]
    assert not Store(tmp_path / "store").models()
