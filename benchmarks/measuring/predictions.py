"""What a variant answered on the test split and on its corrupted images, and the folder that keeps it between runs.

A second run may take the answers from the first, and those on the test split from the variant's export: see
`export.answers`. A report says of each row whether it did.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.measuring import corrupt
from catalog import KilnError, VariantCard, write_atomic
from export import answers

BATCH = 128


@dataclass(frozen=True)
class Predictions:
    """Top class and its probability for every test image; top classes of the corrupted ones.

    `top` is int64 `[N]`, `confidence` float32 `[N]`, `corrupted` int64 `[corruptions, severities, n]`, n possibly 0.
    """

    top: NDArray[np.int64]
    confidence: NDArray[np.float32]
    corrupted: NDArray[np.int64]

    @classmethod
    def uncorrupted(cls, told: answers.Answers) -> Predictions:
        """Those on the test split alone."""
        return cls(told.top, told.confidence, np.empty((0, 0, 0), np.int64))

    def save(self, path: Path) -> None:
        """Writes the three arrays as one .npz, atomically."""
        file = io.BytesIO()
        np.savez_compressed(file, top=self.top, confidence=self.confidence, corrupted=self.corrupted)
        write_atomic(path, file.getvalue())


def load(path: Path) -> Predictions | None:
    """What `save` wrote; None where there is nothing that can be read."""
    try:
        with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as arrays:
            return Predictions(arrays["top"], arrays["confidence"], arrays["corrupted"])
    except (OSError, ValueError, KeyError, zipfile.BadZipFile):
        return None


def predicted(
    predict: Callable[[NDArray[np.uint8]], NDArray[np.float32]], images: NDArray[np.uint8]
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Top class and its probability of uint8 `[N, H, W, 3]`.

    Raises:
        KilnError: The variant gave something else than one row of finite probabilities an image.
    """
    parts = [predict(np.ascontiguousarray(images[i : i + BATCH])) for i in range(0, len(images), BATCH)]
    probabilities = np.concatenate(parts)
    if len(probabilities) != len(images) or not np.isfinite(probabilities).all():
        raise KilnError("its probabilities are not finite numbers, one row an image")
    return probabilities.argmax(axis=1), probabilities.max(axis=1)


def key(card: VariantCard, packages: tuple[str, ...], threads: int, robust_images: int) -> str:
    """The name under which a variant's predictions are kept: of everything that decides them, corruptions included."""
    return f"{answers.key(card, packages, threads)}-{robust_images}-{corrupt.digest()}.npz"
