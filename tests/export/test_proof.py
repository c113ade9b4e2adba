"""What cards prove: flips, weights counted in the files themselves, multiply-accumulates, the page that shows it."""

from __future__ import annotations

import dataclasses
import io
import json
import math
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

import catalog
from catalog import CARD, Accuracy, Flips, Store, Variant, VariantCard, WeightCount, plugin
from export import pages, parity, pipeline, proof
from export.formats import Inside
from export.onnx import floats
from export.onnx import inside as onnx_inside
from export.verdict import judged_by
from tests.export.test_onnx import small_core

VARIANTS = pipeline.wanted("tiny", [], [])
KERNELS = 5 * 5 * 3 * 6 + 5 * 5 * 6 * 16 + 400 * 120 + 120 * 84 + 84 * 10  # of LeNet
MACS = 28 * 28 * 450 + 10 * 10 * 2400 + 400 * 120 + 120 * 84 + 84 * 10


def card_of(store: Store, variant: Variant) -> VariantCard:
    return catalog.read_card(VariantCard, store.variant_dir(variant) / CARD)


def test_flips_are_counted_each_way() -> None:
    labels = np.array([0, 0, 1, 1, 1])
    sure = np.eye(2, dtype=np.float32)
    reference, answers = sure[[0, 1, 1, 1, 0]], sure[[0, 0, 0, 0, 0]]
    assert parity.flips(answers, reference, labels) == Flips(1, 2, 1.0)


@pytest.mark.parametrize(("gained", "lost"), [(0, 0), (5, 5), (1, 9), (9, 1), (0, 6), (74, 120), (400, 401), (1, 3000)])
def test_mcnemar_is_the_exact_binomial_test(gained: int, lost: int) -> None:
    count, fewer = gained + lost, min(gained, lost)
    tail = Fraction(sum(math.comb(count, k) for k in range(fewer + 1)), 2**count)
    assert Flips.of(gained, lost).p == pytest.approx(min(1.0, float(2 * tail)))


def test_mcnemar_of_the_docstring() -> None:
    assert Flips.of(1, 9).p == pytest.approx(0.0215, abs=5e-5)


def test_mcnemar_of_many_flips_does_not_overflow() -> None:
    assert 0 <= Flips.of(1000, 4000).p < 1e-100
    assert Flips.of(5000, 5001).p == pytest.approx(1.0)


def test_weights_are_counted_as_they_are_stored() -> None:
    told = proof.count(Inside([np.array([[0, 1], [1, 2]], np.int8), np.zeros((3, 1), np.float32)], None))
    assert told == WeightCount(tensors=2, values=7, zeros=4, distinct=3, types={"int8": 4, "float32": 3})
    assert told.sparsity == pytest.approx(4 / 7) and proof.count(Inside([], None)).sparsity == 0


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_every_card_has_its_proof(store: Store, variant: Variant) -> None:
    card = card_of(store, variant)
    assert card.flips and card.weights and card.validation and card.accuracy
    assert card.accuracy.correct - store.card("tiny").accuracy.correct == card.flips.gained - card.flips.lost
    assert card.validation.images == card.dataset.validation_images
    assert card.weights.tensors == 5 and card.weights.distinct <= card.weights.values
    if (variant.format, variant.precision) == ("onnx", "int8"):  # the first kernel is laid out with zeros between
        assert card.weights.values > KERNELS and card.macs and card.macs > MACS
    else:
        assert (card.weights.values, card.macs) == (KERNELS, MACS)
    stored = {"fp16": "float16", "int8": "int8"}.get(variant.precision, "float32")
    assert set(card.weights.types) == {stored}
    assert card.weights.distinct <= {"int8": 255}.get(variant.precision, KERNELS)


@pytest.mark.parametrize("format", ["onnx", "openvino"])
def test_the_search_is_in_the_card(store: Store, format: str) -> None:
    card = card_of(store, Variant("tiny", format, "int8"))
    assert len(card.search) == 16
    best = min(card.search, key=lambda step: step["damage"])
    assert card.settings["calibration_method"] == best["calibration"]
    assert all(card.settings[name] == best[name] for name in ("per_channel", "dense_by_tensor", "rounding"))
    assert len(list((store.model_dir("tiny") / "searches").iterdir())) == 1  # both formats share it


def test_openvino_int8_runs_on_bytes_from_the_first_layer_on(store: Store) -> None:
    operators = card_of(store, Variant("tiny", "openvino", "int8")).operators
    assert operators["Convolution u8"] == 2 and operators["FullyConnected u8"] == 3
    assert not any(name.startswith(("Convert ", "Convolution f", "FullyConnected f")) for name in operators)


def test_litert_int8_is_integer_up_to_the_logits(store: Store) -> None:
    card = card_of(store, Variant("tiny", "litert", "int8"))
    assert list(card.operators)[-2:] == ["DEQUANTIZE", "SOFTMAX"] and card.settings["delegate_partitions"] == 1
    assert not {"CAST", "MUL"} & set(card.operators)


def test_zeros_put_into_a_file_are_found_in_it(tmp_path: Path) -> None:
    from onnx import numpy_helper

    model = floats.finish(small_core(3, 1, (1, 1, 1, 1)))
    dense = next(tensor for tensor in model.graph.initializer if tensor.name == "d")
    dense.CopyFrom(numpy_helper.from_array(np.array([[0, 0, 0.5, 0.5, -1]] * 8, np.float32), "d"))
    path = tmp_path / "model.onnx"
    path.write_bytes(model.SerializeToString())
    inside = onnx_inside.inside(path)
    assert inside.macs == 32 * 32 * 8 * 27 + 8 * 5
    told = proof.count(Inside([w for w in inside.weights if w.shape == (8, 5)], None))
    assert (told.zeros, told.distinct, told.values) == (16, 3, 40)


def test_cards_of_before_are_still_read(store: Store) -> None:
    path = store.variant_dir(Variant("tiny", "onnx", "fp32")) / CARD
    data: dict[str, Any] = json.loads(path.read_text())
    for name in ("flips", "weights", "macs", "validation", "validation_drop", "allowed_drop", "search"):
        del data[name]
    old = catalog.from_json(VariantCard, data)
    assert old.flips is None and old.search == []
    assert "tiny/onnx-fp32" in shown(old)


def shown(card: VariantCard) -> str:
    console = Console(file=io.StringIO(), width=110)
    console.print(pages.page(card))
    return " ".join(console.file.getvalue().split())  # type: ignore[attr-defined]


def test_the_page_tells_all_of_it(store: Store) -> None:
    card = card_of(store, Variant("tiny", "onnx", "int8"))
    text = shown(card)
    for words in (
        "McNemar's exact p",
        "different values at most",
        "validation images",
        "counted in the exported graph",
    ):
        assert words in text
    assert "percentile-99.99" in text and "tried before this was chosen" in text
    for name in ("operators", "versions", "sha256", "after gzip", "by python -m export tiny"):
        assert name in text


def test_padding_of_the_first_kernel_is_no_sparsity(store: Store) -> None:
    """Its layout in the file holds zeros that the network has not, and is multiplied by them."""
    card = card_of(store, Variant("tiny", "onnx", "int8"))
    added, count = card.settings["first_kernel_layout"], card.weights
    assert count and card.macs and (count.values - added["values"], card.macs - added["macs"]) == (KERNELS, MACS)
    plain = card_of(store, Variant("tiny", "openvino", "int8")).weights  # the same kernels, not laid out
    assert plain and count.zeros - added["zeros"] == plain.zeros and count.sparsity > plain.sparsity
    text = shown(card)
    assert f"{added['values']:,} of them only lay out the first kernel" in text
    assert f"{100 * plain.sparsity:.2f}% of the others are zero" in text
    assert f"{added['macs']:,} of them by the layout of the first kernel" in text
    assert "lay out" not in shown(card_of(store, Variant("tiny", "openvino", "int8")))


def test_over_budget_is_said_in_words(store: Store) -> None:
    card = card_of(store, Variant("tiny", "onnx", "int8"))
    images = card.dataset.validation_images
    lossy = dataclasses.replace(card, validation=Accuracy.of(0, images), validation_drop=4.25)
    judged = judged_by(lossy, 0.3)
    assert judged.status == "below-floor" and "drops by 4.25 points, allowed are 0.3" in judged.reason
    assert pages.status(judged) == "over budget" and "over budget" in shown(judged)
    assert judged_by(judged, 5.0).status == "ok" and judged_by(judged, None).reason == ""
    assert card.parity
    strays = dataclasses.replace(lossy, parity=dataclasses.replace(card.parity, top1_agreement=0.1))
    assert pages.status(judged_by(strays, 0.3)) == "below-floor"


def test_the_table_has_a_row_for_what_was_never_begun(store: Store) -> None:
    card = card_of(store, Variant("tiny", "onnx", "int8"))
    over = judged_by(dataclasses.replace(card, validation_drop=4.25), 0.3)
    console = Console(file=io.StringIO(), width=140)
    console.print(pages.table([card, over], [Variant("other", "onnx", "fp32")]))
    rows = [line.split() for line in console.file.getvalue().splitlines()]  # type: ignore[attr-defined]
    told = {tuple(row[:2]) for row in rows if row}
    assert {("tiny/onnx-int8", "ok"), ("tiny/onnx-int8", "over"), ("other/onnx-fp32", "failed")} <= told


def test_the_table_has_room_for_its_figures_in_a_narrow_terminal(store: Store) -> None:
    card = card_of(store, Variant("tiny", "onnx", "int8"))
    assert card.accuracy and card.parity
    long = dataclasses.replace(card.variant, model="mobilenetv2", transform="prune80-cluster16-quantize_aware")
    console = Console(file=io.StringIO(), width=80)
    console.print(pages.table([dataclasses.replace(card, variant=long, status="below-floor")]))
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert "…" not in text and f"{card.accuracy.top1:.2f}%" in text and f"{card.parity.max_abs_diff:.1e}" in text
    head, *rows = [line for line in text.splitlines() if line.strip()]
    width = head.index("status")
    assert "".join(row[:width].strip(" ─") for row in rows) == str(long) and "below-floor" in text


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_a_missing_package_is_named_with_its_install_line(variant: Variant) -> None:
    from export.worker import one_line

    form = plugin("export.formats", variant.format)
    error = ModuleNotFoundError("no", name=form.PACKAGES[0].replace("-", "_"))
    assert "is not installed; run: pip install -r requirements/export.txt" in one_line(error)
