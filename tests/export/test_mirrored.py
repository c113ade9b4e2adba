"""A network that averages over the mirror image, in every format: the same contract, and one copy of its weights."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from catalog import Variant, plugin
from export import parity, pipeline, proof
from export.formats import Conversion
from export.frozen import freeze, load_keras
from export.onnx import graph as onnx_graph
from tests.export import residual
from training import network as networks

RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (24, 32, 32, 3), np.uint8)
VARIANTS = [v for v in pipeline.wanted("mirrored", [], []) if v.format in ("onnx", "openvino", "litert")]


@pytest.fixture(scope="module")
def request_(tmp_path_factory: pytest.TempPathFactory) -> Conversion:
    import keras

    folder = tmp_path_factory.mktemp("mirrored")
    networks.with_probabilities(keras, residual.logits(), flip=True).save(folder / "model.keras")
    (folder / "scratch").mkdir()
    labels = np.zeros(len(IMAGES), np.int64)
    return Conversion(
        folder / "model.keras", folder, "", IMAGES, IMAGES, labels, threads=1, scratch=folder / "scratch", cache=folder
    )


@pytest.fixture(scope="module")
def reference(request_: Conversion) -> Any:
    return np.asarray(load_keras(request_.keras_path).predict(IMAGES, verbose=0))


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_it_answers_as_its_parent_does_whatever_the_batch(
    request_: Conversion, reference: Any, variant: Variant, tmp_path: Path
) -> None:
    form = plugin("export.formats", variant.format)
    asked = dataclasses.replace(request_, folder=tmp_path, precision=variant.precision)
    made = form.convert(asked)
    predict = form.load(tmp_path / made.file, 1)
    answers = predict(IMAGES)
    assert np.abs(answers - reference).max() < {"fp32": 1e-4}.get(variant.precision, 0.05)
    mirrored = predict(np.ascontiguousarray(IMAGES[:, :, ::-1]))
    np.testing.assert_allclose(mirrored, answers, atol=1e-5)
    assert np.abs(parity.in_batches(predict, IMAGES, 5, 10) - answers).max() < 1e-5
    np.testing.assert_allclose(predict(IMAGES[:1]), answers[:1], atol=1e-5)
    inside = form.inside(tmp_path / made.file)
    once = networks.macs(load_keras(request_.keras_path))  # Keras counts a layer that is called twice once
    assert (
        inside.macs == 2 * once if (variant.format, variant.precision) != ("onnx", "int8") else inside.macs > 2 * once
    )
    if not (variant.format == "litert" and variant.precision != "int8"):
        assert proof.count(inside).tensors == 5


def test_a_graph_of_one_view_is_the_network_once(request_: Conversion) -> None:
    core = onnx_graph.core_of(request_.keras_path, request_.scratch)
    assert core.mirrored and onnx_graph.core_of(request_.keras_path, request_.scratch) == dataclasses.replace(core)
    onnx.checker.check_model(core.model)
    assert sum(node.op_type == "Conv" for node in core.model.graph.node) == 4


def test_an_average_over_something_else_is_an_error(request_: Conversion, tmp_path: Path) -> None:
    import keras

    image = keras.Input((32, 32, 3), dtype="uint8", name="image")
    logits, softmax = residual.logits(), keras.layers.Softmax(dtype="float32")
    both = [softmax(logits(image)), softmax(logits(keras.ops.flip(image, axis=1)))]
    keras.Model(image, keras.layers.Average()(both)).save(tmp_path / "down.keras")
    with pytest.raises(ValueError, match="other views than the image and its mirror image"):
        freeze(tmp_path / "down.keras", one_view=True)
    assert not freeze(tmp_path / "down.keras").mirrored
