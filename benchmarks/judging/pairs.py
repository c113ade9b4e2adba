"""What the answers say: how many are right, which changed against the float parent, and whether by chance."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

from benchmarks.judging import intervals
from benchmarks.measuring.corrupt import CORRUPTIONS
from benchmarks.measuring.predictions import Predictions
from benchmarks.results import Detail
from catalog import Accuracy, Flips, Variant

Labels = NDArray[np.int64]
BINS = 15  # of the calibration error


def float_parent(variants: list[Variant], model: str, known: set[str]) -> Variant | None:
    """The variant of a model that the others are held against: Keras fp32 where it was measured, else ONNX fp32."""
    for form in ("keras", "onnx"):
        parent = Variant(model, form)
        if parent in variants and str(parent) in known:
            return parent
    return None


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """Holm's correction (1979): the p by name that each test has as one of them all, in 0..1."""
    corrected, highest = {}, 0.0
    for rank, name in enumerate(sorted(p_values, key=lambda name: p_values[name])):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[name]))
        corrected[name] = highest
    return corrected


def accuracy(told: Predictions, labels: Labels) -> Accuracy:
    """Top-1 on the whole test split, with its interval."""
    return Accuracy.of(int((told.top == labels).sum()), len(labels))


def by_class(told: Predictions, labels: Labels, classes: int) -> list[float]:
    """Top-1 in percent of each class's images; 0 for a class without any."""
    right = np.bincount(labels[told.top == labels], minlength=classes)
    return [
        round(100 * r / n, 2) if n else 0.0 for r, n in zip(right, np.bincount(labels, minlength=classes), strict=True)
    ]


def calibration_error(told: Predictions, labels: Labels) -> float:
    """Expected calibration error in percent: how far confidence lies from accuracy, weighted by bins' images."""
    place = np.minimum((told.confidence * BINS).astype(int), BINS - 1)
    right, sure = (np.bincount(place, weights, BINS) for weights in (told.top == labels, told.confidence))
    return round(100 * float(np.abs(right - sure).sum()) / len(labels), 3)


def described(detail: Detail, told: Predictions, labels: Labels, classes: int, subset: Labels) -> Detail:
    """The detail with what one variant's answers say on their own; `subset` indexes the corrupted images."""
    robust = {}
    if told.corrupted.size:
        right = (told.corrupted == labels[subset]).mean(axis=2) * 100
        robust = {name: [round(float(share), 2) for share in right[i]] for i, name in enumerate(CORRUPTIONS)}
    return dataclasses.replace(
        detail,
        top1_by_class=by_class(told, labels, classes),
        calibration_error=calibration_error(told, labels),
        confidence=round(100 * float(told.confidence.mean()), 3),
        robust_images=told.corrupted.shape[2] if robust else 0,
        robust_clean_top1=round(100 * float((told.top == labels)[subset].mean()), 2) if robust else None,
        robust_top1=robust,
    )


def paired(
    details: dict[str, Detail],
    variants: list[Variant],
    predictions: Mapping[str, Predictions],
    labels: Callable[[str], Labels],
    subset: Callable[[str], Labels],
) -> dict[str, Detail]:
    """The details with what is told by holding each variant's answers against its float parent's, image by image.

    `labels` and `subset` give a model's labels and which of its test images were corrupted.
    """
    filled, p_values, robust_p = dict(details), dict[str, float](), dict[str, float]()
    for variant in variants:
        name = str(variant)
        parent = float_parent(variants, variant.model, set(predictions))
        if parent is None or name not in predictions or variant == parent:
            continue
        truth = labels(variant.model)
        right, parent_right = predictions[name].top == truth, predictions[str(parent)].top == truth
        lost, won = int((parent_right & ~right).sum()), int((~parent_right & right).sum())
        p_values[name] = Flips.of(won, lost).p
        filled[name] = dataclasses.replace(
            details[name], against=parent.version, lost=lost, won=won, mcnemar_p=round(p_values[name], 6)
        )
        if predictions[name].corrupted.size and predictions[str(parent)].corrupted.size:
            by_image = robust_changes(predictions[name], predictions[str(parent)], truth[subset(variant.model)])
            errors = {kind: round(intervals.paired_error(found), 4) for kind, found in by_image.items()}
            robust_p[name] = intervals.chance_of(100 * by_image[intervals.ALL].mean(), errors[intervals.ALL])
            filled[name] = dataclasses.replace(filled[name], robust_errors=errors)
    for name, p in holm(p_values).items():
        filled[name] = dataclasses.replace(filled[name], mcnemar_holm=round(p, 6))
    for name, p in holm(robust_p).items():
        filled[name] = dataclasses.replace(filled[name], robust_holm=round(p, 6))
    return filled


def robust_changes(told: Predictions, parent: Predictions, truth: Labels) -> dict[str, NDArray[np.float64]]:
    """How much oftener a variant is right than its parent about each corrupted image, -1..1, by corruption and of all.

    `truth` holds the labels of the images that were corrupted; of each, the mean over the severities.
    """
    right, before = ((one.corrupted == truth).mean(axis=1) for one in (told, parent))
    changes = right - before
    return {**dict(zip(CORRUPTIONS, changes, strict=True)), intervals.ALL: changes.mean(axis=0)}
