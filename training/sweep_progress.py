"""The bar of a running sweep: epochs trained over all trials, and the best validation accuracy so far."""

from __future__ import annotations

from types import TracebackType
from typing import Any

import rich.progress

import console


class Bar:
    """A context manager around the bar; `callback` is what Ray Tune tells of the trials."""

    def __init__(self, epochs: int) -> None:
        self.bar = console.progress(rich.progress.TextColumn("{task.fields[figures]}"))
        self.task = self.bar.add_task("sweep", total=epochs, figures="")
        self.best, self.running, self.seen = 0.0, 0, 0

    def __getstate__(self) -> dict[str, Any]:
        """Ray saves its callbacks; the bar of this process is not worth saving."""
        return {}

    def __enter__(self) -> Bar:
        self.bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self.bar.stop()

    def callback(self) -> Any:
        """A Ray Tune callback that moves this bar."""
        from ray.tune import Callback

        bar = self

        class Moves(Callback):
            def on_trial_start(self, iteration: int, trials: Any, trial: Any, **_: Any) -> None:
                bar.running += 1
                bar.show()

            def on_trial_result(self, iteration: int, trials: Any, trial: Any, result: Any, **_: Any) -> None:
                bar.best, bar.seen = max(bar.best, result.get("val_accuracy", 0.0)), bar.seen + 1
                bar.show()

            def on_trial_complete(self, iteration: int, trials: Any, trial: Any, **_: Any) -> None:
                bar.running -= 1
                bar.show()

            on_trial_error = on_trial_complete

        return Moves()

    def show(self) -> None:
        """Writes the figures out."""
        figures = f"{self.running} running  best {100 * self.best:.2f}% of the validation split"
        self.bar.update(self.task, completed=self.seen, figures=figures)
