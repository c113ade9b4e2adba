"""GPTQ: the weights of filters as whole steps of a scale, rounded together so that what they answer changes least.

The nearest integer is best for a weight by itself. A layer adds products up, though, and its inputs go together (two
neighbouring pixels are nearly the same), so that what one weight loses another can make up for. Weights are rounded
one after another, each after it was moved by what the inputs' covariance says that the rounded ones owe (Frantar et
al. 2022, "GPTQ", in the form that Chee et al. 2023, "QuIP", give it: a factor of the covariance does it).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

LEVELS = 127
OCTAVE = 8  # scales by channel in a factor of two
DAMP = 0.01  # of the mean variance is added to every input's

Floats = NDArray[np.float64]


def few_of(largest: Floats) -> Floats:
    """Each of the values or up to a twelfth more, so that there are few of them: `OCTAVE` in a factor of two."""
    top = max(largest.max(), np.finfo(np.float32).tiny)
    down = np.floor(OCTAVE * np.log2(top / np.where(largest > 0, largest, top)) + 1e-9)
    chosen: Floats = top * 2.0 ** (-down / OCTAVE)
    return chosen


def together(rows: Floats, largest: Floats, covariance: Floats) -> Floats:
    """Weights as whole multiples of `largest / 127` that change the products with the inputs least.

    Zeros, and weights as large as `largest`, stay what they are. No filter ends with a larger error than
    rounding each of its weights to the nearest would leave.

    Args:
        rows: Weights `[groups, filters, inputs]`.
        largest: Of what weight each filter can hold `[groups, filters]`.
        covariance: Of the inputs `[groups, inputs, inputs]`.
    """
    steps = np.where(largest > 0, largest, 1.0) / LEVELS
    nearest = np.round(rows / steps[..., None]) * steps[..., None]
    order = np.argsort(-np.diagonal(covariance, axis1=1, axis2=2), axis=1, kind="stable")
    factor = _factor(np.take_along_axis(np.take_along_axis(covariance, order[:, :, None], 1), order[:, None], 2))
    weights = np.take_along_axis(rows, order[:, None], 2)
    result, owed = np.empty_like(rows), np.zeros_like(rows.transpose(0, 2, 1))
    for place in range(rows.shape[2]):
        weight = weights[:, :, place]
        debt = (factor[:, None, :place, place] @ owed[:, :place])[:, 0]
        keep = (weight == 0) | (np.abs(weight) >= largest)
        made = np.clip(np.round(np.where(keep, weight, weight + debt) / steps), -LEVELS, LEVELS) * steps
        owed[:, place] = weight - made
        np.put_along_axis(result, np.broadcast_to(order[:, None, place, None], (*steps.shape, 1)), made[..., None], 2)
    better = _error(rows - result, covariance) < _error(rows - nearest, covariance)
    return np.where(better[..., None], result, nearest)


def _factor(covariance: Floats) -> Floats:
    """The unit upper triangular factor U of `U D U.T`, of the covariances with some noise on their inputs."""
    size = covariance.shape[1]
    noise = DAMP * np.maximum(np.einsum("gii->g", covariance) / size, 1e-12)
    noisy = covariance + noise[:, None, None] * np.eye(size)
    upper = np.linalg.cholesky(noisy[:, ::-1, ::-1])[:, ::-1, ::-1]
    factor: Floats = upper / np.diagonal(upper, axis1=1, axis2=2)[:, None]
    return factor


def _error(difference: Floats, covariance: Floats) -> Floats:
    """The mean square by which each filter's product changes `[groups, filters]`."""
    error: Floats = np.einsum("gfi,gfi->gf", difference @ covariance, difference)
    return error
