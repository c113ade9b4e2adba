"""What the service counts beside BentoML's own figures, on the same `/metrics` page.

    modelkiln_requests_total{route,code}                 answers by HTTP status
    modelkiln_request_seconds{route}                     time to the answer
    modelkiln_errors_total{code}                         refusals and failures by their word
    modelkiln_inflight                                   requests being answered now
    modelkiln_model_requests_total{model,version,code}   answers about a variant by HTTP status
    modelkiln_stage_seconds{model,version,stage}         decode, queue, compute
    modelkiln_batch_images{model,version}                images that were computed together
    modelkiln_queue_depth{model,version}                 images that wait for their turn
    modelkiln_predictions_total{model,version,class}     likeliest classes: their shares drift when the input does
    modelkiln_confidence{model,version}                  probability of the likeliest class

Labels come from the routes, the store and the class names, never from a request's text.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from bisect import bisect_left
from collections.abc import Callable
from pathlib import Path
from typing import Any

from serving.http.record import Record

_SECONDS = (0.0001, 0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)
_IMAGES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
_SHARES = (0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99, 1.0)
_FILE_BYTES = 1 << 20  # of each file that prometheus_client maps: enough for some 6,000 series
_FILES = ("counter", "histogram", "gauge_livesum", "gauge_livemax")  # ours and BentoML's
_FLUSH_S = 0.25
_STAGES = ("decode", "queue", "compute")

logger = logging.getLogger("bentoml.modelkiln")


class _Sum:
    """Adds up here and hands over now and then: an increment of the shared file costs as much as ten of these."""

    def __init__(self, child: Any) -> None:
        self._child, self._added = child, 0.0

    def add(self, value: float = 1) -> None:
        self._added += value

    def flush(self) -> None:
        if self._added:
            self._child.inc(self._added)
            self._added = 0.0


class _Spread:
    """The same for a histogram, whose buckets prometheus_client has no other way to add to than one by one."""

    def __init__(self, child: Any) -> None:
        self._child, self._bounds = child, child._upper_bounds
        self._counts, self._total = [0] * len(self._bounds), 0.0

    def add(self, value: float) -> None:
        self._counts[bisect_left(self._bounds, value)] += 1
        self._total += value

    def flush(self) -> None:
        for bucket, count in enumerate(self._counts):
            if count:
                self._child._buckets[bucket].inc(count)
                self._counts[bucket] = 0
        if self._total:
            self._child._sum.inc(self._total)
            self._total = 0.0


class _Level:
    """The same for a gauge: what it is now."""

    def __init__(self, child: Any) -> None:
        self._child, self._level, self._told = child, 0.0, -1.0

    def add(self, level: float) -> None:
        self._level = level

    def flush(self) -> None:
        if self._level != self._told:
            self._child.set(self._level)
            self._told = self._level


class Metrics:
    """The counters of one worker.

    To be made once a worker: `prometheus_client` decides on import, by `PROMETHEUS_MULTIPROC_DIR`, whether workers
    share a page, and BentoML sets that for its workers only. A full disk turns counting off, never the service.
    """

    def __init__(self) -> None:
        from prometheus_client import Counter, Gauge, Histogram

        self._broken = False
        self._guarded(_reserve_files)
        variant = ["model", "version"]
        self._requests = Counter("modelkiln_requests", "Answers by route and status", ["route", "code"])
        self._seconds = Histogram(
            "modelkiln_request_seconds", "Time to the answer, by route", ["route"], buckets=_SECONDS
        )
        self._errors = Counter("modelkiln_errors", "Refusals and failures by their word", ["code"])
        self._inflight = Gauge("modelkiln_inflight", "Requests being answered", multiprocess_mode="livesum")
        self._model = Counter("modelkiln_model_requests", "Answers about a variant by status", [*variant, "code"])
        self._stage = Histogram("modelkiln_stage_seconds", "Time by stage", [*variant, "stage"], buckets=_SECONDS)
        self._batch = Histogram("modelkiln_batch_images", "Images computed together", variant, buckets=_IMAGES)
        self._depth = Gauge("modelkiln_queue_depth", "Images that wait", variant, multiprocess_mode="livesum")
        self._classes = Counter("modelkiln_predictions", "Likeliest classes", [*variant, "class"])
        self._confidence = Histogram(
            "modelkiln_confidence", "Probability of the likeliest class", variant, buckets=_SHARES
        )
        self._children: dict[tuple[int | str, ...], Any] = {}
        self._due = False

    def answered(self, record: Record, seconds: float) -> None:
        """Counts one answer, whatever it was."""
        self._guarded(self._answered, record, seconds)

    def inflight(self, count: int) -> None:
        """Requests that are being answered by this worker now."""
        self._guarded(lambda: self._child(_Level, self._inflight).add(count))

    def batch(self, model: str, version: str, images: int) -> None:
        """Counts one call of a runtime."""
        self._guarded(lambda: self._child(_Spread, self._batch, model, version).add(images))

    def queue_depth(self, model: str, version: str, images: int) -> None:
        """Images that wait for a variant now."""
        self._guarded(lambda: self._child(_Level, self._depth, model, version).add(images))

    def flush(self) -> None:
        """Hands over to the shared files what was counted since the last time."""
        self._due = False
        self._guarded(self._flush)

    def _answered(self, record: Record, seconds: float) -> None:
        status, child = str(record.status), self._child
        child(_Sum, self._requests, record.route, status).add()
        child(_Spread, self._seconds, record.route).add(seconds)
        if record.code:
            child(_Sum, self._errors, record.code).add()
        if not record.model:
            return
        model, version = record.model, record.version
        child(_Sum, self._model, model, version, status).add()
        if not record.images:
            return
        for stage, taken in zip(_STAGES, (record.decode_s, record.queue_s, record.compute_s), strict=True):
            child(_Spread, self._stage, model, version, stage).add(taken)
        confidence = child(_Spread, self._confidence, model, version)
        for name, probability in record.tops:
            child(_Sum, self._classes, model, version, name).add()
            confidence.add(probability)

    def _child(self, kind: Callable[[Any], Any], family: Any, *labels: str) -> Any:
        """A family's child by its labels, kept, for making it costs more than counting; has it flushed soon."""
        key: tuple[int | str, ...] = (id(family), *labels)
        found = self._children.get(key)
        if found is None:
            found = self._children[key] = kind(family.labels(*labels) if labels else family)
        if not self._due:
            with contextlib.suppress(RuntimeError):  # the loop has not begun: the next one will have it flushed
                asyncio.get_running_loop().call_later(_FLUSH_S, self.flush)
                self._due = True
        return found

    def _flush(self) -> None:
        for child in self._children.values():
            child.flush()

    def _guarded(self, count: Callable[..., None], *arguments: Any) -> None:
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
    `prometheus_client` believing that it did: BentoML's probes would break for good.

    Raises:
        OSError: There is no room.
    """
    folder = os.environ.get("PROMETHEUS_MULTIPROC_DIR", "")
    for name in _FILES if folder else ():
        with Path(folder, f"{name}_{os.getpid()}.db").open("ab") as file:
            os.posix_fallocate(file.fileno(), 0, _FILE_BYTES)


def worker_died(pid: int) -> None:
    """Takes a dead worker's gauges off the page; to be called in the process that noticed."""
    from bentoml._internal.configuration.containers import BentoMLContainer

    folder = Path(BentoMLContainer.prometheus_multiproc_dir.get())
    for path in folder.glob(f"gauge_live*_{pid}.db"):
        path.unlink(missing_ok=True)
