"""A lane's thread, and what it does: a batch in, every request's rows out."""

from __future__ import annotations

import asyncio
import queue
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from export.formats import Predict

IDLE_S = 10.0  # after which a thread without work ends


@dataclass(slots=True)
class Outcome:
    """float32 `[N, classes]` of one request, the seconds it waited and was computed, and the images beside it."""

    probabilities: NDArray[np.float32]
    queue_s: float
    compute_s: float
    batch: int


@dataclass(slots=True, eq=False)
class Waiting:
    """A request's images; times are the event loop's."""

    images: NDArray[np.uint8]
    answer: asyncio.Future[Outcome]
    since: float
    deadline: float
    gone: Callable[[], bool]


@dataclass(slots=True, eq=False)
class Batch:
    """Requests that are computed together."""

    items: list[Waiting]
    images: int
    begun: float
    overdue: asyncio.TimerHandle | None = None
    _claimed: threading.Lock = field(default_factory=threading.Lock)

    def claim(self) -> bool:
        """Whether it is the caller's: true once, for the thread that computes it or the lane that takes it back."""
        return self._claimed.acquire(blocking=False)


Results = tuple[list["NDArray[np.float32] | Exception"], float]


def compute(predict: Predict, items: list[Waiting], max_batch: int) -> Results:
    """Each item's rows, or what went wrong with it alone; a batch that fails is tried item by item."""
    begun = time.perf_counter()
    try:
        images = joined([item.images for item in items])
        rows = _in_pieces(predict, images, max_batch)
        if len(rows) != len(images):
            raise ValueError(f"{len(rows)} rows for {len(images)} images")
        answers: list[NDArray[np.float32] | Exception] = []
        start = 0
        for item in items:
            answers.append(rows[start : start + len(item.images)])
            start += len(item.images)
    except Exception as error:  # each runtime has its own
        if len(items) == 1:
            return [error], time.perf_counter() - begun
        answers = [compute(predict, [item], max_batch)[0][0] for item in items]
    return answers, time.perf_counter() - begun


def joined(images: list[NDArray[np.uint8]]) -> NDArray[np.uint8]:
    """All of them in one array.

    NumPy lets go of the interpreter's lock for every copy, which an event loop with a batch of answers to send then
    keeps for ten milliseconds and more; `bytes.join` holds on to it below a mebibyte.
    """
    if len(images) == 1:
        return images[0]
    content = b"".join([np.ascontiguousarray(one) for one in images])  # type: ignore[misc]
    return np.frombuffer(content, np.uint8).reshape(-1, *images[0].shape[1:])


def _in_pieces(predict: Predict, images: NDArray[np.uint8], max_batch: int) -> NDArray[np.float32]:
    if len(images) <= max_batch:
        return predict(images)
    return np.concatenate([predict(images[at : at + max_batch]) for at in range(0, len(images), max_batch)])


Done = Callable[["Thread", Batch, Results, asyncio.AbstractEventLoop], None]
_Job = tuple[Batch, asyncio.AbstractEventLoop, Done]


class Thread:
    """A daemon thread that computes batches one after another and ends when there are none for a while."""

    def __init__(self, predict: Predict, max_batch: int) -> None:
        self._predict, self._max_batch = predict, max_batch
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._lock, self._ended = threading.Lock(), False
        threading.Thread(target=self._work, name="modelkiln-lane", daemon=True).start()

    def submit(self, batch: Batch, loop: asyncio.AbstractEventLoop, done: Done) -> bool:
        """Whether the thread still takes work; `done` is then called on the loop with what came of it."""
        with self._lock:
            if not self._ended:
                self._jobs.put((batch, loop, done))
            return not self._ended

    def abandon(self) -> None:
        """Lets the thread end once it is done with what it hangs in."""
        self._jobs.put(None)

    def _work(self) -> None:
        while (job := self._take()) is not None:
            batch, loop, done = job
            if not batch.claim():
                continue
            batch.begun = max(batch.begun, time.monotonic())
            results = compute(self._predict, batch.items, self._max_batch)
            try:
                loop.call_soon_threadsafe(done, self, batch, results, loop)
            except RuntimeError:  # the loop has ended, and with it whoever waited
                return
            del job, batch, done, results  # held while idle, they would keep a retired variant alive

    def _take(self) -> _Job | None:
        try:
            return self._jobs.get(timeout=IDLE_S)
        except queue.Empty:
            with self._lock:
                if self._jobs.empty():
                    self._ended = True
                    return None
            return self._jobs.get()
