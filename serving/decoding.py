"""Where a worker decodes uploads: short work on the event loop, longer work in a pool of threads."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from serving import images
from serving.errors import RequestError
from serving.images import BYTES_PER_MS, Upload
from serving.settings import Settings

T = TypeVar("T")


class Images:
    """One worker's decoder, with its pool of threads."""

    def __init__(self, settings: Settings) -> None:
        self._inline_ms, self._max_pixels = settings.inline_ms, settings.max_pixels
        self._deadline_s, self._retry_after_s = settings.deadline_s, settings.retry_after_s
        self._pool = ThreadPoolExecutor(settings.pool_threads, thread_name_prefix="modelkiln")

    async def pixels(self, bodies: list[bytes], height: int, width: int) -> NDArray[np.uint8]:
        """uint8 `[N, height, width, 3]` of N uploads, which together may have as many pixels as one alone.

        Raises:
            RequestError: 400, 413 or 415 as `serving.images` has them, for the first that has something wrong; 503
                `deadline_passed` or 504 `inference_timeout`.
        """
        if sum(map(len, bodies)) > self._inline_ms * BYTES_PER_MS:
            return await self._pooled(lambda: _decoded(self._inspected(bodies), height, width))
        uploads = self._inspected(bodies)
        if sum(upload.ms for upload in uploads) > self._inline_ms:
            return await self._pooled(lambda: _decoded(uploads, height, width))
        return _decoded(uploads, height, width)  # a thread and back cost more than the event loop loses by waiting

    def _inspected(self, bodies: list[bytes]) -> list[Upload]:
        uploads: list[Upload] = []
        left = self._max_pixels  # the limit is of a request: many images may not be more work than one
        for place, body in enumerate(bodies):
            with _placed(place, len(bodies)):
                uploads.append(images.inspect(body, left))
            left -= uploads[-1].pixels
        return uploads

    async def _pooled(self, work: Callable[[], T]) -> T:
        job = self._pool.submit(work)
        try:
            async with asyncio.timeout(self._deadline_s):
                return await asyncio.wrap_future(job)
        except TimeoutError:
            if job.cancel():
                sentence = f"it waited {self._deadline_s:g} seconds to be decoded and was not"
                retry = {"retry-after": str(math.ceil(self._retry_after_s))}
                raise RequestError(503, "deadline_passed", sentence, retry) from None
            sentence = f"decoding took longer than {self._deadline_s:g} seconds"
            raise RequestError(504, "inference_timeout", sentence) from None


@contextmanager
def _placed(place: int, count: int) -> Iterator[None]:
    """Says of which of several images an error is, counted from 0 as the answer's results are."""
    try:
        yield
    except RequestError as error:
        if count == 1:
            raise
        raise RequestError(error.status, error.code, f"image {place}: {error.error}", error.headers) from error


def _decoded(uploads: list[Upload], height: int, width: int) -> NDArray[np.uint8]:
    decoded = np.empty((len(uploads), height, width, 3), np.uint8)
    for place, upload in enumerate(uploads):
        with _placed(place, len(uploads)):
            decoded[place] = upload.decode(height, width)
    return decoded
