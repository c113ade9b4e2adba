"""Tiny stores for tests: networks that tell the mean colour of an image, built by hand as ONNX files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

import catalog
from catalog import Accuracy, Card, DatasetInfo, Store, Variant, VariantCard

COLOURS = ["red", "green", "blue"]


def network(height: int, width: int, weights: np.ndarray, brittle: bool = False) -> bytes:
    """softmax(mean colour in 0..1 times `weights` [3, classes]); a brittle one yields NaN for bright images."""
    nodes = [
        helper.make_node("Cast", ["images"], ["float"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["float"], ["mean"], axes=[1, 2], keepdims=0),
        helper.make_node("Div", ["mean", "full"], ["share"]),
        helper.make_node("MatMul", ["share", "weights"], ["logits"]),
    ]
    if brittle:
        nodes += [
            helper.make_node("Sub", ["limit", "share"], ["left"]),
            helper.make_node("Sqrt", ["left"], ["root"]),
            helper.make_node("Add", ["logits", "root"], ["sum"]),
        ]
    nodes.append(helper.make_node("Softmax", ["sum" if brittle else "logits"], ["probabilities"], axis=1))
    constants = {"full": np.float32(255), "limit": np.float32(0.9), "weights": weights.astype(np.float32)}
    used = [numpy_helper.from_array(np.asarray(v), k) for k, v in constants.items() if k != "limit" or brittle]
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info("images", TensorProto.UINT8, ["batch", height, width, 3])],
        [helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["batch", weights.shape[1]])],
        used,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString())


def slow_network(height: int, width: int, classes: int) -> bytes:
    """Even probabilities, after a loop whose turns (2 to 7 microseconds each) are 6 times the sum of the pixels.

    A black image passes at once. Of 32 x 32, one whose channels are all 1 takes at most an eighth of a second, a white
    one half a minute.
    """
    scalar = np.array([0], np.float32)
    body = helper.make_graph(
        [
            helper.make_node("Add", ["sum_in", "sum_in"], ["sum_out"]),
            helper.make_node("Identity", ["go_in"], ["go_out"]),
        ],
        "turn",
        [
            helper.make_tensor_value_info("turn", TensorProto.INT64, []),
            helper.make_tensor_value_info("go_in", TensorProto.BOOL, []),
            helper.make_tensor_value_info("sum_in", TensorProto.FLOAT, [1]),
        ],
        [
            helper.make_tensor_value_info("go_out", TensorProto.BOOL, []),
            helper.make_tensor_value_info("sum_out", TensorProto.FLOAT, [1]),
        ],
    )
    nodes = [
        helper.make_node("Cast", ["images"], ["float"], to=TensorProto.FLOAT),
        helper.make_node("ReduceSum", ["float"], ["total"], keepdims=0),
        helper.make_node("Mul", ["total", "factor"], ["product"]),
        helper.make_node("Cast", ["product"], ["turns"], to=TensorProto.INT64),
        helper.make_node("Loop", ["turns", "go", "zero"], ["nothing"], body=body),
        helper.make_node("ReduceMean", ["float"], ["mean"], axes=[1, 2], keepdims=0),
        helper.make_node("MatMul", ["mean", "weights"], ["logits"]),
        helper.make_node("Add", ["logits", "nothing"], ["even"]),
        helper.make_node("Softmax", ["even"], ["probabilities"], axis=1),
    ]
    constants = {
        "factor": np.float32(6), "go": np.array(True), "zero": scalar, "weights": np.zeros((3, classes), np.float32),
    }  # fmt: skip
    graph = helper.make_graph(
        nodes,
        "slow",
        [helper.make_tensor_value_info("images", TensorProto.UINT8, ["batch", height, width, 3])],
        [helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["batch", classes])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString())


def write_model(
    store: Path, name: str, *, top1: float = 90.0, size: tuple[int, int] = (32, 32), classes: list[str] = COLOURS
) -> Card:
    info = DatasetInfo("digits", "0" * 64, classes, *size, 10, 2, 100, "/home/somebody/images")
    card = Card(
        model=name, architecture=name, recipe_name="quick", recipe={}, seed=0, dataset=info,
        accuracy=Accuracy.of(round(top1), 100), train_top1=99.0, parameters=9, macs=9, weights_sha256="a" * 64,
        train_seconds=1.0, device="cpu", versions={}, commit="unknown", command=f"python -m training {name} /home/x",
        created=catalog.now(), files={"model.keras": "b" * 64},
    )  # fmt: skip
    catalog.write_atomic(store / name / catalog.CARD, catalog.to_json(card))
    return card


def write_variant(
    store: Path,
    parent: Card,
    content: bytes,
    *,
    precision: str = "fp32",
    top1: float = 90.0,
    status: str = "ok",
    format: str = "onnx",
    parent_sha256: str | None = None,
) -> Path:
    """A variant folder with its card; returns the model file."""
    variant = Variant(parent.model, format, precision)
    path = Store(store).variant_dir(variant) / "model.onnx"
    catalog.write_atomic(path, content)
    card = VariantCard(
        variant=variant, status=status, reason="", parent_sha256=parent_sha256 or parent.weights_sha256,  # type: ignore[arg-type]
        dataset=parent.dataset, file=path.name, size_bytes=len(content), gzip_bytes=len(content), parity=None,
        accuracy=Accuracy.of(round(top1 * 100), 10_000), settings={}, operators={}, seconds=0.0, versions={},
        commit="unknown", command="python -m export /home/x", created=catalog.now(),
        files={path.name: catalog.sha256_of(path)},
    )  # fmt: skip
    catalog.write_atomic(path.parent / catalog.CARD, catalog.to_json(card))
    return path


def write_colours(store: Path) -> Path:
    """`colours` (fp32, int8 and three that are not offered), `wide` (16 x 24, other class order) and `brittle`."""
    colours = write_model(store, "colours", top1=95)
    sharp, blunt = 10 * np.eye(3), 8 * np.eye(3)
    write_variant(store, colours, network(32, 32, sharp), top1=95.0)
    write_variant(store, colours, network(32, 32, blunt), precision="int8", top1=94.2)
    write_variant(store, colours, b"strays", precision="int4", status="below-floor")
    write_variant(store, colours, b"old", precision="fp16", parent_sha256="c" * 64)
    write_variant(store, colours, b"keras", format="keras")
    wide = write_model(store, "wide", top1=80, size=(16, 24), classes=["blue", "green", "red"])
    write_variant(store, wide, network(16, 24, 10 * np.eye(3)[:, ::-1]), top1=80.0)
    brittle = write_model(store, "brittle", top1=70)
    write_variant(store, brittle, network(32, 32, sharp, brittle=True), top1=70.0)
    return store
