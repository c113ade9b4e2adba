"""Where uploads are decoded: short work on the event loop, longer work in a pool of threads."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from serving.settings import Settings

PIXELS_PER_MS = 20_000  # of decoding, on the slow side
T = TypeVar("T")


class Decoding:
    """One protocol's pool."""

    def __init__(self, settings: Settings, name: str) -> None:
        self._inline_ms = settings.inline_ms
        self._pool = ThreadPoolExecutor(settings.pool_threads, thread_name_prefix=name)

    async def run(self, pixels: int, work: Callable[[], T]) -> T:
        """Short work at once: handing it to a thread and back costs more than the event loop loses by waiting."""
        if pixels / PIXELS_PER_MS <= self._inline_ms:
            return work()
        return await asyncio.get_running_loop().run_in_executor(self._pool, work)
