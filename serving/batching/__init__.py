"""Computes the images of concurrent requests together, a lane for each variant.

There is no timer. A request that finds its lane empty is computed at once, on the event loop where that is short: where
it is very short, or nobody else is in the house. While a batch is computed in the lane's thread, whatever arrives waits
and is the next batch: the window is as long as the batch before took, so it widens with the load and is nothing without
it. A lane that is free although others are on their way closes its batch with the first turn of the event loop that
brings no more.

A batch that is full gains nothing by waiting for the one before it to come back: if it is short, it is handed to the
thread ahead of time, and the thread goes from one to the next without the event loop between them.

What waits is bounded, and every request has a deadline: past it, it is answered without having been computed. What
hangs in the thread is given up, and nothing is computed on the event loop until it has come back; what hangs on the
event loop costs the worker (`serving.batching.inline`).
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections import deque
from collections.abc import Callable
from time import perf_counter

import numpy as np
from numpy.typing import NDArray

from export.formats import Predict
from serving.batching.inline import Inline
from serving.batching.records import Limits, Tally
from serving.batching.thread import Batch, Outcome, Results, Thread, Waiting, compute
from serving.errors import RequestError
from serving.http.web import Disconnected

_LEARNING = 0.2  # weight of the newest batch in what an image is expected to take

logger = logging.getLogger("bentoml.modelkiln")


def _stays() -> bool:
    return False


def _nobody() -> int:
    return 0


def _unobserved(_: int) -> None:
    return


class Lane:
    """Batches one variant's requests; all methods are for one event loop's thread.

    `with lane:` around a request tells that its images are on their way, from before they are read to its answer.
    """

    def __init__(self, predict: Predict, warm_ms: float, limits: Limits | None = None) -> None:
        """Takes the variant and the milliseconds that one image takes it."""
        self.limits = limits or Limits()
        self.tally = Tally()
        self.expected = 0
        self.depth = 0  # images that wait
        self.on_batch: Callable[[int], None] = _unobserved  # the images of every batch that was computed
        self.on_depth: Callable[[int], None] = _unobserved  # the images that wait, whenever that changes
        self.present: Callable[[], int] = _nobody  # requests for any model that are answered or have arrived
        self.inline = Inline()  # told of what is computed on the event loop
        self._predict, self._image_ms = predict, warm_ms
        self._waiting: deque[Waiting] = deque()
        self._computing: Batch | None = None
        self._ahead: Batch | None = None  # handed to the thread, behind the one that it computes
        self._gathering, self._seen = False, 0
        self._sweep: asyncio.Handle | None = None
        self._sweep_at = 0.0
        self._thread: Thread | None = None
        self._stuck: set[Thread] = set()

    def __enter__(self) -> Lane:
        self.expected += 1
        return self

    def __exit__(self, *_: object) -> None:
        self.expected -= 1

    async def run(
        self, images: NDArray[np.uint8], deadline_s: float | None = None, gone: Callable[[], bool] = _stays
    ) -> Outcome:
        """Computes uint8 `[N, H, W, 3]`, with others' images or alone; `gone` says that nobody waits any more.

        Raises:
            RequestError: 429 `queue_full`, 503 `deadline_passed` or `model_stuck`, 504 `inference_timeout`.
            Disconnected: The client left while its images waited.
        """
        limits, count = self.limits, len(images)
        lone = self._computing is None and not self._waiting and not self._stuck and self.expected <= 1
        short = limits.alone_ms if self.present() <= 1 else limits.inline_ms
        if lone and count <= limits.max_batch and count * self._image_ms <= short:
            return self._alone(images)
        self._admit(count)
        loop = asyncio.get_running_loop()
        now, allowed = loop.time(), limits.deadline_s if deadline_s is None else min(deadline_s, limits.deadline_s)
        item = Waiting(images, loop.create_future(), now, now + allowed, gone)
        self._waiting.append(item)
        self.depth += count
        self.on_depth(self.depth)
        self._look_again(loop, item.deadline)
        if self._computing is not None:
            self._hand_ahead(loop)
        else:
            self._begin_gathering(loop)
        return await item.answer

    def _alone(self, images: NDArray[np.uint8]) -> Outcome:
        begun = self.inline.begun = perf_counter()
        try:
            probabilities = self._predict(images)
        except Exception:
            self.tally.failures += 1
            raise
        finally:
            self.inline.begun = 0.0
        taken = perf_counter() - begun
        self._learn(1, len(images), taken)
        return Outcome(probabilities, 0.0, taken, len(images))

    def _admit(self, count: int) -> None:
        if len(self._stuck) >= self.limits.max_stuck:
            self.tally.refused += 1
            raise RequestError(503, "model_stuck", "the model hangs; it takes no more images", _retry(10.0))
        if self.depth and self.depth + count > self.limits.max_queue:
            self.tally.refused += 1
            sentence = f"{self.depth} images wait already, of {self.limits.max_queue} that may"
            raise RequestError(429, "queue_full", sentence, _retry(self.depth * self._image_ms / 1000))

    def _look_again(self, loop: asyncio.AbstractEventLoop, deadline: float) -> None:
        """Makes sure that somebody looks at the queue when this deadline passes."""
        if self._sweep is None or deadline < self._sweep_at:
            if self._sweep is not None:
                self._sweep.cancel()
            self._sweep, self._sweep_at = loop.call_at(deadline, self._swept, loop), deadline

    def _swept(self, loop: asyncio.AbstractEventLoop) -> None:
        self._sweep = None
        if self._ahead is not None and any(item.deadline <= loop.time() + 0.001 for item in self._ahead.items):
            self._take_back()
        kept = [item for item in self._waiting if not self._dismissed(item, loop.time() + 0.001)]
        self._waiting = deque(kept)
        self.on_depth(self.depth)
        if kept := kept + (self._ahead.items if self._ahead else []):
            self._look_again(loop, min(item.deadline for item in kept))

    def _dismissed(self, item: Waiting, now: float) -> bool:
        """Whether an item need not be computed; answers it where somebody may still listen."""
        if not (item.answer.done() or item.gone() or now > item.deadline):
            return False
        self.depth -= len(item.images)
        if item.answer.done():
            return True
        if item.gone():
            item.answer.set_exception(Disconnected())
            return True
        self.tally.refused += 1
        waited = f"it waited {1000 * (now - item.since):.0f} ms and was not computed"
        item.answer.set_exception(
            RequestError(503, "deadline_passed", waited, _retry(self.depth * self._image_ms / 1000))
        )
        return True

    def _begin_gathering(self, loop: asyncio.AbstractEventLoop) -> None:
        if self._waiting and not self._gathering:
            self._gathering, self._seen = True, len(self._waiting)
            loop.call_soon(self._gather, loop)

    def _gather(self, loop: asyncio.AbstractEventLoop) -> None:
        """Closes the batch, or grants another turn of the loop to those on their way while they keep coming."""
        arrived = len(self._waiting)
        if self._seen < arrived < self.expected and self.depth < self.limits.max_batch:
            self._seen = arrived
            loop.call_soon(self._gather, loop)
            return
        self._gathering = False
        if self._computing is None:
            self._dispatch(loop)

    def _next(self, now: float) -> Batch | None:
        items: list[Waiting] = []
        count = 0
        while self._waiting:
            item = self._waiting[0]
            if not self._dismissed(item, now):
                if items and count + len(item.images) > self.limits.max_batch:
                    break
                items.append(item)
                count += len(item.images)
                self.depth -= len(item.images)
            self._waiting.popleft()
        self.on_depth(self.depth)
        return Batch(items, count, now) if items else None

    def _dispatch(self, loop: asyncio.AbstractEventLoop) -> None:
        batch = self._next(loop.time())
        if not self._waiting and self._sweep is not None:
            self._sweep.cancel()
            self._sweep = None
        if batch is None:
            return
        if batch.images * self._image_ms <= self.limits.inline_ms and not self._stuck:
            self.inline.begun = perf_counter()
            results = compute(self._predict, batch.items, self.limits.max_batch)
            self.inline.begun = 0.0
            self._deliver(batch, results)
            self._begin_gathering(loop)
            return
        self._compute(batch, loop)
        if self._thread is None or not self._thread.submit(batch, loop, self._finished):
            self._thread = Thread(self._predict, self.limits.max_batch)
            self._thread.submit(batch, loop, self._finished)
        self._hand_ahead(loop)

    def _compute(self, batch: Batch, loop: asyncio.AbstractEventLoop) -> None:
        """Takes it that the thread computes this batch from now on."""
        self._computing = batch
        batch.overdue = loop.call_later(self.limits.compute_timeout_s, self._overdue, batch, loop)

    def _hand_ahead(self, loop: asyncio.AbstractEventLoop) -> None:
        """Hands the thread its next batch, if that is full and short and the thread has none yet."""
        limits = self.limits
        if self._ahead is not None or self.depth < limits.max_batch:
            return
        if limits.max_batch * self._image_ms > limits.ahead_ms or self._thread is None:
            return
        self._ahead = self._next(loop.time())
        if self._ahead is not None and not self._thread.submit(self._ahead, loop, self._finished):
            self._take_back()

    def _take_back(self) -> bool:
        """Has the batch that was handed ahead wait again; false if the thread has begun it."""
        batch = self._ahead
        if batch is None:
            return True
        if not batch.claim():
            return False
        self._ahead = None
        self._waiting.extendleft(reversed(batch.items))
        self.depth += batch.images
        self.on_depth(self.depth)
        return True

    def _finished(self, thread: Thread, batch: Batch, results: Results, loop: asyncio.AbstractEventLoop) -> None:
        """Takes a batch back from its thread, and begins the next."""
        self._stuck.discard(thread)
        if self._computing is not batch:  # given up already
            return
        assert batch.overdue is not None
        batch.overdue.cancel()
        self._computing, ahead, self._ahead = None, self._ahead, None
        if ahead is not None:
            self._compute(ahead, loop)
            self._hand_ahead(loop)
        self._deliver(batch, results)
        if ahead is None:
            self._dispatch(loop)

    def _overdue(self, batch: Batch, loop: asyncio.AbstractEventLoop) -> None:
        """Answers a batch whose computation hangs, leaves its thread to itself and goes on in another."""
        assert self._thread is not None
        if not self._take_back():  # the thread is beyond this batch, whose results are on their way
            return
        logger.error("an inference takes longer than %g s; it is given up", self.limits.compute_timeout_s)
        self._stuck.add(self._thread)
        self._thread.abandon()
        self._thread, self._computing = None, None
        self.tally.failures += len(batch.items)
        for item in batch.items:
            if not item.answer.done():
                sentence = f"the inference took longer than {self.limits.compute_timeout_s:g} seconds"
                item.answer.set_exception(RequestError(504, "inference_timeout", sentence))
        self._dispatch(loop)

    def _deliver(self, batch: Batch, results: Results) -> None:
        answers, taken = results
        for item, answer in zip(batch.items, answers, strict=True):
            if isinstance(answer, Exception):
                self.tally.failures += 1
            if item.answer.done():
                continue
            if isinstance(answer, Exception):
                item.answer.set_exception(answer)
            else:
                item.answer.set_result(Outcome(answer, batch.begun - item.since, taken, batch.images))
        self.tally.queue_s += sum(batch.begun - item.since for item in batch.items)
        self._learn(len(batch.items), batch.images, taken)

    def _learn(self, requests: int, images: int, taken: float) -> None:
        """Keeps the books of a batch."""
        self._image_ms += _LEARNING * (1000 * taken / images - self._image_ms)
        tally = self.tally
        tally.requests += requests
        tally.images += images
        tally.compute_s += taken * requests
        batches, seconds = tally.batches.get(images, (0, 0.0))
        tally.batches[images] = (batches + 1, seconds + taken)
        tally.last = time.time()
        self.on_batch(images)


def _retry(seconds: float) -> dict[str, str]:
    return {"retry-after": str(max(1, math.ceil(min(seconds, 60.0))))}
