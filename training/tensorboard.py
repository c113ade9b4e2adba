"""The figures of each epoch as TensorBoard shows them, written by tensorboardX: no TensorFlow, so on JAX as well."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from catalog import KilnError

_GROUPS = {"val_loss": "loss/validation", "loss": "loss/training"}
_GROUPS |= {"val_accuracy": "accuracy/validation", "accuracy": "accuracy/training"}


@contextmanager
def logs(folder: Path) -> Iterator[Callable[[dict[str, float]], None]]:
    """A function that logs one row of the history; a run that goes on adds to what is there.

    Raises:
        KilnError: tensorboardX is not installed.
    """
    try:
        from tensorboardX import SummaryWriter
    except ModuleNotFoundError as error:
        raise KilnError("--tensorboard needs tensorboardX; run: pip install -r requirements/train.txt") from error
    with SummaryWriter(str(folder)) as writer:

        def on_epoch(row: dict[str, float]) -> None:
            for name, value in row.items():
                if name != "epoch":
                    writer.add_scalar(_GROUPS.get(name, f"run/{name}"), value, int(row["epoch"]))
            writer.flush()

        yield on_epoch
