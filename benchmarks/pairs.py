"""The same images through two variants: which answers changed, and whether chance would do that."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from benchmarks.results import Detail
from catalog import Variant

Predictions = NDArray[np.int64]


def float_parent(variants: list[Variant], model: str, known: set[str]) -> Variant | None:
    """The variant of a model that the others are held against: Keras fp32 where it was measured, else ONNX fp32."""
    for form in ("keras", "onnx"):
        parent = Variant(model, form)
        if parent in variants and str(parent) in known:
            return parent
    return None


def mcnemar_p(lost: int, won: int) -> float:
    """McNemar's exact two-sided p: the chance of a split at least this uneven, were both directions equally likely."""
    changed = lost + won
    tail = sum(math.comb(changed, k) for k in range(min(lost, won) + 1))
    return min(1.0, 2 * tail / (1 << changed))


def paired(
    details: dict[str, Detail],
    variants: list[Variant],
    predictions: dict[str, Predictions],
    labels: Callable[[str], Predictions],
) -> dict[str, Detail]:
    """The details with flips against each model's float parent filled in, where both were measured."""
    filled = dict(details)
    for variant in variants:
        name = str(variant)
        parent = float_parent(variants, variant.model, set(predictions))
        if parent is None or name not in predictions or variant == parent:
            continue
        truth = labels(variant.model)
        right, parent_right = predictions[name] == truth, predictions[str(parent)] == truth
        lost, won = int((parent_right & ~right).sum()), int((~parent_right & right).sum())
        filled[name] = dataclasses.replace(
            details[name], against=parent.version, lost=lost, won=won, mcnemar_p=round(mcnemar_p(lost, won), 6)
        )
    return filled
