"""Parity and its floors, and the choice of calibration images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from catalog import KilnError
from export import parity
from export.frozen import load_keras
from export.worker import one_line, stratified

RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (300, 4, 4, 3), np.uint8)
REFERENCE = RNG.dirichlet(np.ones(5), 300).astype(np.float32)
LABELS = REFERENCE.argmax(1).astype(np.int64)


def predict(images: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Looks the answer up by the image."""
    found = [np.flatnonzero((image == IMAGES).all((1, 2, 3)))[0] for image in images]
    return REFERENCE[found].copy()


def nudged(by: float) -> Any:
    def answer(images: NDArray[np.uint8]) -> NDArray[np.float32]:
        answers = predict(images)
        answers[:, 0] += np.float32(by)
        return answers

    return answer


def test_the_same_answers_keep_every_floor() -> None:
    proof = parity.prove(predict, "fp32", IMAGES, LABELS, REFERENCE)
    assert proof.parity.holds and proof.parity.max_abs_diff == 0 and proof.parity.top1_agreement == 1
    assert proof.parity.batch_sizes == [1, 32] and proof.parity.images == 300
    assert proof.accuracy.top1 == 100
    assert parity.shortfall(proof.parity) == ""


def test_a_nudge_is_measured_and_missed_floors_are_told() -> None:
    proof = parity.prove(nudged(0.3), "fp32", IMAGES, LABELS, REFERENCE)
    assert proof.parity.max_abs_diff == pytest.approx(0.3, abs=1e-5)
    assert proof.parity.mean_abs_diff == pytest.approx(0.06, abs=1e-5)
    expected = REFERENCE + np.array([0.3, 0, 0, 0, 0], np.float32)
    assert proof.accuracy.correct == int((expected.argmax(1) == LABELS).sum()) < 300
    assert not proof.parity.holds
    assert "differs by 0.3" in parity.shortfall(proof.parity) and "99.95%" in parity.shortfall(proof.parity)


def test_agreement_is_of_all_images_not_of_those_asked_one_by_one() -> None:
    def flipped_first(images: NDArray[np.uint8]) -> NDArray[np.float32]:
        answers = predict(images)
        if len(images) == 1 and (images[0] == IMAGES[0]).all():
            answers = np.roll(answers, 1, axis=1)
        return answers

    proof = parity.prove(flipped_first, "int8", IMAGES, LABELS, REFERENCE)
    assert proof.parity.top1_agreement == 1 and proof.parity.mean_abs_diff == 0 and proof.parity.max_abs_diff > 0
    one_of_300 = REFERENCE.copy()
    one_of_300[299] = np.roll(one_of_300[299], 1)
    assert parity.prove(predict, "int8", IMAGES, LABELS, one_of_300).parity.top1_agreement == pytest.approx(299 / 300)


def test_int8_is_asked_for_agreement_only() -> None:
    assert parity.prove(nudged(0.003), "int8", IMAGES, LABELS, REFERENCE).parity.holds
    assert not parity.prove(nudged(0.003), "fp32", IMAGES, LABELS, REFERENCE).parity.holds


def test_a_difference_at_one_batch_size_counts() -> None:
    def at_one(images: NDArray[np.uint8]) -> NDArray[np.float32]:
        return (nudged(0.01) if len(images) == 1 else predict)(images)

    assert parity.prove(at_one, "fp32", IMAGES, LABELS, REFERENCE).parity.max_abs_diff == pytest.approx(0.01, abs=1e-5)


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (lambda images: np.full((len(images), 5), np.nan, np.float32), "not finite"),
        (lambda images: np.zeros((len(images), 4), np.float32), "float32"),
        (lambda images: np.zeros((len(images), 5), np.float64), "float64"),
    ],
)
def test_answers_that_are_none_are_refused(answer: Any, words: str) -> None:
    with pytest.raises(KilnError, match=words):
        parity.prove(answer, "fp32", IMAGES, LABELS, REFERENCE)


def test_calibration_takes_as_many_of_every_class() -> None:
    labels = np.repeat(np.arange(4), [100, 50, 20, 3])
    chosen = stratified(labels, 43, seed=0)
    assert np.bincount(labels[chosen]).tolist() in ([14, 13, 13, 3], [13, 14, 13, 3], [13, 13, 14, 3])
    assert len(set(chosen.tolist())) == 43 and (np.diff(chosen) > 0).all()
    assert (stratified(labels, 43, seed=0) == chosen).all() and (stratified(labels, 43, seed=1) != chosen).any()
    assert len(stratified(labels, 1000, seed=0)) == 173


def test_reasons_are_one_line() -> None:
    assert one_line(ValueError("\n\nfirst\nsecond")) == "ValueError: first"
    assert one_line(KilnError("told")) == "told"
    assert "pip install" in one_line(ModuleNotFoundError("x", name="tf2onnx"))
    assert len(one_line(ValueError("x" * 999))) == 300


def test_h5_is_refused(tmp_path: Path) -> None:
    with pytest.raises(KilnError, match="HDF5"):
        load_keras(tmp_path / "model.h5")
