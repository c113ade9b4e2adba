"""One training run, from a recipe to a card, that may be killed at any step and goes on to the same weights.

An epoch's images are drawn, augmented and shuffled by NumPy as whole arrays from (seed, epoch) alone, in a thread,
while the epoch before trains; Keras' own `fit` then runs over them. So nothing but the weights, the optimizer's state
and the position needs to be in a checkpoint, `fit` runs at its own speed, and both backends see the same images.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import os
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import rich.progress

import catalog
import console
from catalog import KilnError, write_atomic
from training import batchnorm, devices, distill, epochs, kernels, network, optimize
from training.checkpoint import HISTORY, State, history_csv, same_run
from training.job import Job, start_over
from training.watcher import watcher

BACKENDS = ("tensorflow", "jax")
STEPS_A_CALL = 8  # compiled into one call on small networks; also how long an interrupt may wait
PREDICT_BATCH = 500


class Interrupted(Exception):
    """The user stopped the run; it is saved."""


class Diverged(KilnError):
    """The loss or a weight is no longer finite."""


def keras_namespace(mixed_precision: bool = False) -> Any:
    """Keras on the backend `KERAS_BACKEND` names; on a processor the same seed gives the same result.

    On a GPU TensorFlow's operations are not made deterministic, since it would have no XLA then.

    Raises:
        KilnError: No network can be trained on that backend.
    """
    backend = os.environ.get("KERAS_BACKEND", "tensorflow")
    if backend not in BACKENDS:
        raise KilnError(f"KERAS_BACKEND={backend[:40]} is none of {', '.join(BACKENDS)}")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    with console.without_banners(), console.overlooked(*({*console.LOOKED_FOR} - {backend})):
        import keras

    faster = mixed_precision and devices.gains_from_bfloat16(keras)
    keras.mixed_precision.set_global_policy("mixed_bfloat16" if faster else "float32")
    if keras.backend.backend() == "tensorflow" and not _on_gpu(keras):
        import tensorflow as tf

        tf.config.experimental.enable_op_determinism()
    return keras


def float32_again(keras: Any) -> str:
    """Ends mixed precision, of which nothing may be saved; what products were computed in until now."""
    compute_dtype = str(keras.config.dtype_policy().compute_dtype)
    keras.mixed_precision.set_global_policy("float32")
    return compute_dtype


def _on_gpu(keras: Any) -> bool:
    return bool(devices.gpus(keras))


@dataclass
class Trained:
    """What a finished run hands on: the logits model with its final weights, and how it went."""

    keras: Any
    model: Any
    history: list[dict[str, float]]
    seconds: float
    commit: str  # of the code that trained: that of a later one would not reproduce it


def train(job: Job, on_epoch: Callable[[dict[str, float]], None] | None = None) -> Trained:
    """Trains to the last epoch, going on from the newest whole checkpoint if there is one.

    `on_epoch` is given the row of `history.csv` after each epoch.

    Raises:
        Diverged: The loss became NaN or infinite; the last good checkpoint stays.
        Interrupted: SIGINT or SIGTERM came; the run stopped at a step boundary and is saved.
        KilnError: There is an unfinished run with another recipe.
        OSError: The job's folder cannot be written.
    """
    commit = catalog.commit()
    job.folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=job.folder):
        pass  # it can be written: better asked now than at the first checkpoint
    keras = keras_namespace()
    with devices.spread(keras, job.devices) as count:
        run = prepare(job, count)
        with _stopping(run), run.bar:
            run.epochs(on_epoch)
        run.finish()
    return Trained(run.keras, run.model, run.state.history, run.state.seconds, commit)


def prepare(job: Job, count: int = 1) -> _Run:
    """The run at its first step, or where its newest whole checkpoint left it, on `count` devices."""
    if job.recipe.batch_size % count:
        raise KilnError(
            f"a batch of {job.recipe.batch_size} cannot be shared by {count} devices; give --batch-size or --devices"
        )
    keras = keras_namespace(job.recipe.mixed_precision)
    found = None if job.over else job.checkpoints.newest(functools.partial(_warn, job.model))
    if found:
        same_run(found[0], _identity(job, keras), job.model)
    keras.utils.set_random_seed(job.seed)
    shape = (None, None, 3) if job.recipe.sizes else job.dataset.x_train.shape[1:]
    if job.start:
        model = network.in_precision(keras, keras.saving.load_model(job.start, compile=False))
    else:
        model = network.build(keras, job.architecture, shape, len(job.dataset.classes), job.recipe)
    run = _Run(job, keras, model, count)
    if keras.backend.backend() == "tensorflow" and not _on_gpu(keras):
        kernels.use(keras, model)
        if count == 1:
            kernels.update(keras, run.optimizer)
    if job.over:
        start_over(job)
    if found:
        run.restore(*found)
        console.err.print(f"{job.model}: going on from epoch {run.state.epoch + 1}, step {run.state.step}")
    return run


def _identity(job: Job, keras: Any) -> dict[str, Any]:
    """What must be the same for a run to go on: the job, and how its steps are computed."""
    return {
        **job.identity,
        "backend": keras.backend.backend(),
        "compute_dtype": keras.config.dtype_policy().compute_dtype,
    }


def _warn(model: str, message: str) -> None:
    console.err.print(f"{model}: {message}", style="yellow")


def _top1(keras: Any, classes: int) -> Any:
    """Accuracy against the true labels, also where the teacher's stand behind them or labels are mixed.

    It is a metric, not a function: of a function Keras makes a metric within the first step, and TensorFlow, which
    finds new variables there, traces the step a second time.
    """

    def accuracy(y: Any, logits: Any) -> Any:
        return keras.ops.equal(keras.ops.argmax(y[:, :classes], axis=-1), keras.ops.argmax(logits, axis=-1))

    return keras.metrics.MeanMetricWrapper(accuracy, name="accuracy")


@contextmanager
def _stopping(run: _Run) -> Iterator[None]:
    """Turns SIGINT and SIGTERM into a stop at the next step boundary; a second one is not caught."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def handler(number: int, _: Any) -> None:
        run.stop_asked = True
        signal.signal(number, before[signal.Signals(number)])

    before = {number: signal.signal(number, handler) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)


class _Run:
    """The loop's moving parts: position, sums of the running epoch, the clock."""

    def __init__(self, job: Job, keras: Any, model: Any, count: int = 1) -> None:
        self.job, self.keras, self.model, self.devices = job, keras, model, count
        classes = len(job.dataset.classes)
        self.steps = math.ceil(len(job.dataset.x_train) / job.recipe.batch_size)
        self.optimizer = optimize.optimizer(keras, job.recipe, self.steps)
        model.compile(
            optimizer=self.optimizer,
            loss=optimize.loss(keras, job.recipe, classes),
            metrics=[_top1(keras, classes)],
            jit_compile=devices.compiles(keras, count),
            steps_per_execution=STEPS_A_CALL if model.count_params() < 1_000_000 and count == 1 else 1,
        )
        self.optimizer.build(model.trainable_variables)
        self.taught = None
        if job.recipe.teacher:
            assert job.teacher is not None, f"who is {job.recipe.teacher}?"
            labels = distill.labeller(keras, job.teacher.path, job.recipe.temperature, PREDICT_BATCH * count)
            self.taught = distill.Taught(job.recipe, job.dataset, job.seed, labels, count)
        self.state = State(_identity(job, keras), epoch=0, step=0)
        self.size: tuple[int, int] | None = None  # of the images that the network is compiled for
        self.stop_asked = False
        self.saved_at = self.begun = time.monotonic()
        self.bar = console.progress(rich.progress.TextColumn("{task.fields[figures]}"))
        self.task = self.bar.add_task(job.model, total=job.recipe.epochs * self.steps, figures="")

    # -- state

    def variables(self) -> list[Any]:
        return [*self.model.variables, *self.optimizer.variables]

    def array(self, variable: Any) -> np.ndarray[Any, Any]:
        """A variable's value, which every device has."""
        return np.array(self.keras.ops.convert_to_tensor(variable))

    def restore(self, state: State, arrays: list[np.ndarray[Any, Any]]) -> None:
        variables = [v for v in self.variables() if _numeric(v)]
        if [tuple(v.shape) for v in variables] != [array.shape for array in arrays]:
            raise KilnError(f"{self.job.model}: its checkpoint is of another network; start over with --force")
        _assign(variables, arrays)
        self.state = state
        self.begun = time.monotonic() - state.seconds

    def save(self) -> None:
        if hasattr(self.model, "jax_state_sync"):
            self.model.jax_state_sync()  # on JAX the weights live inside fit() until they are asked for
        self.state = dataclasses.replace(self.state, seconds=time.monotonic() - self.begun)
        try:
            self.job.checkpoints.save(self.state, [self.array(v) for v in self.variables() if _numeric(v)])
        except FloatingPointError as error:
            raise self.diverged("a weight") from error
        self.saved_at = time.monotonic()

    def diverged(self, what: str) -> Diverged:
        kept = "the last good checkpoint is kept" if self.job.checkpoints.any() else "no checkpoint was saved yet"
        return Diverged(f"{self.job.model}: {what} is NaN or infinite in epoch {self.state.epoch + 1}; {kept}")

    # -- epochs

    def epochs(self, on_epoch: Callable[[dict[str, float]], None] | None = None) -> None:
        """All epochs that are left, each drawn while the one before trains."""
        first, last = self.state.epoch, self.job.recipe.epochs
        with ThreadPoolExecutor(1, thread_name_prefix="augment") as pool:
            upcoming = _next(pool, self.draw, first, last)
            for epoch in range(first, last):
                arrays, upcoming = upcoming.result(), _next(pool, self.draw, epoch + 1, last)
                self.epoch(*arrays)
                if on_epoch:
                    on_epoch(self.state.history[-1])

    def draw(self, epoch: int) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any], np.ndarray[Any, Any] | None]:
        """One epoch's images, targets and sample weights: a function of (seed, epoch)."""
        return epochs.draw(self.job.recipe, self.job.dataset, self.job.seed, epoch, self.devices)

    def epoch(self, x: Any, y: Any, weight: Any) -> None:
        """Trains what is left of the current epoch, measures it and opens the next."""
        begun, done = time.monotonic(), self.state.step * self.job.recipe.batch_size
        if self.taught is not None:
            answers = self.taught.about(x, self.state.epoch, self.asked)
            y = np.concatenate([y, answers], axis=1)  # [N, 2 * classes]
        self.compiled_for(x.shape[1:3])
        if done < len(x):
            self.model.fit(
                x[done:],
                y[done:],
                sample_weight=None if weight is None else weight[done:],
                batch_size=self.job.recipe.batch_size,
                epochs=1,
                shuffle=False,
                verbose=0,
                callbacks=[watcher(self, self.job.recipe.batch_size, len(x), begun)],
            )
        sums, seconds = self.state.sums, self.state.sums.get("seconds", 0.0)
        row = {
            "epoch": self.state.epoch + 1,
            "loss": sums["loss"] / sums["images"],
            "accuracy": sums["accuracy"] / sums["images"],
            **self.validate(),
            "learning_rate": float(np.asarray(self.optimizer.learning_rate)),
            "images_per_s": sums["images"] / max(seconds, 1e-9),
            "seconds": seconds,
        }
        history = [*self.state.history, {key: round(value, 6) for key, value in row.items()}]
        self.state = State(self.state.run, self.state.epoch + 1, 0, {}, history, self.state.seconds)
        write_atomic(self.job.folder / HISTORY, history_csv(history))
        if (
            self.state.epoch == self.job.recipe.epochs
            or time.monotonic() - self.saved_at >= self.job.checkpoint_seconds
        ):
            self.save()

    def compiled_for(self, size: tuple[int, int]) -> None:
        """Has Keras compile anew where the images' size changes, as a run that goes on from there does.

        TensorFlow would make what it has more general instead, whose sums are rounded otherwise.
        """
        if size != self.size:
            self.model.train_function = self.model.predict_function = None
        self.size = size

    def settle(self) -> None:
        """Saves a run that is to stop, or that was not saved for long."""
        if self.stop_asked:
            self.save()
            raise Interrupted
        if time.monotonic() - self.saved_at >= self.job.checkpoint_seconds:
            self.save()

    def show(self, logs: dict[str, float], speed: float) -> None:
        """Moves the progress bar, and tells whoever watches."""
        self.tell(f"loss {logs['loss']:.3f}  acc {100 * logs['accuracy']:.1f}%  {speed:,.0f} images/s")

    def asked(self, answered: int, images: int) -> None:
        """Tells how far the teacher is with the epoch's images, and stops or saves as between two steps."""
        self.tell(f"the teacher answered {answered:,} of {images:,} images")
        self.settle()

    def tell(self, figures: str) -> None:
        epoch, total = self.state.epoch, self.job.recipe.epochs
        done = epoch * self.steps + self.state.step
        self.bar.update(
            self.task, description=f"{self.job.model} epoch {epoch + 1}/{total}", completed=done, figures=figures
        )
        if self.job.watch and self.job.watch(done, total * self.steps, figures):
            self.stop_asked = True

    def validate(self) -> dict[str, float]:
        """Loss and accuracy on the validation split, at the epoch's size, by the averaged weights if there are any."""
        data = self.job.dataset
        if not len(data.x_val):
            return {}
        size = epochs.size_at(self.job.recipe, self.state.epoch, *data.x_val.shape[1:3])
        with self.averaged(size):
            images = devices.padded(epochs.sized(data.x_val, *size), self.devices)
            logits = np.asarray(self.model.predict(images, PREDICT_BATCH * self.devices, verbose=0), np.float64)
        logits = logits[: len(data.y_val)]
        if not np.isfinite(logits).all():
            raise self.diverged("an output")
        top = logits.max(axis=1)
        log_sum = top + np.log(np.exp(logits - top[:, None]).sum(axis=1))
        loss = float(np.mean(log_sum - logits[np.arange(len(logits)), data.y_val]))
        return {"val_loss": loss, "val_accuracy": float(np.mean(logits.argmax(axis=1) == data.y_val))}

    @contextmanager
    def averaged(self, size: tuple[int, int]) -> Iterator[None]:
        """The averaged weights in place of the trained ones, for as long as the block lasts."""
        if not self.job.recipe.average:
            yield
            return
        kept = [self.array(v) for v in self.model.variables]
        self.average(size)
        try:
            yield
        finally:
            _assign(self.model.variables, kept)

    def average(self, size: tuple[int, int]) -> None:
        """Puts the averaged weights into the model, and BatchNorm's statistics of those for images of this size."""
        _assign(self.model.trainable_variables, optimize.averages(self.optimizer))
        images = epochs.sized(batchnorm.sample(self.job.dataset, self.job.seed), *size)
        batchnorm.measure(self.keras, self.model, images, self.job.recipe.batch_size)

    def finish(self) -> None:
        """Leaves the averaged weights in the model, where the recipe averages."""
        if self.job.recipe.average:
            self.average(self.job.dataset.x_train.shape[1:3])


def _assign(variables: list[Any], values: list[np.ndarray[Any, Any]]) -> None:
    for variable, value in zip(variables, values, strict=True):
        variable.assign(value)


def _numeric(variable: Any) -> bool:
    return str(variable.dtype) != "string"


def _next(pool: ThreadPoolExecutor, draw: Callable[[int], Any], epoch: int, last: int) -> Future[Any]:
    """The next epoch on its way; after the last one, nothing."""
    if epoch < last:
        return pool.submit(draw, epoch)
    return Future()
