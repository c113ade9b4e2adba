"""From a recipe's words to Keras' optimizer, learning rates and loss, the same on every backend."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from catalog import Recipe

_KEPT_FROM_DECAY = ["bias", "gamma", "beta"]


def learning_rates(recipe: Recipe, steps_per_epoch: int) -> NDArray[np.float32]:
    """The learning rate of every step, float32 `[epochs * steps_per_epoch]`.

    `cosine` warms up linearly, then falls to zero; `onecycle` climbs for a quarter of the run and falls linearly
    (Smith, 2017); `step` divides by ten at each share in `step_at` (half and three quarters in He et al., 2015).
    """
    total = recipe.epochs * steps_per_epoch
    step = np.arange(total, dtype=np.float64)
    warmup = max(round(recipe.warmup_epochs * steps_per_epoch), 0)
    if recipe.schedule == "onecycle":
        warmup = warmup or total // 4
        shape = 1 - (step - warmup) / max(total - warmup, 1)
    elif recipe.schedule == "cosine":
        shape = 0.5 * (1 + np.cos(np.pi * (step - warmup) / max(total - warmup, 1)))
    elif recipe.schedule == "step":
        shape = np.prod([np.where(step >= share * total, 0.1, 1.0) for share in recipe.step_at], axis=0)
    else:
        shape = np.ones(total)
    if warmup:
        shape = np.where(step < warmup, (step + 1) / warmup, shape)
    return (recipe.learning_rate * shape).astype(np.float32)


def average_momentum(recipe: Recipe, steps: int) -> float:
    """The momentum of the weights' average in a run of `steps`: it looks back over an eighth of the run at most.

    The first step's weights then keep a share of e^-8, or 0.03%. With a recipe's own momentum a run over few images
    would be saved with much of its beginning in it.
    """
    return min(recipe.average, max(1 - 8 / steps, 0.0))


def optimizer(keras: Any, recipe: Recipe, steps_per_epoch: int) -> Any:
    """A Keras optimizer whose weight decay spares biases and BatchNorm, and which leaves its average to the caller.

    The decay is decoupled (Loshchilov and Hutter, 2017) in all of them, so that Adam with one is AdamW.
    """
    table = learning_rates(recipe, steps_per_epoch)

    class Table(keras.optimizers.schedules.LearningRateSchedule):  # type: ignore[misc]
        def __call__(self, step: Any) -> Any:
            last = keras.ops.cast(len(table) - 1, "int32")
            return keras.ops.take(
                keras.ops.convert_to_tensor(table), keras.ops.minimum(keras.ops.cast(step, "int32"), last)
            )

        def get_config(self) -> dict[str, Any]:
            return {}

    rate = recipe.learning_rate if recipe.schedule == "constant" and not recipe.warmup_epochs else Table()
    common: dict[str, Any] = {
        "learning_rate": rate,
        "weight_decay": recipe.weight_decay or None,
        "use_ema": recipe.average > 0,
        "ema_momentum": average_momentum(recipe, len(table)),
    }
    if recipe.optimizer == "sgd":
        made = keras.optimizers.SGD(momentum=recipe.momentum, nesterov=True, **common)
    elif recipe.optimizer == "rmsprop":
        made = keras.optimizers.RMSprop(**common)
    elif recipe.optimizer == "adamw":
        made = keras.optimizers.AdamW(**{**common, "weight_decay": recipe.weight_decay})
    else:
        made = keras.optimizers.Adam(**common)
    made.exclude_from_weight_decay(var_names=_KEPT_FROM_DECAY)
    # Keras copies the average over the weights at the end of every fit(); a run is many of them.
    made.finalize_variable_values = lambda _: None
    return made


def averages(optimizer: Any) -> list[NDArray[np.float32]]:
    """The moving averages of the trainable weights, in their order, of an optimizer whose recipe asks for them."""
    return [np.asarray(value) for value in optimizer._model_variables_moving_average]


def loss(keras: Any, recipe: Recipe, classes: int) -> Any:
    """Cross-entropy on logits, for the labels that `targets` makes.

    With a teacher the labels are `[N, 2 * classes]`, the true ones and the teacher's softened ones, and the loss is
    Hinton et al.'s (2015): both cross-entropies weighted, the second by the squared temperature as well. It
    is `[N]` then, so that Keras weights each example by its class.
    """
    smoothing = recipe.label_smoothing
    if not recipe.teacher:
        return keras.losses.CategoricalCrossentropy(
            from_logits=True, label_smoothing=smoothing, reduction="sum_over_batch_size"
        )
    hard = keras.losses.CategoricalCrossentropy(from_logits=True, label_smoothing=smoothing, reduction="none")
    soft = keras.losses.CategoricalCrossentropy(from_logits=True, reduction="none")
    share, temperature = recipe.distill_weight, recipe.temperature

    def distillation(y: Any, logits: Any) -> Any:
        from_labels = hard(y[:, :classes], logits)
        from_teacher = soft(y[:, classes:], logits / temperature)
        return (1 - share) * from_labels + share * temperature**2 * from_teacher

    return distillation
