"""The arrays of one epoch: a function of the job and the epoch alone, so that a resumed run repeats them."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from catalog import Recipe
from training.augment import Images, Targets, augment, resize
from training.data import Dataset

SIDE = 32  # the pictures that a recipe's `sizes` speak of


def draw(
    recipe: Recipe, data: Dataset, seed: int, epoch: int, devices: int = 1
) -> tuple[Images, Targets, NDArray[np.float32] | None]:
    """One epoch's images, targets and, where classes are weighted, sample weights: shuffled, augmented and sized.

    Every device gets the same number of images; what is left over sits this epoch out. Where the recipe's `views` are
    limited, those of another epoch come in another order.
    """
    rng, labels = np.random.default_rng([seed, epoch]), np.eye(len(data.classes), dtype=np.float32)
    shuffled = rng.permutation(len(data.x_train))
    if recipe.views:
        again = np.random.default_rng([seed, view(recipe, epoch), recipe.views])
        x, targets = augment(recipe, data.x_train, labels[data.y_train], again)
        x, targets = x[shuffled], targets[shuffled]
    else:
        x, targets = augment(recipe, data.x_train[shuffled], labels[data.y_train[shuffled]], rng)
    weight = class_weights(data)[data.y_train[shuffled]] if recipe.class_weights else None
    x = sized(x, *size_at(recipe, epoch, *x.shape[1:3]))
    whole = len(x) - len(x) % devices
    return x[:whole], targets[:whole], weight if weight is None else weight[:whole]


def order(data: Dataset, seed: int, epoch: int) -> NDArray[np.int64]:
    """Which training image is the first, the second, … of an epoch that `draw` draws."""
    return np.random.default_rng([seed, epoch]).permutation(len(data.x_train))


def view(recipe: Recipe, epoch: int) -> int:
    """Which of the augmentations an epoch has; of two epochs with the same one, each image looks the same."""
    return epoch % recipe.views if recipe.views else epoch


def class_weights(data: Dataset) -> NDArray[np.float32]:
    """`[classes]`, inverse to how often each class is among the training images; their mean over those is 1."""
    frequency = np.bincount(data.y_train, minlength=len(data.classes))
    weight: NDArray[Any] = len(data.y_train) / (len(frequency) * np.maximum(frequency, 1))
    return weight.astype(np.float32)


def size_at(recipe: Recipe, epoch: int, height: int, width: int) -> tuple[int, int]:
    """Height and width that pictures of `height` x `width` are trained at in an epoch.

    The recipe's `sizes` are for pictures of 32x32: 24 is three quarters of either side of any picture.
    """
    reached = [side for share, side in recipe.sizes if epoch >= share * recipe.epochs]
    side = reached[-1] if reached else SIDE
    return max(1, round(height * side / SIDE)), max(1, round(width * side / SIDE))


def sized(x: Images, height: int, width: int) -> Images:
    """`x` itself if it has this size, else scaled to it."""
    return x if x.shape[1:3] == (height, width) else resize(x, height, width)
