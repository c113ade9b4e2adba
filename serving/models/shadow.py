"""What a second variant would have said.

A shadow computes the same images after the answer is out, unseen by the client, and only while it has nothing else to
do: what it costs is skipped work, never a slower answer.
"""

from __future__ import annotations

import asyncio
from typing import Any

import numpy as np
from numpy.typing import NDArray

from serving.errors import RequestError
from serving.models.counts import Counts
from serving.models.repository import Model, Served


class Shadows:
    """Gives shadows the work of the variants they are compared with."""

    def __init__(self, counts: Counts) -> None:
        self._counts = counts
        self._running: set[asyncio.Task[None]] = set()

    def follow(self, model: Model, served: Served, images: NDArray[np.uint8], answer: NDArray[np.float32]) -> None:
        """To be called with every answer; does something where the model has a shadow for this variant."""
        shadow = model.split.shadow
        if shadow is None or served is not model.split.default:
            return
        if self._running or shadow.lane.depth or shadow.lane.expected:
            self._counts.shadowed(model.card.model, shadow.version, served.version, "skipped", len(images))
            return
        task = asyncio.get_running_loop().create_task(self._compare(model, shadow, served, images.copy(), answer))
        self._running.add(task)
        task.add_done_callback(self._running.discard)

    async def _compare(
        self, model: Model, shadow: Served, served: Served, images: NDArray[np.uint8], answer: NDArray[np.float32]
    ) -> None:
        name, versions = model.card.model, (shadow.version, served.version)
        await asyncio.sleep(0)  # the answer goes out first
        try:
            with shadow.lane:
                seen: NDArray[Any] = (await shadow.lane.run(images)).probabilities
        except RequestError:
            self._counts.shadowed(name, *versions, "skipped", len(images))
            return
        except Exception:  # each runtime has its own
            self._counts.shadowed(name, *versions, "failed", len(images))
            return
        agreed = int((seen.argmax(1) == answer.argmax(1)).sum())
        self._counts.shadowed(name, *versions, "agreed", agreed)
        self._counts.shadowed(name, *versions, "disagreed", len(images) - agreed)
        self._counts.strayed(name, *versions, float(np.abs(seen - answer).max()))
