"""GPTQ: what a layer answers changes less than by rounding each weight, and what sets scales is not moved."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from catalog import Store
from export.formats import litert
from export.frozen import frozen_of
from export.litert import candidates
from export.litert import graph as litert_graph
from export.onnx import calibration, floats, gptq, int8, rounding, search
from export.onnx import graph as onnx_graph
from export.onnx.calibration import Choice
from export.onnx.graph import PIXELS
from tests.export.test_onnx import IMAGES, small_core
from training import data

RNG = np.random.default_rng(5)


def correlated(groups: int, inputs: int, count: int = 2000) -> tuple[NDArray[Any], NDArray[np.float64]]:
    """Inputs that go together as neighbouring pixels do, and their covariances."""
    mixed = RNG.normal(0, 1, (groups, count, inputs)) + 3 * RNG.normal(0, 1, (groups, count, 1))
    return mixed, mixed.transpose(0, 2, 1) @ mixed / count


def test_together_errs_less_than_one_by_one_in_every_filter_and_moves_neither_zeros_nor_scales() -> None:
    inputs, covariance = correlated(2, 27)
    rows = RNG.normal(0, 0.2, (2, 40, 27))
    rows[:, :, 5] = 0
    largest = np.abs(rows).max(axis=2)
    steps = largest[..., None] / 127
    made, nearest = gptq.together(rows, largest, covariance), np.round(rows / steps) * steps

    def error(of: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.mean(np.square(inputs @ (of - rows).transpose(0, 2, 1)), axis=1)

    assert np.all(error(made) <= error(nearest) * (1 + 1e-9)) and error(made).mean() < 0.2 * error(nearest).mean()
    assert not made[:, :, 5].any() and np.allclose(np.abs(made).max(axis=2), largest, rtol=1e-12)
    assert np.allclose(made / steps, np.round(made / steps), atol=1e-9)
    assert np.array_equal(np.round(made / steps).max(axis=2) == 127, rows.max(axis=2) == largest)


def test_inputs_that_have_nothing_to_do_with_each_other_leave_the_nearest() -> None:
    rows = RNG.normal(0, 1, (1, 6, 9))
    largest = np.abs(rows).max(axis=2)
    steps = largest[..., None] / 127
    made = gptq.together(rows, largest, np.eye(9)[None])
    assert np.allclose(made, np.round(rows / steps) * steps)
    assert not gptq.together(np.zeros((1, 2, 9)), np.zeros((1, 2)), np.zeros((1, 9, 9))).any()


GEOMETRIES: list[dict[str, Any]] = [
    {"kernel_shape": [3, 3]},
    {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [0, 0, 1, 1]},
    {"kernel_shape": [3, 5], "strides": [1, 2], "pads": [1, 2, 1, 2]},
    {"kernel_shape": [3, 3], "dilations": [2, 2], "pads": [2, 2, 2, 2]},
    {"kernel_shape": [3, 3], "group": 4, "pads": [1, 1, 1, 1]},
    {"kernel_shape": [3, 3], "auto_pad": "SAME_UPPER", "strides": [2, 2]},
    {"kernel_shape": [2, 2], "auto_pad": "SAME_LOWER"},
    {"kernel_shape": [3, 3], "auto_pad": "VALID"},
    {"kernel_shape": [1, 1], "strides": [2, 2]},
]


@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
def test_patches_are_what_the_runtime_lays_the_kernel_on(geometry: dict[str, Any]) -> None:
    groups = geometry.get("group", 1)
    kernel = RNG.normal(0, 1, (8, 4 // groups, *geometry["kernel_shape"])).astype(np.float32)
    node = helper.make_node("Conv", ["x", "w"], ["y"], "conv", **geometry)
    shapes = [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [None] * 4) for name in "xy"]
    graph = helper.make_graph([node], "one", shapes[:1], shapes[1:], [numpy_helper.from_array(kernel, "w")])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    values = RNG.normal(0, 1, (2, 4, 9, 10)).astype(np.float32)
    (expected,) = ort.InferenceSession(model.SerializeToString()).run(None, {"x": values})
    (layer,) = rounding.layers(graph)
    patches = rounding._patches(layer, values, 10**6, RNG)
    assert patches.shape == (groups, expected[:, 0].size, layer.rows.shape[2])
    answers = np.concatenate(patches @ layer.rows.transpose(0, 2, 1).astype(np.float32), axis=1)  # [patches, filters]
    wanted = expected.transpose(0, 2, 3, 1).reshape(-1, 8)
    assert np.allclose(np.sort(answers, axis=0), np.sort(wanted, axis=0), atol=1e-4)
    assert np.allclose(layer.kernel_of(layer.rows), kernel)


def test_the_layers_of_a_network_answer_alike_on_average_by_scales_as_wide_as_needed() -> None:
    quantizer = int8.Quantizer(small_core(5, 1, (2, 2, 2, 2)), IMAGES)
    found = quantizer.rounded
    assert sorted(found) == sorted(quantizer.layers)
    for layer in rounding.layers(quantizer.prepared.graph):
        by_channel, whole = found[layer.node.name]
        least = np.abs(layer.filters(layer.kernel)).reshape(len(by_channel.steps), -1).max(axis=1) / 127
        assert (by_channel.steps >= least * (1 - 1e-6)).all() and (
            by_channel.steps <= least * 2 ** (1 / gptq.OCTAVE)
        ).all()
        octaves = gptq.OCTAVE * np.log2(by_channel.steps.max() / by_channel.steps)
        assert np.allclose(octaves, np.round(octaves), atol=1e-4)
        steps = layer.filters(by_channel.kernel).reshape(len(by_channel.steps), -1) / by_channel.steps[:, None]
        assert np.allclose(steps, np.round(steps), atol=1e-3) and np.abs(steps).max() <= 127.01
        assert whole.steps == pytest.approx(np.abs(layer.kernel).max() / 127)
        steps = whole.kernel / whole.steps
        assert np.allclose(steps, np.round(steps), atol=1e-3) and np.abs(steps).max() == pytest.approx(127)
    session, _ = onnx_graph.exposed(quantizer.prepared)
    feed = {PIXELS: quantizer.pixels(IMAGES)}
    (plain,) = session.run(["c"], feed)
    (rounded,) = onnx_graph.exposed(quantizer._weighted(Choice(rounding="gptq")))[0].run(["c"], feed)
    assert np.abs((rounded - plain).mean(axis=(0, 2, 3))).max() < 0.1 * np.abs(rounded - plain).mean()


def test_scales_are_few_and_none_is_too_narrow() -> None:
    largest = np.exp(np.random.default_rng(0).normal(size=(3, 500)))
    largest[1, 7] = 0.0  # a filter of zeros
    chosen = gptq.few_of(largest)
    held = largest > 0
    assert (chosen >= largest * (1 - 1e-9)).all() and (
        chosen[held] <= largest[held] * 2 ** (1 / gptq.OCTAVE) * (1 + 1e-9)
    ).all()
    assert len(np.unique(chosen)) < 10 * gptq.OCTAVE and np.isfinite(chosen).all() and chosen.max() == largest.max()
    assert (gptq.few_of(np.zeros((1, 4))) > 0).all()


def test_the_file_holds_the_rounded_weights_and_strays_less() -> None:
    core = small_core(5, 1, (2, 2, 2, 2))
    quantizer = int8.Quantizer(core, IMAGES)
    reference = search.run(floats.finish(core), IMAGES, 1)

    def damage(choice: Choice) -> float:
        return calibration.judge(search.run(quantizer.model(choice), IMAGES, 1), reference, None).damage

    together = Choice(rounding="gptq")
    assert damage(together) < damage(Choice())
    graph = quantizer.model(together, widen=False).graph
    tensors = {t.name: numpy_helper.to_array(t) for t in graph.initializer}
    held = tensors["w_quantized"] * tensors["w_scale"][:, None, None, None]
    (name,) = (node.name for node in quantizer.prepared.graph.node if node.op_type == "Conv")
    assert np.allclose(held, quantizer.rounded[name][0].kernel, atol=1e-6)
    assert np.array_equal(tensors["w_scale"], quantizer.rounded[name][0].steps)


def test_a_layer_that_stays_float_keeps_its_weights() -> None:
    quantizer = int8.Quantizer(small_core(3, 1, (1, 1, 1, 1)), IMAGES)
    first, _ = quantizer.layers
    weighted = quantizer._weighted(Choice(floats=(first,), rounding="gptq"))
    kernels = [layer.kernel for layer in rounding.layers(weighted.graph)]
    plain = [layer.kernel for layer in rounding.layers(quantizer.prepared.graph)]
    assert np.array_equal(kernels[0], plain[0]) and not np.array_equal(kernels[1], plain[1])


def test_layers_go_through_in_parts_of_limited_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    core = small_core(3, 1, (1, 1, 1, 1))
    whole = int8.Quantizer(core, IMAGES).rounded
    monkeypatch.setattr(rounding, "MOST_BYTES", 1)
    layers = rounding.layers(int8.Quantizer(core, IMAGES).prepared.graph)
    assert [len(part) for part in rounding._in_parts(layers)] == [1, 1]
    assert sorted(int8.Quantizer(core, IMAGES).rounded) == sorted(whole)


def test_conversions_of_one_export_share_what_was_rounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (keras_path := tmp_path / "model.keras").write_bytes(b"stands for the model")
    core = small_core(3, 1, (1, 1, 1, 1))
    first = int8.Quantizer(core, IMAGES, keras_path, tmp_path).rounded
    assert len(list(tmp_path.glob("rounded-*.npz"))) == 1
    monkeypatch.setattr(rounding, "rounded", lambda *_: pytest.fail("it rounded again"))
    read = int8.Quantizer(core, IMAGES, keras_path, tmp_path).rounded
    assert list(read) == list(first)
    for name, pair in first.items():
        for one, other in zip(pair, read[name], strict=True):
            assert np.array_equal(one.kernel, other.kernel)
            assert (one.bias is None) == (other.bias is None)
            assert one.bias is None or other.bias is None or np.array_equal(one.bias, other.bias)


def test_litert_gets_the_same_integers(store: Store, tmp_path: Path) -> None:
    images = data.load("digits").x_train[:256]
    keras_path = store.model_dir("tiny") / "model.keras"
    core = onnx_graph.core_of(keras_path, None)
    quantizer = int8.Quantizer(core, images, keras_path)
    layers = rounding.layers(quantizer.prepared.graph)
    plain = litert_graph.float_logits(litert._integer(frozen_of(keras_path, None, one_view=True), images))
    together, count = candidates.rounded(plain, layers, quantizer.rounded)
    assert count == len(layers) == 5
    before, after = (litert_graph.products(litert_graph.read(content)) for content in (plain, together))
    for layer, old, new in zip(layers, before, after, strict=True):
        made = quantizer.rounded[layer.node.name][len(new.scales) == 1]
        held = candidates._by_channel(new, new.scales) * new.kernel
        assert np.allclose(held, candidates._turned(new, layer, made.kernel), atol=new.scales.max() / 50)
        moved = np.abs(candidates._by_channel(old, old.scales) * old.kernel - held)
        assert moved.any() and (moved < 20 * candidates._by_channel(old, old.scales)).all()
        assert new.bias is not None and made.bias is not None
        assert np.allclose(new.bias * new.bias_scales, made.bias, atol=2 * new.bias_scales.max())
    (tmp_path / "model.tflite").write_bytes(together)
    answers, reference = litert.load(tmp_path / "model.tflite", 1)(images), search.run(floats.finish(core), images, 1)
    assert calibration.judge(answers, reference, None).damage < 2e-4


def test_kernels_that_are_not_of_this_network_are_left_alone(store: Store) -> None:
    (card,) = (card for card in store.variants("tiny") if card.variant.version == "litert-int8")
    content = (store.variant_dir(card.variant) / card.file).read_bytes()
    best = min(card.search, key=lambda step: step["damage"])
    assert (card.settings["rounding"], card.settings["calibration_method"]) == (best["rounding"], best["calibration"])
    assert [step["rounding"] for step in card.search] == ["nearest", *["gptq"] * len(calibration.METHODS)]
    assert [step["calibration"] for step in card.search] == ["minmax", *calibration.METHODS]
    other = int8.Quantizer(small_core(5, 1, (2, 2, 2, 2)), IMAGES)
    same, count = candidates.rounded(content, rounding.layers(other.prepared.graph), other.rounded)
    assert count == 0 and same == litert_graph.written(litert_graph.read(content))


def test_layers_of_another_kind_are_left_to_the_nearest() -> None:
    """A convolution along one axis, a matrix for each image, and a bias that is one number for all filters."""
    tensors = {"line": (4, 3, 5), "stack": (2, 3, 3), "matrix": (6, 7), "one": (1,)}
    kernels = [numpy_helper.from_array(RNG.normal(0, 1, shape).astype(np.float32), n) for n, shape in tensors.items()]
    nodes = [
        helper.make_node("Conv", ["a", "line"], ["b"], "conv"),
        helper.make_node("MatMul", ["c", "stack"], ["d"], "batched"),
        helper.make_node("Gemm", ["e", "matrix", "one"], ["f"], "dense"),
    ]
    (dense,) = rounding.layers(helper.make_graph(nodes, "odd", [], [], kernels))
    assert dense.node.name == "dense" and dense.bias is None and dense.rows.shape == (1, 7, 6)


def test_litert_gets_the_ranges_of_a_rule_and_its_biases_follow(store: Store, tmp_path: Path) -> None:
    images = data.load("digits").x_train[:256]
    keras_path = store.model_dir("tiny") / "model.keras"
    core = onnx_graph.core_of(keras_path, None)
    quantizer = int8.Quantizer(core, images, keras_path)
    plain = litert_graph.float_logits(litert._integer(frozen_of(keras_path, None, one_view=True), images))
    ranges = calibration.ranges(quantizer.spreads, "percentile-99.99")
    content, changed = candidates.ranged(plain, quantizer.spreads, ranges)
    before, after = (litert_graph.read(file) for file in (plain, content))
    old, new = (litert_graph.activations(model) for model in (before, after))
    assert changed == len(old) == len(new) == 4  # of two convolutions and two dense layers, all but the logits
    widths = sorted(high - low for low, high in ranges.values())
    assert all(min(abs(255 * scale - width) for width in widths) < 1e-4 * 255 * scale for scale, _ in new)
    assert sum(scale for scale, _ in new) < sum(scale for scale, _ in old) and all(zero == -128 for _, zero in new)
    for one, other in zip(litert_graph.products(before), litert_graph.products(after), strict=True):
        assert one.bias is not None and other.bias is not None and np.array_equal(one.kernel, other.kernel)
        assert np.allclose(one.bias * one.bias_scales, other.bias * other.bias_scales, atol=one.bias_scales.max())
    (tmp_path / "model.tflite").write_bytes(content)
    answers, reference = litert.load(tmp_path / "model.tflite", 1)(images), search.run(floats.finish(core), images, 1)
    assert calibration.judge(answers, reference, None).damage < 1e-3
    foreign = {name: calibration.Spread(7 * s.low, 7 * s.high, s.counts) for name, s in quantizer.spreads.items()}
    assert candidates.ranged(plain, foreign, ranges) == (litert_graph.written(before), 0)
