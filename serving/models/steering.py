"""Loads, unloads and rolls back models on request, in every worker before the answer."""

from __future__ import annotations

import asyncio
import dataclasses
import time
from collections.abc import Callable

from serving.errors import RequestError, quoted
from serving.models.control import Agreement
from serving.models.library import Library

_FOLLOW_S = 10.0  # for the other workers to do the same


class Steering:
    """What operators may ask of a library."""

    def __init__(self, library: Library) -> None:
        self._library = library

    async def load(self, name: str) -> None:
        """Loads a model, or what is new of it, from the store; ends an unloading or a rollback.

        Raises:
            RequestError: 404 `model_unknown`, 400 `model_load_failed`, or 503 `workers_behind`.
        """
        self._known(name)
        await self._agree(name, lambda agreed: agreed.loading(name))
        self._loaded(name)

    async def unload(self, name: str) -> None:
        """Ends a model's service; requests that it has taken are answered.

        Raises:
            RequestError: 404 `model_unknown` or 503 `workers_behind`.
        """
        self._known(name)
        await self._agree(name, lambda agreed: agreed.unloading(name))

    async def rollback(self, name: str) -> None:
        """Serves what was served of a model before its last change, until the store changes again.

        Raises:
            RequestError: 404 `model_unknown`, 409 `rollback_impossible`, 400 or 503 as `load`.
        """
        self._library.model(name)
        earlier: list[str] | None = None

        def back(agreed: Agreement) -> Agreement:
            nonlocal earlier
            earlier, before = agreed.pinned.get(name), agreed.before(name)
            if not before or not self._library.control.copy(before[-1]).root.is_dir():
                raise RequestError(409, "rollback_impossible", f"nothing else of {name} was served since the start")
            return agreed.pinning(name, [before[-1], self._library.held(name)])

        await self._agree(name, back)
        try:
            self._loaded(name)
        except RequestError:
            await self._agree(name, lambda agreed: agreed.pinning(name, earlier))
            raise

    def _known(self, name: str) -> None:
        known = self._library.known()
        if name not in known:
            sentence = f"there is no model {quoted(name)}; there are: {', '.join(sorted(known))}"
            raise RequestError(404, "model_unknown", sentence)

    def _loaded(self, name: str) -> None:
        if reason := self._library.failure(name):
            raise RequestError(400, "model_load_failed", f"{quoted(name)} stays as it is: {reason}; the log says more")

    async def _agree(self, name: str, how: Callable[[Agreement], Agreement]) -> None:
        def next_generation(agreed: Agreement) -> Agreement:
            return dataclasses.replace(how(agreed), generation=agreed.generation + 1)

        agreed = await self._library.refresh(lambda: self._library.control.change(next_generation), again=name)
        deadline = time.monotonic() + _FOLLOW_S
        while behind := self._library.control.behind(agreed.generation):
            if time.monotonic() > deadline:
                sentence = f"{len(behind)} other workers have not followed yet"
                raise RequestError(503, "workers_behind", sentence, {"retry-after": "1"})
            await asyncio.sleep(0.05)
