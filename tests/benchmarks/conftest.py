"""A small store whose every variant is a different case; its models are real and run."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import catalog
from benchmarks.results import Results, read
from catalog import Accuracy, Card, Store, Variant, VariantCard

WEIGHTS = "a" * 64
Command = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="session")
def digits() -> Any:
    from training import data

    return data.load("digits")


@pytest.fixture(scope="session")
def tiny_store(tmp_path_factory: pytest.TempPathFactory, digits: Any) -> Store:
    """Model `tiny`: two variants that run, and one of each kind that cannot be measured."""
    store = Store(tmp_path_factory.mktemp("store"))
    write_model(store, digits)
    content = linear_onnx(digits)
    write_variant(store, digits, Variant("tiny", "onnx"), content)
    write_variant(store, digits, Variant("tiny", "onnx", "int8"), linear_onnx(digits, levels=15))
    altered = write_variant(store, digits, Variant("tiny", "onnx", transform="altered"), content)
    altered.write_bytes(altered.read_bytes()[:-100])
    write_variant(store, digits, Variant("tiny", "onnx", transform="garbage"), b"this is no ONNX file")
    write_variant(store, digits, Variant("tiny", "onnx", transform="stale"), content, parent="b" * 64)
    write_variant(store, digits, Variant("tiny", "onnx", transform="older"), content)
    catalog.write_atomic(store.transform_dir("tiny", "older") / catalog.CARD, '{"weights_sha256": "made anew since"}')
    failed = {"status": "failed", "reason": "the converter refused"}
    write_variant(store, digits, Variant("tiny", "litert", "int8"), None, **failed)
    unreadable = store.variant_dir(Variant("tiny", "keras")) / catalog.CARD
    unreadable.parent.mkdir()
    unreadable.write_text("{")
    return store


@pytest.fixture(scope="session")
def benchmarks_command() -> Command:
    """Runs `python -m benchmarks` for real."""

    def call(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "benchmarks", *map(str, arguments)],
            cwd=catalog.ROOT,
            env={**os.environ, "COLUMNS": "200"},
            capture_output=True,
            text=True,
            timeout=240,
        )

    return call


@pytest.fixture(scope="session")
def run_folder(
    tiny_store: Store, benchmarks_command: Command, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """What a quick run over the tiny store left, and what it said."""
    out = tmp_path_factory.mktemp("reports")
    done = benchmarks_command("--store", tiny_store.root, "--out", out, "--quick", "--seed", "3", "--threads", "1")
    assert done.returncode == 0, done.stderr
    return out, done


@pytest.fixture(scope="session")
def golden() -> Results:
    """A run with three models and every kind of row, of figures that never change; `results.json` is of schema 1."""
    return read(Path(__file__).parent / "golden" / "results-2.json")


def write_model(store: Store, data: Any) -> None:
    card = Card(
        model="tiny",
        architecture="tiny",
        recipe_name="cpu",
        recipe={},
        seed=0,
        dataset=data.info,
        accuracy=Accuracy.of(9, 10),
        train_top1=90.0,
        parameters=30_730,
        macs=30_720,
        weights_sha256=WEIGHTS,
        train_seconds=1.0,
        device="cpu",
        versions={},
        commit="unknown",
        command="",
        created=catalog.now(),
        files={},
    )
    catalog.write_atomic(store.model_dir("tiny") / catalog.CARD, catalog.to_json(card))


def write_variant(
    store: Store, data: Any, variant: Variant, content: bytes | None, parent: str = WEIGHTS, **fields: Any
) -> Path:
    """A variant's folder as export would leave it; the path of its model file."""
    path = store.variant_dir(variant) / "model.onnx"
    card = VariantCard(
        variant=variant,
        status="ok",
        reason="",
        parent_sha256=parent,
        dataset=data.info,
        file="",
        size_bytes=0,
        gzip_bytes=0,
        parity=None,
        accuracy=None,
        settings={},
        operators={},
        seconds=0.0,
        versions={},
        commit="unknown",
        command=f"python -m export {variant.model} --formats {variant.format} --precisions {variant.precision}",
        created=catalog.now(),
        files={},
    )
    if content is not None:
        catalog.write_atomic(path, content)
        sizes: dict[str, Any] = {"size_bytes": len(content), "gzip_bytes": catalog.gzip_bytes_of(path)}
        card = dataclasses.replace(card, file=path.name, files={path.name: catalog.sha256_of(path)}, **sizes)
    card = dataclasses.replace(card, **fields)
    catalog.write_atomic(path.with_name(catalog.CARD), catalog.to_json(card))
    return path


def linear_onnx(data: Any, levels: int = 0) -> bytes:
    """Least squares on the pixels as an ONNX file under the tensor contract; `levels` rounds its weights."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    weights = least_squares(data)
    if levels:
        step = np.abs(weights).max() / levels
        weights = np.round(weights / step) * step
    height, width = data.x_test.shape[1:3]
    nodes = [
        helper.make_node("Cast", ["images"], ["float"], to=TensorProto.FLOAT),
        helper.make_node("Flatten", ["float"], ["flat"], axis=1),
        helper.make_node("MatMul", ["flat", "weights"], ["scores"]),
        helper.make_node("Softmax", ["scores"], ["probabilities"], axis=1),
    ]
    graph = helper.make_graph(
        nodes,
        "linear",
        [helper.make_tensor_value_info("images", TensorProto.UINT8, ["batch", height, width, 3])],
        [helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["batch", weights.shape[1]])],
        [numpy_helper.from_array(weights.astype(np.float32), "weights")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.checker.check_model(model)
    content: bytes = model.SerializeToString()
    return content


def least_squares(data: Any) -> NDArray[np.float64]:
    """Weights [pixels, classes] that score each class by ridge regression on the training images."""
    x = data.x_train.reshape(len(data.x_train), -1).astype(np.float64) / 255
    target = np.eye(len(data.classes))[data.y_train]
    # x is wider than long: (x'x + k)^-1 x' = x' (xx' + k)^-1
    solved: NDArray[np.float64] = x.T @ np.linalg.solve(x @ x.T + 10 * np.eye(len(x)), target)
    return solved / 255 * 10
