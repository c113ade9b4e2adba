"""Handwritten digits, 1,797 of them, embedded in scikit-learn (UCI's Optical Recognition of Handwritten Digits).

8x8 grey images become 32x32x3; 1,438 train and 359 test by a fixed stratified split. Nothing is fetched.
"""

from __future__ import annotations

from importlib import metadata
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from training.data import Source

SIDE = 32
_SEED, _TEST_SHARE = 1998, 0.2


def read(root: Path | None = None) -> Source:
    """The two splits; `root` is not used."""
    # The file of `sklearn.datasets.load_digits`, whose import would take longer than all the rest.
    file = str(metadata.distribution("scikit-learn").locate_file("sklearn/datasets/data/digits.csv.gz"))
    table = np.loadtxt(file, delimiter=",")  # [N, 65]: grey values of 0..16, and the digit
    x = enlarge(table[:, :-1].reshape(-1, 8, 8) * (255 / 16))
    y = table[:, -1].astype(np.int64)
    rng, test = np.random.default_rng(_SEED), np.zeros(len(y), bool)
    for digit in range(10):
        members = rng.permutation(np.flatnonzero(y == digit))
        test[members[: round(_TEST_SHARE * len(members))]] = True
    return Source(x[~test], y[~test], x[test], y[test], [str(digit) for digit in range(10)])


def enlarge(grey: NDArray[np.float64]) -> NDArray[np.uint8]:
    """Grey images `[N, 8, 8]` of 0..255 to uint8 `[N, 32, 32, 3]`, bilinear between pixel centres."""
    old = grey.shape[1]
    at = np.clip((np.arange(SIDE) + 0.5) * old / SIDE - 0.5, 0, old - 1)
    weights = np.clip(1 - np.abs(at[:, None] - np.arange(old)), 0, None)  # [32, 8]
    large = np.rint(weights @ grey @ weights.T).astype(np.uint8)
    return np.repeat(large[..., None], 3, axis=3)
