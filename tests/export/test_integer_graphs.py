"""A residual network with depthwise convolutions, trained quantization-aware: what of it lands in the integer graph."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

import catalog
from catalog import Store
from export.formats import Conversion
from export.formats import onnx as onnx_format
from export.frozen import load_keras
from export.onnx import graph as onnx_graph
from export.onnx import int8, integers, learned, search
from export.onnx.calibration import Choice
from export.onnx.integers import CONVOLUTION, DENSE
from export.transforms import MODEL
from export.tuning import twin
from tests.export import residual
from tests.export.conftest import Run

IMAGES = np.random.default_rng(0).integers(0, 256, (16, 32, 32, 3), np.uint8)


@pytest.fixture(scope="module")
def aware(run: Run, trained: Store, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What quantization-aware training of the residual network leaves."""
    out = tmp_path_factory.mktemp("residual")
    residual.write(trained, Store(out / "store"), residual.logits())
    done = run("tests.export.transform_tiny", out / "store", out / "made", "quantize_aware")
    assert done.returncode == 0, done.stderr
    return out / "made" / "quantize_aware"


@pytest.fixture(scope="module")
def quantizer(aware: Path) -> int8.Quantizer:
    return int8.Quantizer(onnx_graph.core_of(aware / MODEL, None), IMAGES)


@pytest.fixture(scope="module")
def ranges(aware: Path) -> learned.Learned:
    return learned.read(aware / "ranges.json")


@pytest.fixture(scope="module")
def model(aware: Path, quantizer: int8.Quantizer, ranges: learned.Learned) -> Any:
    """The int8 model with the learned ranges, as it is exported but for the stem's layout."""
    tensors = learned.by_tensor(quantizer.prepared, quantizer.pixels, aware / MODEL, ranges)
    return quantizer.model(Choice(dense_by_tensor=ranges.dense_by_tensor), tensors, widen=False)


def optimized(model: Any, path: Path) -> Any:
    onnx.save(model, path)
    return onnx_graph.optimized(path)


def test_ranges_are_learned_where_integers_are_rounded(ranges: learned.Learned) -> None:
    assert set(ranges.activations) == {
        "first_relu",
        "depthwise_relu",
        "narrow_bn",
        "add",
        "last_relu",
        "pool",
        "logits",
    }
    assert {name: len(sizes) for name, sizes in ranges.weights.items()} == {
        "first": 8,
        "depthwise": 8,  # a scale for every filter
        "narrow": 8,
        "last": 16,
        "logits": 1,
    }
    sizes = ranges.weights["depthwise"]
    assert max(sizes) > 20 * min(sizes)


def test_the_graph_has_the_learned_ranges_and_magnitudes(
    aware: Path, model: Any, ranges: learned.Learned, quantizer: int8.Quantizer
) -> None:
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    rounded = [node for node in model.graph.node if node.op_type == "QuantizeLinear"]
    scales = {float(constants[node.input[1]]) for node in rounded}
    for name in set(ranges.activations) - {"logits"}:  # the logits stay in float
        low, high = learned.nudged(*ranges.activations[name])
        assert any(np.isclose(scale, (high - low) / 255, rtol=1e-5) for scale in scales), name
    network = twin.network_in(load_keras(aware / MODEL))
    made = {node.output[0]: node for node in model.graph.node}
    convolutions = [node for node in model.graph.node if node.op_type == "Conv"]
    for node, name in zip(convolutions, ["first", "depthwise", "narrow", "last"], strict=True):
        gamma, _, _, variance = network.get_layer(f"{name}_bn").get_weights()
        folded = np.abs(gamma) / np.sqrt(variance + network.get_layer(f"{name}_bn").epsilon)
        told = constants[made[node.input[1]].input[1]]
        np.testing.assert_allclose(told, np.array(ranges.weights[name]) * folded / 127, rtol=1e-4)


def test_everything_up_to_the_logits_runs_in_integers(model: Any, tmp_path: Path, quantizer: int8.Quantizer) -> None:
    graph = optimized(model, tmp_path / "int8.onnx")
    kinds = [node.op_type for node in graph.graph.node]
    assert sum(kind in CONVOLUTION for kind in kinds) == 4 and sum(kind in DENSE for kind in kinds) == 1
    assert {"QLinearAdd", "QLinearGlobalAveragePool"} <= set(kinds)
    floats = {"Conv", "Add", "GlobalAveragePool", "ReduceMean", "Clip", "Relu", "MatMul", "Gemm"}
    assert not {*floats, "QuantizeLinear", "DequantizeLinear"} & set(kinds)
    integers.check(quantizer.core, graph)


@pytest.mark.parametrize("kind", ["Add", "GlobalAveragePool"])
def test_a_float_step_between_integers_is_seen(
    model: Any, tmp_path: Path, quantizer: int8.Quantizer, kind: str
) -> None:
    """As where a tensor before it has no range, so that ONNX Runtime cannot fuse it: Q/DQ around it stay."""
    torn = onnx.ModelProto()
    torn.CopyFrom(model)
    (node,) = [node for node in torn.graph.node if node.op_type == kind]
    quantize = onnx_graph.only(torn.graph, node.output[0], "QuantizeLinear")
    place = list(torn.graph.node).index(quantize)
    torn.graph.node.insert(place, onnx.helper.make_node("Sigmoid", [node.output[0]], ["torn"]))
    quantize.input[0] = "torn"
    with pytest.raises(ValueError, match=f"{kind} runs in float"):
        integers.check(quantizer.core, optimized(torn, tmp_path / "torn.onnx"))
    integers.check(quantizer.core, optimized(torn, tmp_path / "torn.onnx"), floats=1)  # where some may


def test_the_answers_are_those_of_the_fake_quantized_network(aware: Path, model: Any) -> None:
    told = json.loads((aware / "told.json").read_text())
    assert max(told["crossing_differences"]) <= 1e-5
    whole = load_keras(aware / MODEL)
    reference = np.asarray(whole.predict(IMAGES, verbose=0))
    answers = search.run(model, IMAGES, 1)
    assert np.abs(answers - reference).max() < 0.1


ROUNDED = """
import json, sys
from pathlib import Path
import numpy, tf_keras
from export.transforms import quantize_aware
from export.tuning import twin
crossed = twin.cross(Path(sys.argv[1]))
model = quantize_aware._quantized(tf_keras, crossed.model, {})
quantize_aware._begin_scales(model)
(wrapper,) = [found for found in model.layers if getattr(getattr(found, "layer", None), "name", "") == "depthwise"]
((kernel, quantizer, kept),) = wrapper._weight_vars
worst = []
for training in (False, True):
    error = numpy.abs(quantizer(kernel, training, kept) - kernel).max(axis=(0, 1, 3))
    worst.append(float((error / numpy.abs(kernel).max(axis=(0, 1, 3))).max()))
print(json.dumps(worst))
"""


def test_training_rounds_every_depthwise_filter_by_its_own_size(aware: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", ROUNDED, str(aware.parents[1] / "store" / "tiny" / MODEL)],
        cwd=catalog.ROOT,
        env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": "-1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert max(json.loads(done.stdout.splitlines()[-1])) <= 0.51 / 127  # half a step of the filter's own


@pytest.fixture(scope="module")
def halved(run: Run, trained: Store, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What pruning by two of four leaves of the residual network."""
    out = tmp_path_factory.mktemp("halved")
    residual.write(trained, Store(out / "store"), residual.logits())
    done = run("tests.export.transform_tiny", out / "store", out / "made", "prune2of4")
    assert done.returncode == 0, done.stderr
    return out / "made" / "prune2of4"


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_two_of_four_input_channels_of_a_convolution_are_zero_in_the_exported_file(
    halved: Path, precision: str, tmp_path: Path
) -> None:
    told = json.loads((halved / "told.json").read_text())
    assert told["pruned"].keys() == {"narrow", "last"} and min(told["pruned"].values()) >= 0.5
    asked = Conversion(halved / MODEL, tmp_path, precision, IMAGES, IMAGES, np.zeros(len(IMAGES), np.int64), threads=1)
    made = onnx_format.convert(asked)
    kernels = [kernel for kernel in onnx_format.inside(tmp_path / made.file).weights if kernel.ndim == 4]
    for kernel in kernels[2:]:  # [out, in, tall, wide]; the first and the depthwise one are left alone
        zeros = (kernel == 0).reshape(len(kernel), -1, 4, *kernel.shape[2:]).sum(axis=2)
        assert zeros.min() >= 2 and (precision == "int8" or zeros.max() == 2)
    assert [kernel.shape for kernel in kernels[2:]] == [(8, 8, 1, 1), (16, 8, 3, 3)]


def test_clusters_of_a_convolution_outlast_quantization_aware_training_and_the_export(
    run: Run, trained: Store, tmp_path: Path
) -> None:
    """Every channel of LeNet's second convolution holds all 16 values: the tool would take them for its own."""
    done = run("tests.export.transform_tiny", trained.root, tmp_path / "made", "cluster16+quantize_aware")
    assert done.returncode == 0, done.stderr
    made = tmp_path / "made" / "cluster16-quantize_aware"
    told = json.loads((made / "told.json").read_text())
    assert told["distinct_kept"].keys() == {"conv2d_1", "dense", "dense_1", "logits"}
    assert max(told["distinct_kept"].values()) <= 16
    asked = Conversion(made / MODEL, tmp_path, "int8", IMAGES, IMAGES, np.zeros(len(IMAGES), np.int64), threads=1)
    file = onnx_format.convert(asked)
    assert file.settings["clusters_kept"] and file.settings["calibration"] == "learned in training"
    _, *kernels = onnx_format.inside(tmp_path / file.file).weights
    assert max(len(np.unique(kernel)) for kernel in kernels) <= 16
