"""The series of a worker's metrics: kept by their labels, written now and then, and given up where the disk is full."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from bisect import bisect_left
from collections.abc import Callable
from pathlib import Path
from typing import Any

_FILE_BYTES = 1 << 20  # of each file that prometheus_client maps: enough for some 6,000 series
_FILES = ("counter", "histogram", "gauge_livesum", "gauge_livemax")  # ours and BentoML's
FLUSH_S = 0.25  # between hand-overs to the shared files

logger = logging.getLogger("bentoml.modelkiln")


class Sum:
    """Adds up here and hands over now and then: an increment of the shared file costs as much as ten of these."""

    def __init__(self, child: Any) -> None:
        self._child, self._added = child, 0.0

    def add(self, value: float = 1) -> None:
        """Adds, here."""
        self._added += value

    def flush(self) -> None:
        """Hands over."""
        if self._added:
            self._child.inc(self._added)
            self._added = 0.0


class Spread:
    """The same for a histogram, whose buckets prometheus_client has no other way to add to than one by one."""

    def __init__(self, child: Any) -> None:
        self._child, self._bounds = child, child._upper_bounds
        self._counts, self._total = [0] * len(self._bounds), 0.0

    def add(self, value: float, times: int = 1) -> None:
        """Adds a value, here."""
        self._counts[bisect_left(self._bounds, value)] += times
        self._total += value * times

    def flush(self) -> None:
        """Hands over."""
        for bucket, count in enumerate(self._counts):
            if count:
                self._child._buckets[bucket].inc(count)
                self._counts[bucket] = 0
        if self._total:
            self._child._sum.inc(self._total)
            self._total = 0.0


class Level:
    """The same for a gauge: what it is now."""

    def __init__(self, child: Any) -> None:
        self._child, self._level, self._told = child, 0.0, -1.0

    def add(self, level: float) -> None:
        """Takes the level that there is now."""
        self._level = level

    def flush(self) -> None:
        """Hands over."""
        if self._level != self._told:
            self._child.set(self._level)
            self._told = self._level


class Series:
    """Every series of one worker; to be made before the families are.

    A full disk turns counting off, never the service. Making a child of a family costs more than counting, so that
    children are kept.
    """

    def __init__(self) -> None:
        self._gathered: dict[tuple[int | str, ...], Any] = {}
        self._direct: dict[tuple[int | str, ...], Any] = {}
        self._due = self._broken = False
        self.guarded(_reserve_files)

    def gathered(self, kind: Callable[[Any], Any], family: Any, *labels: str) -> Any:
        """A `Sum`, `Spread` or `Level` of a family, flushed soon; for the event loop's thread."""
        key: tuple[int | str, ...] = (id(family), *labels)
        found = self._gathered.get(key)
        if found is None:
            found = self._gathered[key] = kind(family.labels(*labels) if labels else family)
        if not self._due:
            with contextlib.suppress(RuntimeError):  # the loop has not begun: the next one will have it flushed
                asyncio.get_running_loop().call_later(FLUSH_S, self.flush)
                self._due = True
        return found

    def direct(self, family: Any, *labels: str) -> Any:
        """A family's child itself, written at once; for any thread."""
        key: tuple[int | str, ...] = (id(family), *labels)
        found = self._direct.get(key)
        if found is None:
            found = self._direct[key] = family.labels(*labels)
        return found

    def flush(self) -> None:
        """Hands over to the shared files what was counted since the last time."""
        self._due = False
        self.guarded(self._flush)

    def _flush(self) -> None:
        for one in self._gathered.values():
            one.flush()

    def guarded(self, count: Callable[..., None], *arguments: Any) -> None:
        """Counts, unless the files could not be written once."""
        if self._broken:
            return
        try:
            count(*arguments)
        except (OSError, ValueError) as error:
            self._broken = True
            logger.error("metrics stop counting in this worker, their files cannot be written: %s", error)


def _reserve_files() -> None:
    """Makes this worker's files before prometheus_client does, so large that they need not grow.

    A mapped page that the disk has no room for kills the process, and a file that could not grow leaves
    `prometheus_client` believing that it did: it would count nothing any more.

    Raises:
        OSError: There is no room.
    """
    folder = os.environ.get("PROMETHEUS_MULTIPROC_DIR", "")
    for name in _FILES if folder else ():
        with Path(folder, f"{name}_{os.getpid()}.db").open("ab") as file:
            os.posix_fallocate(file.fileno(), 0, _FILE_BYTES)
