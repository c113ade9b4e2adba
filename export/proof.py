"""What a card proves beside parity: accuracy on the held-out images, and what is counted in the exported file."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from catalog import Accuracy, WeightCount
from export.formats import Inside, Predict
from export.parity import in_batches

BATCH = 64


@dataclass(frozen=True)
class Held:
    """How a variant does on the validation images; `drop` is points of top-1 below its parent, negative for a gain."""

    accuracy: Accuracy
    drop: float


def count(inside: Inside) -> WeightCount:
    """Values, zeros and different values of the kernels and matrices that lie in a file, as they are stored."""
    tensors = [np.asarray(tensor) for tensor in inside.weights]
    types: Counter[str] = Counter()
    for tensor in tensors:
        types[str(tensor.dtype)] += tensor.size
    return WeightCount(
        tensors=len(tensors),
        values=sum(tensor.size for tensor in tensors),
        zeros=sum(int(tensor.size - np.count_nonzero(tensor)) for tensor in tensors),
        distinct=max((len(np.unique(tensor)) for tensor in tensors), default=0),
        types=dict(types),
    )


def held(
    predict: Predict, images: NDArray[np.uint8], labels: NDArray[np.int64], reference: NDArray[np.float32]
) -> Held | None:
    """Top-1 on the validation images against the parent's; None where none were held out."""
    if not len(images):
        return None
    answers = in_batches(predict, images, BATCH, reference.shape[1])
    accuracy = Accuracy.of(int(np.sum(answers.argmax(1) == labels)), len(labels))
    before = 100 * float(np.mean(reference.argmax(1) == labels))
    return Held(accuracy, round(before - 100 * accuracy.correct / accuracy.images, 4))
