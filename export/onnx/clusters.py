"""Convolutions that were clustered, and the scales that keep their few values few.

A scale for each output channel, the largest magnitude in it over 127, rounds a centroid to another byte in every
channel: 16 values become 50. And BatchNorm, once it is folded, has multiplied each channel by a number of its own. So
the values are looked for in the Keras kernel, and a channel's scale is one for the whole kernel times that number: then
equal weights are equal bytes again. Where that number is negative, a value and its opposite are two bytes.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from export import compression

NEAR = 1e-4  # share of a kernel's largest weight by which folding may have rounded it


def scales(folded: NDArray[Any], trained: Iterable[NDArray[Any]]) -> NDArray[np.float32] | None:
    """Float32 `[out]` for an ONNX kernel `[out, in, tall, wide]`; None where it comes from no clustered one.

    `trained` are kernels as Keras has them, `[tall, wide, in, out]`; others among them do no harm.
    """
    shape = tuple(folded.shape[axis] for axis in (2, 3, 1, 0))
    for kernel in (folded.transpose(2, 3, 1, 0), *(found for found in trained if found.shape == shape)):
        if compression.clustered(kernel) and (factors := _factors(folded, kernel)) is not None:
            step = np.abs(kernel).max() / 127
            return np.asarray(np.where(factors == 0, 1, np.abs(factors)) * step, np.float32)
    return None


def _factors(folded: NDArray[Any], kernel: NDArray[Any]) -> NDArray[np.float64] | None:
    """By what each output channel was multiplied, if nothing else was done to the kernel."""
    before = kernel.transpose(3, 2, 0, 1).reshape(len(folded), -1).astype(np.float64)
    after = folded.reshape(len(folded), -1).astype(np.float64)
    rows, largest = np.arange(len(before)), np.abs(before).argmax(axis=1)
    whole = before[rows, largest]
    factors: NDArray[np.float64] = after[rows, largest] / np.where(whole == 0, 1, whole)
    near = np.abs(after - before * factors[:, None]).max(axis=1) <= NEAR * np.abs(after).max(axis=1)
    return factors if near.all() else None
