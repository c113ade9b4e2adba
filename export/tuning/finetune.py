"""Fine-tuning inside a transform: a few epochs on a network that is being made smaller, that may be killed at any step.

As in training, an epoch's images are a function of (seed, epoch) alone, so the weights, the optimizer's state and the
position are all a checkpoint needs, and a run that goes on ends in the same weights as one that was never stopped. It
works on Keras 3 networks and on `tf_keras` ones with the wrappers of the compression tools around their layers.
"""

from __future__ import annotations

import dataclasses
import gc
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from catalog import KilnError, Recipe
from export.transforms import Progress, Stopped, Work
from export.tuning import steps as steps
from training import distill, epochs, optimize
from training.checkpoint import Checkpoints, State
from training.watcher import watcher

STEPS_A_CALL = 8  # compiled into one call on small networks; also how long a stop may wait
PREDICT_BATCH = 500


@dataclass(frozen=True)
class Tuned:
    """How it went: one row an epoch (loss, accuracy and val_accuracy in 0..1), and seconds over all its processes.

    Where the best is kept, the first row is of epoch 0, before any step; `kept` is the row of the weights it ends with.
    """

    history: list[dict[str, float]]
    seconds: float
    kept: dict[str, float]


def tune(
    keras: Any,
    model: Any,
    work: Work,
    *,
    callbacks: Sequence[Any] = (),
    phase: str = "",
    recipe: Recipe | None = None,
    teacher: distill.Labels | None = None,
    keep_best: bool = False,
    checkpoint_seconds: float = 60.0,
) -> Tuned:
    """Trains `model` (uint8 images to logits) in place, from the newest whole checkpoint of this work if there is one.

    Args:
        keras: Keras 3 or `tf_keras`, whichever the model is of.
        model: Built; the same code must have built it when a run is resumed.
        work: Whose data set, seed, checkpoints, progress and stop are used.
        callbacks: Keras callbacks a compression tool needs.
        phase: Tells the fine-tunings of one transform apart, where it has several.
        recipe: Instead of `work.recipe`.
        teacher: Whose answers are asked for too, where the recipe has a `teacher`.
        keep_best: End with the weights of the epoch that was best on the validation split, those it began with among
            them, not with the last; without such a split with the last.
        checkpoint_seconds: How often it is saved.

    Raises:
        Stopped: `work.stop()` came true; the run is saved.
        KilnError: The loss or a weight is no longer finite; the last good checkpoint stays.
    """
    run = _Run(keras, model, work, recipe or work.recipe, phase, teacher, keep_best, checkpoint_seconds)
    run.resume()
    run.begin()
    for epoch in range(run.state.epoch, run.recipe.epochs):
        run.epoch(*run.draw(epoch), list(callbacks))
    return Tuned(run.state.history, run.state.seconds, run.end())


class _Run:
    def __init__(
        self,
        keras: Any,
        model: Any,
        work: Work,
        recipe: Recipe,
        phase: str,
        teacher: distill.Labels | None,
        keep_best: bool,
        checkpoint_seconds: float,
    ) -> None:
        self.keras, self.model, self.work, self.recipe = keras, model, work, recipe
        self.taught = None
        if teacher is not None and recipe.teacher:
            self.taught = distill.Taught(recipe, work.dataset, work.seed, teacher)
        self.checkpoints = Checkpoints(work.checkpoints / phase if phase else work.checkpoints)
        self.keep_best = keep_best and len(work.dataset.x_val) > 0
        self.best: list[NDArray[Any]] = []  # weights of the best epoch so far
        self.identity = {**work.identity, **recipe.decisive(), "phase": phase, "keep_best": self.keep_best}
        self.checkpoint_seconds = checkpoint_seconds
        self.steps = math.ceil(len(work.dataset.x_train) / recipe.batch_size)
        self.optimizer = steps.optimizer(keras, recipe, self.steps)
        classes = len(work.dataset.classes)
        told = recipe if self.taught else dataclasses.replace(recipe, teacher="")
        model.compile(
            optimizer=self.optimizer,
            loss=optimize.loss(keras, told, classes),
            metrics=[steps.accuracy(keras, classes)],
            jit_compile=False,
            steps_per_execution=STEPS_A_CALL if model.count_params() < 1_000_000 else 1,
        )
        self.optimizer.build(model.trainable_variables)
        self.state = State(self.identity, epoch=0, step=0)
        self.saved_at = self.begun = time.monotonic()

    # -- state

    def weights(self) -> list[Any]:
        return [v for v in self.model.weights if _numeric(v)]

    def variables(self) -> list[Any]:
        return [*self.weights(), *(v for v in _listed(self.optimizer.variables) if _numeric(v))]

    def resume(self) -> None:
        """Goes back to the newest whole checkpoint of the same work; those of other work are dropped."""
        found = self.checkpoints.newest(lambda message: print(f"{self.work.level}: {message}", flush=True))
        if found is None:
            return
        state, arrays = found
        variables = self.variables()
        kept = [*variables, *(self.weights() if self.keep_best else [])]
        same_network = [tuple(v.shape) for v in kept] == [array.shape for array in arrays]
        if state.run != self.identity or not same_network:  # what was begun for another parent or recipe is worthless
            self.checkpoints.clear()
            return
        for variable, array in zip(variables, arrays, strict=False):
            variable.assign(array)
        self.best = arrays[len(variables) :]
        self.state, self.begun = state, time.monotonic() - state.seconds

    def save(self) -> None:
        self.state = dataclasses.replace(self.state, seconds=time.monotonic() - self.begun)
        try:
            self.checkpoints.save(self.state, [*_arrays(self.variables()), *self.best])
        except FloatingPointError as error:
            raise self.diverged("a weight") from error
        self.saved_at = time.monotonic()

    def diverged(self, what: str) -> KilnError:
        return KilnError(f"{self.work.level}: {what} is NaN or infinite in epoch {self.state.epoch + 1} of fine-tuning")

    # -- epochs

    def begin(self) -> None:
        """Where the best is kept, measures the weights it begins with."""
        if self.keep_best and not self.state.history:
            self.state = dataclasses.replace(self.state, history=[{"epoch": 0, **self.validate()}])
            self.remember()

    def end(self) -> dict[str, float]:
        """Goes back to the best weights, where they are kept; the row of the history that tells of them."""
        if not self.keep_best:
            return self.state.history[-1]
        for variable, array in zip(self.weights(), self.best, strict=True):
            variable.assign(array)
        return max(self.state.history, key=lambda row: row["val_accuracy"])

    def remember(self) -> None:
        """Sets the weights aside, if they do better than all before."""
        *before, now = [row["val_accuracy"] for row in self.state.history]
        if now > max(before, default=-1.0):
            self.best = _arrays(self.weights())

    def draw(self, epoch: int) -> tuple[NDArray[np.uint8], NDArray[np.float32], NDArray[np.float32] | None]:
        """One epoch's images, labels, a teacher's behind them, and weights where classes weigh, by (seed, epoch)."""
        x, y, weight = epochs.draw(self.recipe, self.work.dataset, self.work.seed, epoch)
        if self.taught:
            y = np.concatenate([y, self.taught.about(x, epoch, self.asked)], axis=1)  # [N, 2 * classes]
        return x, y, weight

    def epoch(
        self,
        x: NDArray[np.uint8],
        y: NDArray[np.float32],
        weight: NDArray[np.float32] | None,
        callbacks: list[Any],
    ) -> None:
        """Trains what is left of the current epoch, measures it and opens the next."""
        done = self.state.step * self.recipe.batch_size
        if done < len(x):
            self.model.fit(
                x[done:],
                y[done:],
                sample_weight=None if weight is None else weight[done:],
                batch_size=self.recipe.batch_size,
                epochs=1,
                shuffle=False,
                verbose=0,
                callbacks=[*callbacks, watcher(self, self.recipe.batch_size, len(x), time.monotonic())],
            )
            gc.collect()  # `tf_keras` leaves the images of every fit in a cycle
        row = {
            "epoch": self.state.epoch + 1,
            "loss": self.state.sums["loss"] / self.state.sums["images"],
            "accuracy": self.state.sums["accuracy"] / self.state.sums["images"],
            **self.validate(),
        }
        history = [*self.state.history, {key: round(value, 6) for key, value in row.items()}]
        self.state = State(self.identity, self.state.epoch + 1, 0, {}, history, time.monotonic() - self.begun)
        if self.keep_best:
            self.remember()
        if self.state.epoch == self.recipe.epochs or time.monotonic() - self.saved_at >= self.checkpoint_seconds:
            self.save()

    def settle(self) -> None:
        """Saves a run that is to stop, or that was not saved for long."""
        if self.work.stop():
            self.save()
            raise Stopped(f"{self.work.level} was stopped and is saved; the same command goes on")
        if time.monotonic() - self.saved_at >= self.checkpoint_seconds:
            self.save()

    def show(self, logs: dict[str, float], speed: float) -> None:
        self.tell(f"loss {logs['loss']:.3f}  acc {100 * logs['accuracy']:.1f}%  {speed:,.0f} images/s")

    def asked(self, answered: int, images: int) -> None:
        """Tells how far the teacher is with the epoch's images, and stops or saves as between two steps."""
        self.tell(f"the teacher answered {answered:,} of {images:,} images")
        self.settle()

    def tell(self, figures: str) -> None:
        epoch, total = self.state.epoch, self.recipe.epochs
        done = epoch * self.steps + self.state.step
        self.work.progress(Progress(done, total * self.steps, f"epoch {epoch + 1}/{total}  {figures}"))

    def validate(self) -> dict[str, float]:
        top1 = validation_top1(self.model, self.work.dataset)
        return {} if top1 is None else {"val_accuracy": top1 / 100}


def validation_top1(model: Any, data: Any) -> float | None:
    """Top-1 in percent on the validation split of a model of logits or probabilities; None where there is no split.

    Raises:
        KilnError: An output is not finite.
    """
    if not len(data.x_val):
        return None
    answers = np.asarray(model.predict(data.x_val, batch_size=PREDICT_BATCH, verbose=0))
    if not np.isfinite(answers).all():
        raise KilnError("an output of the fine-tuned network is NaN or infinite")
    return round(100 * float(np.mean(answers.argmax(axis=1) == data.y_val)), 4)


def _arrays(variables: list[Any]) -> list[NDArray[Any]]:
    return [np.array(variable.numpy()) for variable in variables]


def _listed(variables: Any) -> list[Any]:
    return list(variables() if callable(variables) else variables)


def _numeric(variable: Any) -> bool:
    return "string" not in str(variable.dtype)
