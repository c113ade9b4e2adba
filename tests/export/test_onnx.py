"""The ONNX graphs: no step too many in float, integers from the first byte on in int8."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from catalog import Store, Variant
from export.onnx import floats, int8, integers, stem
from export.onnx import graph as onnx_graph
from export.onnx.calibration import Choice
from export.onnx.graph import OUTPUT, PIXELS, Core

RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (64, 32, 32, 3), np.uint8)


def model_of(store: Store, precision: str) -> Any:
    return onnx.load(store.variant_dir(Variant("tiny", "onnx", precision)) / "model.onnx")


def operators_of(store: Store, precision: str) -> dict[str, int]:
    cards = {card.variant.version: card for card in store.variants("tiny")}
    return cards[f"onnx-{precision}"].operators


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_names_versions_and_shapes_are_set_on_purpose(store: Store, precision: str) -> None:
    model = model_of(store, precision)
    told = model.graph.input[0], model.graph.output[0]
    assert [tensor.name for tensor in told] == ["images", "probabilities"]
    shapes = [[d.dim_param or d.dim_value for d in tensor.type.tensor_type.shape.dim] for tensor in told]
    assert shapes == [["batch", 32, 32, 3], ["batch", 10]]
    assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", 17)]
    assert model.ir_version == 8


def test_the_float_graph_has_one_transpose_and_no_scaling(store: Store) -> None:
    kinds = [node.op_type for node in model_of(store, "fp32").graph.node]
    assert kinds[:3] == ["Transpose", "Cast", "Conv"]
    assert kinds.count("Transpose") == 1 and not {"Mul", "Shape", "Slice", "Concat"} & set(kinds)


def test_the_integer_graph_has_no_float_step_before_softmax(store: Store) -> None:
    operators = operators_of(store, "int8")
    assert operators["QLinearConv"] == 2 and operators["QGemm"] == 3
    assert not {"QuantizeLinear", "DequantizeLinear", "Cast", "Mul", "Conv", "MatMul", "Transpose"} & set(operators)


def test_the_raw_byte_is_the_quantized_pixel(store: Store) -> None:
    graph = model_of(store, "int8").graph
    name = "images"
    while (node := onnx_graph.consumers(graph, name)[0]).op_type != "DequantizeLinear":
        assert node.op_type in ("Reshape", "Transpose")
        name = node.output[0]
    scale, zero = (numpy_helper.to_array(onnx_graph.initializer(graph, node.input[i])) for i in (1, 2))
    assert scale == np.float32(1 / 255) and zero == 0 and zero.dtype == np.uint8


def small_core(kernel: int, stride: int, pads: tuple[int, int, int, int], width: int = 32) -> Core:
    """Conv, Relu, a mean over the image, Softmax; random weights."""
    weights = {
        "w": RNG.normal(0, 0.3, (8, 3, kernel, kernel)),
        "b": RNG.normal(0, 0.3, 8),
        "d": RNG.normal(0, 3, (8, 5)),
    }
    nodes = [
        helper.make_node(
            "Conv", [PIXELS, "w", "b"], ["c"], "conv", kernel_shape=[kernel] * 2, strides=[stride] * 2, pads=pads
        ),
        helper.make_node("Relu", ["c"], ["r"], "relu"),
        helper.make_node("GlobalAveragePool", ["r"], ["p"], "pool"),
        helper.make_node("Flatten", ["p"], ["f"], "flat"),
        helper.make_node("MatMul", ["f", "d"], ["l"], "dense"),
        helper.make_node("Softmax", ["l"], [OUTPUT], "softmax"),
    ]
    graph = helper.make_graph(
        nodes,
        "small",
        [helper.make_tensor_value_info(PIXELS, TensorProto.FLOAT, ["batch", 3, 32, width])],
        [helper.make_tensor_value_info(OUTPUT, TensorProto.FLOAT, ["batch", 5])],
        [numpy_helper.from_array(value.astype(np.float32), name) for name, value in weights.items()],
    )
    model = helper.make_model(graph)
    onnx_graph.finish(model)
    return Core(model, (0, 3, 1, 2), 1 / 255, (32, width, 3))


def answers(model: Any, images: NDArray[np.uint8]) -> Any:
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {"images": images})[0]


@pytest.mark.parametrize(
    ("kernel", "stride", "pads"),
    [
        (3, 1, (0, 0, 0, 0)),
        (5, 1, (0, 0, 0, 0)),
        (3, 1, (1, 1, 1, 1)),
        (3, 2, (0, 0, 1, 1)),
        (3, 2, (1, 1, 1, 1)),
        (5, 2, (1, 1, 2, 2)),
        (7, 1, (3, 3, 3, 3)),
        (1, 1, (0, 0, 0, 0)),
        (7, 4, (2, 2, 1, 1)),
        (11, 1, (5, 5, 5, 5)),
    ],
)
def test_pixels_side_by_side_change_no_bit(
    kernel: int, stride: int, pads: tuple[int, int, int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    core = small_core(kernel, stride, pads)
    widened = int8.quantize(core, IMAGES)
    assert "side_by_side" in {name for node in widened.graph.node for name in node.output}
    monkeypatch.setattr(stem, "widen", lambda *_: 1)
    plain = int8.quantize(core, IMAGES)
    assert "side_by_side" not in {name for node in plain.graph.node for name in node.output}
    np.testing.assert_array_equal(answers(widened, IMAGES), answers(plain, IMAGES))


@pytest.mark.parametrize("per_channel", [True, False])
def test_pixels_side_by_side_leave_a_graph_that_holds_without_optimization(per_channel: bool) -> None:
    """One scale of all channels stays one: repeated for each column, only a runtime that never reads it takes it."""
    model = int8.Quantizer(small_core(3, 1, (0, 0, 0, 0)), IMAGES).model(Choice(per_channel=per_channel))
    dims = {tensor.name: tensor.dims for tensor in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "DequantizeLinear" and node.input[0] in dims:
            assert np.prod(dims[node.input[1]]) in (1, *dims[node.input[0]])
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    assert np.abs(session.run(None, {"images": IMAGES})[0] - answers(model, IMAGES)).max() < 0.02


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8", "mixed"])
def test_short_names_change_no_bit_and_layers_keep_theirs(precision: str) -> None:
    core = small_core(3, 1, (1, 1, 1, 1))
    quantizer = int8.Quantizer(core, IMAGES)
    made = {
        "fp32": lambda: floats.finish(core),
        "fp16": lambda: floats.half(core),
        "int8": quantizer.model,
        "mixed": lambda: quantizer.model(Choice(floats=(quantizer.layers[1],))),
    }
    model = made[precision]()
    expected, size = answers(model, IMAGES), model.ByteSize()
    onnx_graph.shorten(model)
    np.testing.assert_array_equal(answers(model, IMAGES), expected)
    assert model.ByteSize() < size
    named = {node.name for node in model.graph.node} - {""}
    assert named == set(quantizer.layers) == {"conv", "dense"}
    assert [tensor.name for tensor in (*model.graph.input, *model.graph.output)] == ["images", "probabilities"]
    assert max(len(name) for node in model.graph.node for name in node.input if name != "images") <= 3


def test_a_width_that_does_not_divide_is_left_as_it_is() -> None:
    core = small_core(3, 1, (1, 1, 1, 1), width=30)
    model = int8.quantize(core, IMAGES[:, :, :30])
    assert "side_by_side" not in {name for node in model.graph.node for name in node.output}
    assert answers(model, IMAGES[:, :, :30]).shape == (64, 5)


def test_scaling_in_the_convolution_is_scaling_of_the_pixels() -> None:
    core = small_core(3, 1, (1, 1, 1, 1))
    session = ort.InferenceSession(core.model.SerializeToString(), providers=["CPUExecutionProvider"])
    pixels = IMAGES.transpose(0, 3, 1, 2).astype(np.float32) / 255
    expected = session.run(None, {PIXELS: pixels})[0]
    np.testing.assert_allclose(answers(floats.finish(core), IMAGES), expected, atol=1e-5)


def test_a_graph_that_computes_in_float_is_no_int8(store: Store) -> None:
    core = small_core(3, 1, (1, 1, 1, 1))
    with pytest.raises(ValueError, match="only 0 of 1 Conv run in integers"):
        integers.check(core, floats.finish(core))
    path = store.variant_dir(Variant("tiny", "onnx", "int8")) / "model.onnx"
    optimized = onnx_graph.optimized(path)
    wrong = Core(core.model, core.layout, 1 / 128, core.shape)
    with pytest.raises(ValueError, match="the pixels' scale is"):
        integers.check(wrong, optimized)
