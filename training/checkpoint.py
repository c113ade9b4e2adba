"""Checkpoints: the whole state of a run in one folder, written atomically, hashed, the last two kept."""

from __future__ import annotations

import csv
import fcntl
import io
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from catalog import KilnError, Recipe, from_json, sha256_of, sha256_of_json, staged_folder, write_atomic

KEEP = 2
HISTORY = "history.csv"


@dataclass(frozen=True)
class State:
    """Where a run stands: `step` steps of epoch `epoch` (counted from 0) are done. `run` identifies what is trained."""

    run: dict[str, Any]
    epoch: int
    step: int
    sums: dict[str, float] = field(default_factory=dict)  # of the epoch so far: images, loss, accuracy
    history: list[dict[str, float]] = field(default_factory=list)
    seconds: float = 0.0
    arrays_sha256: str = ""


@contextmanager
def held(folder: Path, wait: bool) -> Iterator[None]:
    """Locks a folder that is there against every other process that asks for it so.

    Raises:
        BlockingIOError: Another process has it, and this one does not `wait`.
    """
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        yield
    finally:
        os.close(handle)


class Checkpoints:
    """The checkpoints of one run in `<folder>/e<epoch>-s<step>/{state.npz, state.json}`."""

    def __init__(self, folder: Path) -> None:
        """Looks into `folder`, which need not exist."""
        self.folder = folder

    def _all(self) -> list[Path]:
        return sorted(self.folder.glob("e*-s*"))

    def any(self) -> bool:
        """Whether there is one, whole or not."""
        return bool(self._all())

    def save(self, state: State, arrays: list[np.ndarray[Any, Any]]) -> None:
        """Writes one checkpoint and drops those before the last two.

        Raises:
            FloatingPointError: An array is not finite; nothing is written.
        """
        if not all(np.isfinite(array).all() for array in arrays):
            raise FloatingPointError
        target = self.folder / f"e{state.epoch:05d}-s{state.step:08d}"
        with staged_folder(target) as folder:
            np.savez(folder / "state.npz", *arrays, allow_pickle=False)
            digest = sha256_of(folder / "state.npz")
            told = {**asdict(state), "arrays_sha256": digest}
            write_atomic(folder / "state.json", json.dumps({**told, "sha256": sha256_of_json(told)}))
        for old in self._all()[:-KEEP]:
            shutil.rmtree(old, ignore_errors=True)

    def newest(self, warn: Any) -> tuple[State, list[np.ndarray[Any, Any]]] | None:
        """The last whole checkpoint; `warn(message)` is told of each damaged one that was passed over.

        A damaged one is set aside, where it does not count among the last two, until the run is done.
        """
        found = self._all()
        for folder in reversed(found):
            try:
                told = json.loads((folder / "state.json").read_text())
                if told.pop("sha256", sha256_of_json(told)) != sha256_of_json(told):
                    raise ValueError("its state's sha256 is not the recorded one")
                state = from_json(State, told)
                if sha256_of(folder / "state.npz") != state.arrays_sha256:
                    raise ValueError("its sha256 is not the recorded one")
                with np.load(folder / "state.npz", allow_pickle=False) as stored:
                    return state, [stored[name] for name in stored.files]
            except (OSError, ValueError) as error:
                warn(f"checkpoint {folder.name} is damaged ({error}); going back to the one before it")
                aside = folder.with_name(f"damaged-{folder.name}")
                shutil.rmtree(aside, ignore_errors=True)
                folder.rename(aside)
        if found:
            warn("no whole checkpoint is left; starting over")
        return None

    def clear(self) -> None:
        """Removes all of them."""
        shutil.rmtree(self.folder, ignore_errors=True)


def history_csv(history: list[dict[str, float]]) -> str:
    """One line an epoch, as `history.csv` has it."""
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(history[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows({**row, "epoch": int(row["epoch"])} for row in history)
    return text.getvalue()


def same_run(state: State, run: dict[str, Any], model: str) -> None:
    """Refuses to go on with a run that was started differently.

    Raises:
        KilnError: Names what differs, and the ways out.
    """
    # what was not noted then was the one that there was, or has come since and is at its default
    was = {"backend": "tensorflow", "compute_dtype": run.get("compute_dtype"), **Recipe().decisive(), **state.run}
    run = {**Recipe().decisive(), **run}
    differing = sorted(key for key in run.keys() | was.keys() if run.get(key) != was.get(key))
    if differing:
        told = "; ".join(f"{key} was {was.get(key)!r}, is {run.get(key)!r}" for key in differing[:4])
        raise KilnError(
            f"{model} has an unfinished run with another recipe ({told}). Go on with the old recipe, give the new run "
            "another --name, or start over with --force"
        )
