"""What is made of a variant's answers: Holm's correction, classes, calibration, and the corrupted images."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from benchmarks.judging import pairs
from benchmarks.measuring.corrupt import CORRUPTIONS, SEVERITIES, corrupt, subset
from benchmarks.measuring.predictions import Predictions, key, load, predicted
from benchmarks.measuring.splits import robust_images
from benchmarks.results import Detail, Settings
from catalog import DatasetInfo, KilnError, Variant, VariantCard

NONE = np.empty((0, 0, 0), np.int64)


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    """Smooth random images."""
    from PIL import Image

    coarse = np.random.default_rng(1).integers(0, 256, (12, 8, 8, 3)).astype(np.uint8)
    return np.stack([np.asarray(Image.fromarray(one).resize((32, 32))) for one in coarse])


def test_holm_is_the_textbook_s() -> None:
    assert pairs.holm({"a": 0.01, "b": 0.04, "c": 0.03, "d": 0.005}) == pytest.approx(
        {"d": 0.02, "a": 0.03, "c": 0.06, "b": 0.06}
    )
    assert pairs.holm({"a": 0.6, "b": 0.9}) == {"a": 1.0, "b": 1.0}
    assert pairs.holm({}) == {}


def test_by_class_and_overall() -> None:
    told = Predictions(np.array([0, 1, 1, 2, 0]), np.ones(5, np.float32), NONE)
    labels = np.array([0, 1, 2, 2, 2])
    assert pairs.by_class(told, labels, 4) == [100.0, 100.0, 33.33, 0.0]
    assert pairs.accuracy(told, labels).correct == 3


def test_calibration_error_is_the_gap_weighted_by_images() -> None:
    labels, top = np.zeros(10, np.int64), np.array([0] * 6 + [1] * 4)
    honest = Predictions(top, np.full(10, 0.6, np.float32), NONE)
    boastful = Predictions(top, np.full(10, 1.0, np.float32), NONE)
    assert pairs.calibration_error(honest, labels) == pytest.approx(0, abs=0.01)
    assert pairs.calibration_error(boastful, labels) == pytest.approx(40, abs=0.01)
    # two bins whose errors would cancel if they were not taken apart
    mixed = Predictions(np.array([0, 1]), np.array([0.5, 0.5], np.float32), NONE)
    apart = Predictions(np.array([0, 1]), np.array([0.3, 0.7], np.float32), NONE)
    assert pairs.calibration_error(mixed, np.zeros(2, np.int64)) == pytest.approx(0, abs=0.01)
    assert pairs.calibration_error(apart, np.zeros(2, np.int64)) == pytest.approx(70, abs=0.01)


def test_correction_is_over_all_variants_of_all_models() -> None:
    details = {name: empty_detail() for name in ("m/onnx-fp32", "m/onnx-int8", "n/onnx-fp32", "n/onnx-int8")}
    variants = [Variant("m", "onnx"), Variant("m", "onnx", "int8"), Variant("n", "onnx"), Variant("n", "onnx", "int8")]
    labels = np.zeros(30, np.int64)
    wrong = {"m/onnx-int8": 8, "n/onnx-int8": 6}
    told = {
        name: Predictions((np.arange(30) < wrong.get(name, 0)).astype(np.int64), np.ones(30, np.float32), NONE)
        for name in details
    }
    found = pairs.paired(details, variants, told, lambda model: labels, lambda model: labels[:0])
    worst, other = found["m/onnx-int8"], found["n/onnx-int8"]
    assert (worst.lost, worst.won, worst.mcnemar_p) == (8, 0, round(2 / 2**8, 6))
    assert worst.mcnemar_holm == pytest.approx(4 / 2**8, abs=1e-6)
    assert other.mcnemar_p == other.mcnemar_holm == pytest.approx(2 / 2**6)
    assert found["m/onnx-fp32"].mcnemar_holm is None


def test_the_change_on_corrupted_images_is_judged_image_by_image() -> None:
    labels, chosen = np.zeros(40, np.int64), np.arange(0, 40, 2)
    variants = [Variant("m", "onnx"), Variant("m", "onnx", "int8"), Variant("m", "litert", "int8")]
    right = np.zeros((len(CORRUPTIONS), len(SEVERITIES), len(chosen)), np.int64)
    some, one = right.copy(), right.copy()
    some[:, :, :8] = 1  # eight of twenty images are lost, whatever the corruption
    one[0, 2, 0] = 1
    told = {
        str(variant): Predictions(labels, np.ones(40, np.float32), answers)
        for variant, answers in zip(variants, (right, some, one), strict=True)
    }
    details = {name: empty_detail() for name in told}
    found = pairs.paired(details, variants, told, lambda model: labels, lambda model: chosen)
    worse, same = found["m/onnx-int8"], found["m/litert-int8"]
    assert (
        worse.robust_errors["all"] == worse.robust_errors["blur"] == pytest.approx(100 * (0.24 / 19) ** 0.5, abs=1e-3)
    )
    assert worse.robust_holm is not None and worse.robust_holm < 0.001
    assert same.robust_errors["blur"] == 0 < same.robust_errors["noise"] and same.robust_holm == pytest.approx(
        0.3173, abs=1e-3
    )
    assert not found["m/onnx-fp32"].robust_errors


def empty_detail() -> Detail:
    return Detail(0, 1.0, 1, {}, 1, True, 1.0, 1.0, 1.0, 1.0, 0.1, 1)


def test_described_counts_corrupted_images_by_severity() -> None:
    labels, chosen = np.array([0, 1, 2, 0]), np.array([1, 3])
    spoilt = np.tile(labels[chosen], (len(CORRUPTIONS), len(SEVERITIES), 1))
    spoilt[0, 2] = 9  # all noise of the highest severity answered wrongly
    spoilt[1, 1, 0] = 9
    told = Predictions(np.array([0, 1, 1, 1]), np.ones(4, np.float32), spoilt)
    detail = pairs.described(empty_detail(), told, labels, 3, chosen)
    assert detail.robust_top1["noise"] == [100, 100, 0] and detail.robust_top1["blur"] == [100, 50, 100]
    assert (detail.robust_images, detail.robust_clean_top1) == (2, 50.0)


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_a_corruption_is_seeded_and_grows_with_severity(images: np.ndarray, name: str) -> None:
    before = images.copy()
    spoilt = [corrupt(images, name, severity) for severity in SEVERITIES]
    assert all(one.shape == images.shape and one.dtype == np.uint8 for one in spoilt)
    assert (images == before).all()
    distances = [np.abs(one.astype(float) - images).mean() for one in spoilt]
    assert 0 < distances[0] < distances[1] < distances[2] < 100
    assert (corrupt(images, name, 3) == spoilt[1]).all()
    if name == "noise":
        assert (corrupt(images, name, 3, seed=1) != spoilt[1]).any()


def test_corruptions_do_what_they_are_called(images: np.ndarray) -> None:
    grey = np.full((2, 32, 32, 3), 100, np.uint8)
    for name in ("blur", "contrast", "pixelation"):
        assert (corrupt(grey, name, 5) == grey).all(), name
    assert corrupt(grey, "noise", 5).std() == pytest.approx(25.5, rel=0.05)
    assert corrupt(grey, "brightness", 5).mean() == pytest.approx(100 + 0.3 * 255, abs=1)
    assert (corrupt(np.zeros_like(grey), "brightness", 5) == round(0.3 * 255)).all()  # black has no hue to keep
    assert corrupt(images, "contrast", 5).std() < 0.25 * images.std()
    blocks = corrupt(images, "pixelation", 5)
    assert (blocks[:, 1:] == blocks[:, :-1]).mean() > 0.3 > (images[:, 1:] == images[:, :-1]).mean()


def test_small_and_oblong_images_can_be_corrupted() -> None:
    images = np.random.default_rng(0).integers(0, 256, (2, 9, 14, 3), np.uint8)
    assert {corrupt(images, name, 5).shape for name in CORRUPTIONS} == {images.shape}
    with pytest.raises(ValueError, match="severity 2 is none of"):
        corrupt(images, "blur", 2)


def test_the_subset_is_seeded_and_no_larger_than_the_split() -> None:
    labels = np.zeros(50, np.int64)
    chosen = subset(labels, 20)
    assert len(set(chosen.tolist())) == 20 and (chosen == np.sort(chosen)).all()
    assert (subset(labels, 20) == chosen).all() and len(subset(labels, 80)) == 50 and len(subset(labels, 0)) == 0


def test_a_large_network_gets_fewer_corrupted_images() -> None:
    settings, sizes = Settings(), (650_000, 43_758_080, 324_472_832, 10**10)
    assert [robust_images(settings, macs) for macs in sizes] == [300, 300, 100, 40]
    less = dataclasses.replace(settings, robust_macs=settings.robust_macs / 4)
    assert [robust_images(less, macs) for macs in sizes] == [300, 150, 40, 40]
    few, none = (dataclasses.replace(settings, robust_images=wanted) for wanted in (20, 0))
    assert robust_images(none, 10**10) == 0 and robust_images(few, 10**10) == 20 and robust_images(settings, 0) == 300


def test_answers_that_are_none_are_refused() -> None:
    images = np.zeros((200, 2, 2, 3), np.uint8)
    top, confidence = predicted(lambda x: np.tile(np.array([0.2, 0.8], np.float32), (len(x), 1)), images)
    assert (top == 1).all() and len(confidence) == 200
    for wrong in (lambda x: np.full((len(x), 2), np.nan, np.float32), lambda x: np.ones((1, 2), np.float32)):
        with pytest.raises(KilnError, match="not finite numbers, one row an image"):
            predicted(wrong, images)


def test_kept_answers_come_back_and_rubbish_does_not(tmp_path) -> None:
    told = Predictions(np.arange(5), np.linspace(0, 1, 5, dtype=np.float32), np.ones((6, 3, 2), np.int64))
    told.save(tmp_path / "a.npz")
    found = load(tmp_path / "a.npz")
    assert found is not None and (found.top == told.top).all() and found.corrupted.shape == (6, 3, 2)
    (tmp_path / "b.npz").write_bytes((tmp_path / "a.npz").read_bytes()[:40])
    assert load(tmp_path / "b.npz") is None and load(tmp_path / "c.npz") is None


def test_answers_are_kept_under_what_decides_them() -> None:
    data = DatasetInfo("d", "0" * 64, [], 2, 2, 1, 1, 1)
    card = VariantCard(
        *(Variant("m", "onnx"), "ok", "", "p", data, "model.onnx", 1, 1, None, None, {}, {}, 1.0, {}, "", "", ""),
        files={"model.onnx": "a"},
    )
    import dataclasses

    other = dataclasses.replace(card, files={"model.onnx": "b"})
    keys = {
        key(card, ("numpy",), 2, 300),
        key(other, ("numpy",), 2, 300),
        key(card, ("numpy",), 1, 300),
        key(card, ("numpy",), 2, 0),
        key(card, ("numpy", "scipy"), 2, 300),  # a second package of the format decides as well
    }
    assert len(keys) == 5 and key(card, ("numpy",), 2, 300) in keys
