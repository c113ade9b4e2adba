"""What every runtime format promises, and the files that `load` refuses."""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

import catalog
from catalog import KilnError, Store, Variant, plugin
from export import pipeline
from export.formats import litert as litert_format
from export.formats import onnx as onnx_format
from export.onnx.wire import read_header

SERVABLE = [v for v in pipeline.wanted("tiny", [], []) if plugin("export.formats", v.format).SERVABLE]
IMAGES = np.random.default_rng(0).integers(0, 256, (40, 32, 32, 3), np.uint8)


def file_of(store: Store, variant: Variant) -> Path:
    return store.variant_dir(variant) / f"model{plugin('export.formats', variant.format).SUFFIX}"


@pytest.mark.parametrize("variant", SERVABLE, ids=str)
def test_any_batch_size_and_the_same_answers(store: Store, variant: Variant) -> None:
    predict = plugin("export.formats", variant.format).load(file_of(store, variant), 2)
    whole = predict(IMAGES)
    assert whole.shape == (40, 10) and whole.dtype == np.float32
    for size in (1, 3, 32, 1):
        np.testing.assert_allclose(predict(IMAGES[:size]), whole[:size], atol=1e-5)


@pytest.mark.parametrize("variant", SERVABLE, ids=str)
def test_threads_do_not_mix_answers_up(store: Store, variant: Variant) -> None:
    predict = plugin("export.formats", variant.format).load(file_of(store, variant), 1, spinning=False)
    whole = predict(IMAGES)

    def check(seed: int) -> float:
        start, size = seed % 20, 1 + seed % 7
        return float(np.abs(predict(IMAGES[start : start + size]) - whole[start : start + size]).max())

    with ThreadPoolExecutor(8) as pool:
        assert max(pool.map(check, range(200))) < 1e-5


@pytest.mark.parametrize("variant", SERVABLE, ids=str)
def test_loading_imports_no_training_framework(store: Store, variant: Variant) -> None:
    code = (
        "import sys, numpy; from pathlib import Path; from catalog import plugin\n"
        f"predict = plugin('export.formats', {variant.format!r}).load(Path(sys.argv[1]), 1)\n"
        "assert predict(numpy.zeros((2, 32, 32, 3), numpy.uint8)).shape == (2, 10)\n"
        "print(sorted({'tensorflow', 'keras', 'tf2onnx', 'onnx', 'training'} & set(sys.modules)))"
    )
    command = [sys.executable, "-c", code, str(file_of(store, variant))]
    done = subprocess.run(command, cwd=catalog.ROOT, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout.strip()) == (0, "[]"), done.stderr


def test_onnx_runtime_is_imported_without_its_telemetry(store: Store, tmp_path: Path) -> None:
    path = str(file_of(store, Variant("tiny", "onnx")))
    code = {
        "ours": "from catalog import plugin; plugin('export.formats', 'onnx').load(__import__('pathlib').Path({}), 1)",
        "plain": "import onnxruntime; onnxruntime.InferenceSession({})",
    }
    left = {}
    for name, line in code.items():
        home = tmp_path / name
        home.mkdir()
        quiet = ("ORT_", "CI", "GITHUB_", "XDG_")  # it keeps quiet by itself where it believes itself tested
        kept = {key: value for key, value in os.environ.items() if not key.startswith(quiet)}
        command = [sys.executable, "-c", line.format(repr(path))]
        subprocess.run(command, cwd=catalog.ROOT, env={**kept, "HOME": str(home)}, check=True, timeout=60)
        left[name] = [file.name for file in home.rglob("*") if "onnxruntime" in str(file)]
    assert left["plain"]  # an identifier of the machine, and what is to be sent
    assert not left["ours"]


def test_openvino_is_imported_without_its_telemetry() -> None:
    code = (
        "import sys; from export.formats import openvino; ov = openvino._openvino(); import openvino.tools.ovc\n"
        "print(ov.__name__, [name for name, module in sys.modules.items() if 'openvino_telemetry' in name and module])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=catalog.ROOT, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout.strip()) == (0, "openvino []"), done.stderr


@pytest.mark.parametrize("variant", SERVABLE, ids=str)
@pytest.mark.parametrize("damage", ["empty", "text", "half", "missing"])
def test_damaged_files_are_refused_by_name(store: Store, variant: Variant, damage: str, tmp_path: Path) -> None:
    form, whole = plugin("export.formats", variant.format), file_of(store, variant).read_bytes()
    path = tmp_path / f"broken{form.SUFFIX}"
    if damage != "missing":
        path.write_bytes({"empty": b"", "text": b"this is no model", "half": whole[: len(whole) // 2]}[damage])
    with pytest.raises(KilnError, match="broken"):
        form.load(path, 1)


def tampered(source: Path, target: Path, change: Any) -> Path:
    model = onnx.load(source)
    change(model)
    target.write_bytes(model.SerializeToString())
    return target


def outside(model: Any) -> None:
    tensor = model.graph.initializer[0]
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="../../secret.bin")
    tensor.ClearField("raw_data")


def outside_in_an_attribute(model: Any) -> None:
    constant = helper.make_node("Constant", [], ["unused"], value=onnx.numpy_helper.from_array(np.zeros(3, np.float32)))
    constant.attribute[0].t.data_location = TensorProto.EXTERNAL
    constant.attribute[0].t.external_data.add(key="location", value="secret.bin")
    model.graph.node.insert(0, constant)


def opset_9(model: Any) -> None:
    model.opset_import[0].version = 9


def foreign_domain(model: Any) -> None:
    model.opset_import.add(domain="com.example", version=1)


def float_input(model: Any) -> None:
    model.graph.input[0].type.tensor_type.elem_type = TensorProto.FLOAT


def fixed_batch(model: Any) -> None:
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (outside, "external data"),
        (outside_in_an_attribute, "external data"),
        (opset_9, "opset 9"),
        (foreign_domain, "com.example"),
        (float_input, "one uint8"),
        (fixed_batch, "one uint8"),
    ],
)
def test_onnx_of_another_contract_is_refused(onnx_path: Path, tmp_path: Path, change: Any, words: str) -> None:
    path = tampered(onnx_path, tmp_path / "tampered.onnx", change)
    with pytest.raises(KilnError, match=rf"tampered\.onnx.*{words}"):
        onnx_format.load(path, 1)


def served(images: Any, classes: int = 10) -> Any:
    """A float answer for each image."""
    import tensorflow as tf

    mean = tf.reduce_mean(tf.cast(images, tf.float32), axis=(1, 2, 3))[:, None]
    return tf.nn.softmax(tf.tile(mean, (1, classes)))


def write_litert(path: Path, dtype: str, outputs: int) -> None:
    import tensorflow as tf

    network = tf.function(
        lambda images: tuple(served(images) + number for number in range(outputs)),
        input_signature=[tf.TensorSpec((None, 32, 32, 3), dtype)],
    )
    converter = tf.lite.TFLiteConverter.from_concrete_functions([network.get_concrete_function()])
    path.write_bytes(converter.convert())


def write_savedmodel(path: Path, dtype: str, outputs: int) -> None:
    import tensorflow as tf

    module = tf.Module()
    names = ["probabilities", "more"][:outputs]
    module.network = tf.function(
        lambda images: {name: served(images) for name in names},
        input_signature=[tf.TensorSpec((None, 32, 32, 3), dtype, name="images")],
    )
    tf.saved_model.save(module, str(path.parent), {"serving_default": module.network})


def write_keras(path: Path, dtype: str, outputs: int) -> None:
    import keras

    images = keras.Input((32, 32, 3), dtype=dtype)
    pooled = keras.layers.GlobalAveragePooling2D()(keras.layers.Rescaling(1 / 255)(images))
    answers = [keras.layers.Dense(10, activation="softmax")(pooled) for _ in range(outputs)]
    keras.Model(images, answers if outputs > 1 else answers[0]).save(path)


WRITERS = {"litert": write_litert, "savedmodel": write_savedmodel, "keras": write_keras}


@pytest.mark.parametrize("name", sorted(WRITERS))
@pytest.mark.parametrize(
    ("dtype", "outputs", "fits"),
    [("uint8", 1, True), ("float32", 1, False), ("uint8", 2, False)],
    ids=["as agreed", "float pixels", "two outputs"],
)
def test_other_contracts_are_refused(tmp_path: Path, name: str, dtype: str, outputs: int, fits: bool) -> None:
    form = plugin("export.formats", name)
    path = tmp_path / getattr(form, "NAME", f"odd{form.SUFFIX}")
    WRITERS[name](path, dtype, outputs)
    if fits:
        assert form.load(path, 1)(IMAGES[:3]).shape == (3, 10)
        return
    with pytest.raises(KilnError, match=rf"{path.name} takes .*a model here takes one uint8 \[N, H, W, 3\]"):
        form.load(path, 1)


def test_the_header_is_what_the_onnx_package_reads(onnx_path: Path) -> None:
    model, header = onnx.load(onnx_path), read_header(onnx_path.read_bytes())
    assert header.ir_version == model.ir_version == 8
    assert header.opsets == {entry.domain: entry.version for entry in model.opset_import} == {"": 17}
    assert not header.external and header.graphs == 1


def test_the_header_of_a_cut_file_is_an_error_or_lacks_the_graph(onnx_path: Path) -> None:
    content = onnx_path.read_bytes()
    for end in (*range(200), *range(200, len(content), 9973)):
        try:
            assert read_header(content[:end]).graphs == 0
        except ValueError as error:
            assert str(error)


def test_litert_runs_in_one_piece_without_shape_arithmetic(store: Store) -> None:
    card = next(card for card in store.variants("tiny") if card.variant.version == "litert-fp32")
    assert card.settings["delegate_partitions"] == 1
    assert not {"SHAPE", "PACK", "STRIDED_SLICE", "READ_VARIABLE"} & set(card.operators)
    assert litert_format.SETTINGS["fp32"].items() <= card.settings.items()
