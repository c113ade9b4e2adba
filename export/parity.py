"""How far a variant strays from its float Keras parent, on the same images, and how far it may."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from catalog import Accuracy, Flips, KilnError, Parity
from export.formats import Predict


@dataclass(frozen=True)
class Floor:
    """The largest difference of one probability, None for any, and the least share of images of the same top class."""

    max_abs_diff: float | None
    top1_agreement: float


FLOORS = {
    "fp32": Floor(1e-4, 0.9995),
    "fp16": Floor(0.05, 0.995),
    "bf16": Floor(None, 0.97),
    "int8": Floor(None, 0.95),
    "mixed": Floor(None, 0.95),
}
BATCH = 32  # of the pass over the whole split, which is what agreement, accuracy and flips are counted on
ALONE = 256  # images that are also asked for one by one: a runtime may take another way for a batch of one


@dataclass(frozen=True)
class Proof:
    """What running a variant over the whole test split came to."""

    parity: Parity
    accuracy: Accuracy
    flips: Flips
    answers: NDArray[np.float32]  # [N, classes]


def prove(
    predict: Predict,
    precision: str,
    images: NDArray[np.uint8],
    labels: NDArray[np.int64],
    reference: NDArray[np.float32],
    parent: NDArray[np.float32] | None = None,
) -> Proof:
    """Runs a variant over the whole test split and, one by one, over its first images; compares it with `reference`.

    The largest difference is that of both; everything that is counted comes from the whole split.

    Args:
        predict: The variant.
        precision: Which floors it must keep.
        images: uint8 `[N, H, W, 3]`.
        labels: int64 `[N]`.
        reference: What the Keras model it was converted from answers, float32 `[N, classes]`.
        parent: What the network as trained answers, where a transform came between; flips are counted against it.

    Raises:
        KilnError: An answer has the wrong shape or type, or is not finite.
    """
    floor = FLOORS[precision]
    classes = reference.shape[1]
    answers = in_batches(predict, images, BATCH, classes)
    alone = in_batches(predict, images[:ALONE], 1, classes)
    difference = np.abs(answers - reference)
    parity = Parity(
        images=len(images),
        batch_sizes=[1, BATCH],
        max_abs_diff=max(float(difference.max()), float(np.abs(alone - reference[:ALONE]).max())),
        mean_abs_diff=float(difference.mean()),
        top1_agreement=float(np.mean(answers.argmax(1) == reference.argmax(1))),
        floor_max_abs_diff=floor.max_abs_diff,
        floor_top1_agreement=floor.top1_agreement,
    )
    accuracy = Accuracy.of(int(np.sum(answers.argmax(1) == labels)), len(labels))
    return Proof(parity, accuracy, flips(answers, reference if parent is None else parent, labels), answers)


def in_batches(predict: Predict, images: NDArray[np.uint8], batch: int, classes: int) -> NDArray[np.float32]:
    """Probabilities float32 `[N, classes]` of all images, `batch` at a time; the last batch may be smaller.

    Raises:
        KilnError: An answer has the wrong shape or type, or is not finite.
    """
    answers = np.empty((len(images), classes), np.float32)
    for start in range(0, len(images), batch):
        part = np.ascontiguousarray(images[start : start + batch])
        answer = predict(part)
        if answer.shape != (len(part), classes) or answer.dtype != np.float32:
            raise KilnError(
                f"answered {len(part)} images with {answer.dtype} {answer.shape}, not float32 [N, {classes}]"
            )
        answers[start : start + len(part)] = answer
    if not np.isfinite(answers).all():
        raise KilnError(f"{int((~np.isfinite(answers)).any(1).sum())} of {len(images)} answers are not finite numbers")
    return answers


def flips(answers: NDArray[np.float32], reference: NDArray[np.float32], labels: NDArray[np.int64]) -> Flips:
    """Images that one of the two gets right and the other wrong; probabilities `[N, classes]`, labels `[N]`."""
    right, before = answers.argmax(1) == labels, reference.argmax(1) == labels
    return Flips.of(int(np.sum(right & ~before)), int(np.sum(~right & before)))


def shortfall(parity: Parity) -> str:
    """In words, which floor is missed and by what; empty if both are kept."""
    missed = []
    if parity.floor_max_abs_diff is not None and parity.max_abs_diff > parity.floor_max_abs_diff:
        missed.append(
            f"a probability differs by {parity.max_abs_diff:.2g}, allowed are {parity.floor_max_abs_diff:.2g}"
        )
    if parity.top1_agreement < parity.floor_top1_agreement:
        missed.append(
            f"the top class agrees on {100 * parity.top1_agreement:.2f}%, "
            f"asked are {100 * parity.floor_top1_agreement:.2f}%"
        )
    return "; ".join(missed)
