"""What each step of a fine-tuning does, in Keras 3 or `tf_keras`: optimizer, learning rates, labels of a teacher."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from catalog import Recipe
from training import distill, kernels, optimize

PREDICT_BATCH = 500
_KEPT_FROM_DECAY = ["bias", "gamma", "beta", "centroids"]


def optimizer(keras: Any, recipe: Recipe, steps_per_epoch: int) -> Any:
    """The recipe's optimizer in either Keras; biases, BatchNorm and centroids do not decay."""
    if keras.__name__ != "tf_keras":
        faster = optimize.optimizer(keras, recipe, steps_per_epoch)
        kernels.update(keras, faster)
        return faster
    common: dict[str, Any] = {
        "learning_rate": _table(keras, optimize.learning_rates(recipe, steps_per_epoch)),
        "weight_decay": recipe.weight_decay or None,
    }
    makers: dict[str, Callable[[], Any]] = {
        "sgd": lambda: keras.optimizers.SGD(momentum=recipe.momentum, nesterov=recipe.momentum > 0, **common),
        "rmsprop": lambda: keras.optimizers.RMSprop(**common),
        "adamw": lambda: keras.optimizers.AdamW(**{**common, "weight_decay": recipe.weight_decay}),
        "adam": lambda: keras.optimizers.Adam(**common),
    }
    made = makers[recipe.optimizer]()
    made.exclude_from_weight_decay(var_names=_KEPT_FROM_DECAY)
    return made


def _table(keras: Any, rates: NDArray[np.float32]) -> Any:
    """The learning rate of every step as a `tf_keras` schedule."""
    import tensorflow as tf

    class Table(keras.optimizers.schedules.LearningRateSchedule):  # type: ignore[misc]
        def __call__(self, step: Any) -> Any:
            return tf.gather(tf.constant(rates), tf.minimum(tf.cast(step, tf.int32), len(rates) - 1))

        def get_config(self) -> dict[str, Any]:
            return {}

    return Table()


def accuracy(keras: Any, classes: int) -> Any:
    """Top-1 against the true labels, also where a teacher's stand behind them; in either Keras, on TensorFlow.

    A metric and not a function, as in training, so that the step is traced once.
    """
    import tensorflow as tf

    def accuracy(y: Any, logits: Any) -> Any:
        return tf.cast(tf.equal(tf.argmax(y[:, :classes], axis=-1), tf.argmax(logits, axis=-1)), tf.float32)

    return keras.metrics.MeanMetricWrapper(accuracy, name="accuracy")


def softened(
    keras: Any, teacher: Any, x: NDArray[np.uint8], temperature: float, answered: distill.Answered
) -> NDArray[np.float32]:
    """The probabilities `[N, classes]` at a temperature of a teacher that gives logits; `answered` as for `Labels`."""
    logits = distill.predicted(keras, teacher, x, PREDICT_BATCH, answered) / temperature
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    shares: NDArray[np.float32] = powers / powers.sum(axis=1, keepdims=True)
    return shares
