"""Whether a kernel was clustered or pruned, by its values: what comes later has to keep that."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

FEW = 64  # distinct values of a kernel that counts as clustered
SPARSE = 0.1  # share of zeros in a kernel that counts as pruned


def clustered(kernel: NDArray[Any]) -> bool:
    """Whether it holds a few distinct values only."""
    return len(np.unique(kernel)) <= FEW < kernel.size


def pruned(kernel: NDArray[Any]) -> bool:
    """Whether it holds many zeros."""
    return bool(np.mean(kernel == 0) > SPARSE)
