"""Faults 35 to 41 at the export's end: artifacts that were altered, linked, foreign, unsound or over their budget."""

from __future__ import annotations

import dataclasses
import json
import shutil
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import numpy_helper

import catalog
from catalog import CARD, KilnError, Store, Variant, VariantCard, plugin
from export import parity, pipeline, process
from export.formats import onnx as onnx_format
from export.frozen import load_keras
from export.options import Options
from export.worker import ARRAYS, Prepare, Reply

VARIANTS = pipeline.wanted("tiny", [], [])


@pytest.fixture
def copied(store: Store, tmp_path: Path) -> Store:
    """A store of one's own to break things in."""
    copy = Store(tmp_path / "store")
    shutil.copytree(store.model_dir("tiny"), copy.model_dir("tiny"))
    return copy


def card_of(store: Store, variant: Variant) -> VariantCard:
    return catalog.read_card(VariantCard, store.variant_dir(variant) / CARD)


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
@pytest.mark.parametrize(
    ("damage", "words"),
    [("cut", "is corrupt"), ("flip", "is corrupt"), ("gone", "is missing"), ("more", "does not belong there")],
)
def test_35_altered_files_are_named_and_the_variant_is_due(
    copied: Store, variant: Variant, damage: str, words: str
) -> None:
    folder, card = copied.variant_dir(variant), card_of(copied, variant)
    victim = sorted(card.files)[0]
    content = bytearray((folder / victim).read_bytes())
    content[len(content) // 2] ^= 1
    if damage == "more":
        (folder / "stowaway.bin").write_bytes(b"?")
    elif damage == "gone":
        (folder / victim).unlink()
    else:
        (folder / victim).write_bytes(content if damage == "flip" else content[:-1])
    with pytest.raises(KilnError, match=f"{'stowaway.bin' if damage == 'more' else victim} {words}"):
        copied.verify(folder, card.files)
    assert pipeline.found(copied, copied.card("tiny"), variant, Options()) is None


@pytest.mark.parametrize("kind", ["symbolic", "hard"])
def test_36_links_are_refused(copied: Store, tmp_path: Path, kind: str) -> None:
    variant = Variant("tiny", "onnx", "fp32")
    path, outside = copied.variant_dir(variant) / "model.onnx", tmp_path / "outside.onnx"
    shutil.move(path, outside)
    if kind == "symbolic":
        path.symlink_to(outside)
    else:
        path.hardlink_to(outside)
    with pytest.raises(KilnError, match="is a link"):
        copied.verify(path.parent, card_of(copied, variant).files)


def test_37_an_openvino_model_of_another_contract_is_refused(store: Store, tmp_path: Path) -> None:
    import openvino as ov

    source = store.variant_dir(Variant("tiny", "openvino", "fp32"))
    graph = ov.Core().read_model(source / "model.xml")
    graph.reshape([1, 32, 32, 3])
    ov.save_model(graph, tmp_path / "fixed.xml", compress_to_fp16=False)
    with pytest.raises(KilnError, match=r"fixed\.xml takes .*one uint8"):
        plugin("export.formats", "openvino").load(tmp_path / "fixed.xml", 1)


@pytest.mark.parametrize("damage", ["weights", "graph", "hint"])
def test_35_a_damaged_openvino_pair_is_refused(store: Store, tmp_path: Path, damage: str) -> None:
    source = store.variant_dir(Variant("tiny", "openvino", "fp32"))
    text, weights = (source / "model.xml").read_bytes(), (source / "model.bin").read_bytes()
    if damage == "weights":
        weights = weights[: len(weights) // 3]
    text = {"graph": text[: len(text) // 2], "hint": text.replace(b"modelkiln", b"elsewhere")}.get(damage, text)
    (tmp_path / "broken.xml").write_bytes(text)
    (tmp_path / "broken.bin").write_bytes(weights)
    with pytest.raises(KilnError, match=r"broken\.xml"):
        plugin("export.formats", "openvino").load(tmp_path / "broken.xml", 1)


def test_37_the_wrong_number_of_classes_does_not_pass_for_an_answer() -> None:
    images = np.zeros((3, 4, 4, 3), np.uint8)
    with pytest.raises(KilnError, match=r"not float32 \[N, 10\]"):
        parity.in_batches(lambda part: np.zeros((len(part), 7), np.float32), images, 2, 10)


def test_39_a_model_that_yields_nan_fails_its_proof(store: Store, tmp_path: Path) -> None:
    model = onnx.load(store.variant_dir(Variant("tiny", "onnx", "fp32")) / "model.onnx")
    bias = next(t for t in model.graph.initializer if list(t.dims) == [10])
    bias.CopyFrom(numpy_helper.from_array(np.full(10, np.nan, np.float32), bias.name))
    path = tmp_path / "nan.onnx"
    path.write_bytes(model.SerializeToString())
    images, labels = np.zeros((5, 32, 32, 3), np.uint8), np.zeros(5, np.int64)
    with pytest.raises(KilnError, match="5 of 5 answers are not finite"):
        parity.prove(onnx_format.load(path, 1), "fp32", images, labels, np.full((5, 10), 0.1, np.float32))


def test_40_over_budget_keeps_its_file_and_row_and_is_not_offered(copied: Store) -> None:
    variant = Variant("tiny", "onnx", "int8")
    path = copied.variant_dir(variant) / CARD
    catalog.write_atomic(path, catalog.to_json(dataclasses.replace(card_of(copied, variant), validation_drop=4.25)))
    before = {p.name: p.stat().st_mtime_ns for p in path.parent.iterdir() if p.name != CARD}

    def export(allowed: float | None) -> VariantCard:
        options = Options(allowed_drop=allowed)
        (card,) = pipeline.export(copied, [variant], options, lambda _: pytest.fail("made again"), lambda: None)
        assert card_of(copied, variant) == card
        return card

    over = export(0.3)
    assert over.status == "below-floor" and "drops by 4.25 points, allowed are 0.3" in over.reason
    assert over.allowed_drop == 0.3 and over.files
    assert export(None).status == "below-floor"  # an export without a budget does not lift it
    assert export(5.0).status == "ok"
    assert {p.name: p.stat().st_mtime_ns for p in path.parent.iterdir() if p.name != CARD} == before


def test_a_failed_export_does_not_replace_a_sound_variant(copied: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    failing = Reply("the converter fell over")
    answers = {Prepare: Reply()}
    monkeypatch.setattr(process, "ask", lambda request, *_: answers.get(type(request), failing))
    variant, forced = Variant("tiny", "onnx", "fp32"), Options(force=True)
    before = card_of(copied, variant)

    (made,) = pipeline.export(copied, [variant], forced, lambda _: None, lambda: None)
    assert made.status == "failed" and made.reason == f"the converter fell over; the variant of {before.created} stays"
    assert card_of(copied, variant) == before
    copied.verify(copied.variant_dir(variant), before.files)

    (copied.variant_dir(variant) / "model.onnx").write_bytes(b"damaged")
    pipeline.export(copied, [variant], forced, lambda _: None, lambda: None)
    assert card_of(copied, variant).reason == "the converter fell over"


@pytest.mark.parametrize("name", ["model.h5", "model.hdf5", "model.pkl", "model.pickle", "model.pt"])
def test_41_other_containers_are_refused_by_name(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"\x89HDF\r\n\x1a\n")
    with pytest.raises(KilnError, match=rf"{name} is not a \.keras file; HDF5 files and pickles are not read"):
        load_keras(tmp_path / name)


def test_41_code_in_a_lambda_layer_is_not_run(store: Store, tmp_path: Path) -> None:
    path = tmp_path / "lambda.keras"
    with zipfile.ZipFile(store.model_dir("tiny") / "model.keras") as source, zipfile.ZipFile(path, "w") as target:
        for name in source.namelist():
            content = source.read(name)
            target.writestr(name, with_lambda(content) if name == "config.json" else content)
    with pytest.raises(KilnError, match=r"lambda\.keras cannot be loaded.*[Ll]ambda"):
        load_keras(path)


def with_lambda(config: bytes) -> bytes:
    """Puts a Lambda layer with marshalled code in the place of the first activation or convolution found."""
    data: dict[str, Any] = json.loads(config)
    code = {"class_name": "__lambda__", "config": {"code": "4wEAAAA=", "defaults": None, "closure": None}}

    def walk(node: Any) -> bool:
        if isinstance(node, dict):
            if node.get("class_name") in ("MaxPooling2D", "Rescaling"):
                node["class_name"], node["module"] = "Lambda", "keras.layers"
                node["config"] = {"name": node["config"]["name"], "function": code, "trainable": True}
                return True
            return any(walk(value) for value in node.values())
        return isinstance(node, list) and any(walk(value) for value in node)

    assert walk(data)
    return json.dumps(data).encode()


@pytest.mark.parametrize("provider", ["cuda", "tensorrt"])
def test_a_provider_that_is_not_there_is_an_error(onnx_path: Path, provider: str) -> None:
    with pytest.raises(KilnError, match=f"asked for {provider!r}.*is not active.*make setup SET=gpu"):
        onnx_format.load(onnx_path, 1, provider=provider)


def test_an_unknown_provider_is_an_error(onnx_path: Path) -> None:
    with pytest.raises(KilnError, match="no ONNX Runtime provider 'gpu'; there are: cpu, cuda, tensorrt"):
        onnx_format.load(onnx_path, 1, provider="gpu")


def test_a_silent_fall_back_to_the_cpu_is_an_error(onnx_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    true = onnxruntime.InferenceSession
    there = ["CUDAExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: there)

    def falls_back(content: bytes, options: Any, providers: list[str]) -> Any:
        assert providers == there
        return true(content, options, providers=["CPUExecutionProvider"])  # as the GPU build does without CUDA

    monkeypatch.setattr(onnxruntime, "InferenceSession", falls_back)
    with pytest.raises(KilnError, match=r"CUDAExecutionProvider is not active \(CPUExecutionProvider\)"):
        onnx_format.load(onnx_path, 1, provider="cuda")


def test_a_format_without_its_package_keeps_its_row(
    copied: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hidden = tmp_path / "hidden" / "openvino"
    hidden.mkdir(parents=True)
    (hidden / "__init__.py").write_text("raise ModuleNotFoundError('No module', name='openvino')\n")
    monkeypatch.setenv("PYTHONPATH", str(hidden.parent))
    ask = process.ask

    def unprepared(request: Any, *rest: Any) -> Reply:
        """Prepares nothing real, for what fails at its first import."""
        if not isinstance(request, Prepare):
            return ask(request, *rest)
        for name in ARRAYS:
            np.save(Path(request.folder, f"{name}.npy"), np.zeros(1))
        return Reply()

    monkeypatch.setattr(process, "ask", unprepared)
    shutil.rmtree(copied.variant_dir(Variant("tiny", "openvino", "fp32")))
    variants = [Variant("tiny", "openvino", "fp32")]
    (card,) = pipeline.export(copied, variants, Options(), lambda _: None, lambda: None)
    assert card.status == "failed"
    assert "package openvino is not installed; run: pip install -r requirements/export.txt" in card.reason
    assert card in copied.variants("tiny")
