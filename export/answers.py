"""What a variant answered on the whole test split, kept from its export: who measures it next need not ask again.

Answers are decided by the file, the images, the runtime and the processor, not by the hour. They are asked for in
batches of `export.parity.BATCH`.
"""

from __future__ import annotations

import io
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from catalog import Store, VariantCard, processor, sha256_of_json, versions, write_atomic

FOLDER = "answers"  # in a model's folder


@dataclass(frozen=True)
class Answers:
    """Top class and its probability for every test image; int64 `[N]` and float32 `[N]`."""

    top: NDArray[np.int64]
    confidence: NDArray[np.float32]


def write(path: Path, probabilities: NDArray[np.float32]) -> None:
    """Leaves what `[N, classes]` comes to in an .npz, atomically."""
    file = io.BytesIO()
    np.savez_compressed(file, top=probabilities.argmax(axis=1), confidence=probabilities.max(axis=1))
    write_atomic(path, file.getvalue())


def keep(store: Store, card: VariantCard, packages: tuple[str, ...], threads: int, written: Path) -> None:
    """Files what `write` left for the variant, in place of what an earlier export of it kept."""
    path = _path(store, card, packages, threads)
    for old in path.parent.glob("*.npz"):
        if old.name.rpartition("-")[0] == card.variant.version:
            old.unlink()
    write_atomic(path, written.read_bytes())


def kept(store: Store, card: VariantCard, packages: tuple[str, ...], threads: int) -> Answers | None:
    """What the variant answered, by this very file, runtime, processor and number of threads; None if not known."""
    try:
        content = _path(store, card, packages, threads).read_bytes()
        with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
            found = Answers(arrays["top"], arrays["confidence"])
    except (OSError, ValueError, KeyError, zipfile.BadZipFile):
        return None
    return found if found.top.shape == found.confidence.shape == (card.dataset.test_images,) else None


def key(card: VariantCard, packages: tuple[str, ...], threads: int) -> str:
    """Of everything that decides the answers; `packages` are the distributions that run the file."""
    name, flags = processor()
    decisive = [card.files, card.file, card.dataset.sha256, versions(*packages, "numpy"), threads, name, sorted(flags)]
    return sha256_of_json(decisive)[:24]


def _path(store: Store, card: VariantCard, packages: tuple[str, ...], threads: int) -> Path:
    name = f"{card.variant.version}-{key(card, packages, threads)}.npz"
    return store.model_dir(card.variant.model) / FOLDER / name
