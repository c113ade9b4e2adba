"""Data sets: one a file, each a function `read`; here is what is the same for all of them.

Arrays are uint8 `[N, H, W, 3]` RGB and int64 `[N]` labels. The validation split comes out of the training split, by a
seed that no recipe changes, so that every run on a data set holds out the same images. No framework is imported.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from catalog import DatasetInfo, plugin

Images = NDArray[np.uint8]
Labels = NDArray[np.int64]
SPLIT_SEED = 20091


class Source(NamedTuple):
    """What a plug-in's `read(root)` returns: the two splits as they are published, and the class names."""

    x_train: Images
    y_train: Labels
    x_test: Images
    y_test: Labels
    classes: list[str]


@dataclass(frozen=True)
class Dataset:
    """A data set in three splits; its hash is of all pixels, labels and names as published, whatever is held out."""

    name: str
    root: str
    sha256: str
    classes: list[str]
    x_train: Images
    y_train: Labels
    x_val: Images
    y_val: Labels
    x_test: Images
    y_test: Labels

    @property
    def info(self) -> DatasetInfo:
        """The record for cards."""
        _, height, width, _ = self.x_train.shape
        counts = len(self.x_train), len(self.x_val), len(self.x_test)
        return DatasetInfo(self.name, self.sha256, self.classes, height, width, *counts, root=self.root)


def load(name: str, *, root: Path | str | None = None, validation: float = 0.1) -> Dataset:
    """A data set by name, split and hashed.

    Args:
        name: A file of `training/data/`.
        root: Where its files lie; only `folder` needs it, others have a place of their own.
        validation: Share of the training split to hold out, 0 for none (`x_val` is then empty).

    Raises:
        KilnError: Unknown name, or what `read` found wrong.
        ValueError: `validation` is not in [0, 1), or the plug-in broke its contract.
    """
    if not 0 <= validation < 1:
        raise ValueError(f"validation is {validation}, not in [0, 1)")
    source: Source = plugin("training.data", name).read(Path(root) if root is not None else None)
    _check(name, source)
    held = _held_out(source.y_train, validation)
    x, y, sha256 = source.x_train, source.y_train, _sha256(source)
    splits: tuple[Any, ...] = (x[~held], y[~held], x[held], y[held], source.x_test, source.y_test)
    for array in splits:
        array.flags.writeable = False
    return Dataset(name, str(root or ""), sha256, source.classes, *splits)


def _check(name: str, source: Source) -> None:
    """Holds a plug-in to its contract."""
    for x, y in ((source.x_train, source.y_train), (source.x_test, source.y_test)):
        if x.dtype != np.uint8 or x.ndim != 4 or x.shape[3] != 3 or len(x) == 0:
            raise ValueError(f"{name}: images are {x.dtype} {x.shape}, not uint8 [N, H, W, 3] with N of at least 1")
        if y.dtype != np.int64 or y.shape != (len(x),) or y.min() < 0 or y.max() >= len(source.classes):
            raise ValueError(
                f"{name}: labels are {y.dtype} {y.shape}, not int64 [{len(x)}] below {len(source.classes)}"
            )
    if source.x_train.shape[1:] != source.x_test.shape[1:]:
        raise ValueError(f"{name}: training images are {source.x_train.shape[1:]}, test ones {source.x_test.shape[1:]}")


def _held_out(labels: Labels, share: float) -> NDArray[np.bool_]:
    """Which training images are the validation split: `share` of every class, by a fixed seed."""
    held, rng = np.zeros(len(labels), bool), np.random.default_rng(SPLIT_SEED)
    for label in np.unique(labels):
        members = rng.permutation(np.flatnonzero(labels == label))
        held[members[: min(round(share * len(members)), len(members) - 1)]] = True
    return held


def _sha256(source: Source) -> str:
    digest = hashlib.sha256("\n".join(source.classes).encode())
    for array in (source.x_train, source.y_train, source.x_test, source.y_test):
        digest.update(f"\n{array.dtype}{array.shape}\n".encode())
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()
