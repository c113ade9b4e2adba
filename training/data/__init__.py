"""Data sets: one a file, each a function `read`; here is what is the same for all of them.

Arrays are uint8 `[N, H, W, 3]` RGB and int64 `[N]` labels. The validation split comes out of the training split, by a
seed that no recipe changes, so that every run on a data set holds out the same images. No framework is imported.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from catalog import DatasetInfo

Images = NDArray[np.uint8]
Labels = NDArray[np.int64]


class Source(NamedTuple):
    """What a plug-in's `read(root)` returns: the two splits as they are published, and the class names."""

    x_train: Images
    y_train: Labels
    x_test: Images
    y_test: Labels
    classes: list[str]


@dataclass(frozen=True)
class Dataset:
    """A data set in three splits, with the hash of its content."""

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
        raise NotImplementedError


def load(name: str, *, root: Path | str | None = None, validation: float = 0.1) -> Dataset:
    """A data set by name, split and hashed.

    Args:
        name: A file of `training/data/`.
        root: Where its files lie; only `folder` needs it, others have a place of their own.
        validation: Share of the training split to hold out, 0 for none (`x_val` is then empty).

    Raises:
        KilnError: Unknown name, or what `read` found wrong.
    """
    raise NotImplementedError
