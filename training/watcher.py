"""The callback of every run that may be killed: it counts steps, guards the loss, and leaves the rest to the run."""

from __future__ import annotations

import dataclasses
import math
import time
from typing import Any, Protocol

from training.checkpoint import State

NONE = {"images": 0.0, "loss": 0.0, "accuracy": 0.0, "seconds": 0.0}  # the sums of an epoch not begun


class Watched(Protocol):
    """What the callback needs of a run."""

    keras: Any
    state: State
    steps: int  # of an epoch

    def diverged(self, what: str) -> Exception:
        """The error of a run whose `what` is no longer finite."""

    def show(self, logs: dict[str, float], speed: float) -> None:
        """Tells the user of the epoch's figures so far, and of images/s."""

    def settle(self) -> None:
        """Stops where the run is asked to, and saves it where that is due."""


def watcher(run: Watched, batch_size: int, images: int, begun: float) -> Any:
    """A Keras callback for the rest of the run's epoch of `images` images; it moves `run.state` with each batch.

    `begun` is when this process began with the epoch, by `time.monotonic`.

    Raises (from within `fit`):
        Exception: What `run.diverged` gives for a loss that is NaN or infinite, or what `run.settle` raises.
    """
    first, before = run.state.step, {**NONE, **run.state.sums}

    class Watcher(run.keras.callbacks.Callback):  # type: ignore[misc, name-defined]
        def on_train_batch_end(self, index: int, logs: dict[str, float] | None = None) -> None:
            logs = logs or {}
            step = min(first + index + 1, run.steps)  # several steps may have been compiled into one call
            seen = min(step * batch_size, images) - first * batch_size
            if not math.isfinite(logs["loss"]):
                raise run.diverged("the loss")
            run.state = dataclasses.replace(
                run.state,
                step=step,
                sums={
                    "images": before["images"] + seen,
                    "loss": before["loss"] + logs["loss"] * seen,
                    "accuracy": before["accuracy"] + logs["accuracy"] * seen,
                    "seconds": before["seconds"] + time.monotonic() - begun,
                },
            )
            run.show(logs, seen / max(time.monotonic() - begun, 1e-9))
            run.settle()

    return Watcher()
