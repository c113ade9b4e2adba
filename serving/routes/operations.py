"""The routes of whoever runs the service: `/livez`, `/readyz`, `/healthz` and `/metrics`.

BentoML has them too, but behind a timer of a minute that outlives each answer, and renders the metrics of all workers
anew for everybody who asks, on the event loop. They need no token and take no place, so they must cost little.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from serving.errors import RequestError
from serving.http.web import Answer, Request, Route

FRESH_S = 1.0  # for which a page of metrics is given out again
_FINE = Answer(b"\n", media="text/plain; charset=utf-8")


class Operations:
    """Handlers of one worker."""

    def __init__(self, draining: Callable[[], bool], flush: Callable[[], None]) -> None:
        """Takes what tells that the end has begun, and what hands over what was counted since the last time."""
        self._draining, self._flush = draining, flush
        self._page: asyncio.Task[Answer] | None = None
        self._begun = 0.0

    def routes(self) -> list[Route]:
        """The table for `web.Router`."""
        return [
            Route("GET", "/livez", self.live),
            Route("GET", "/healthz", self.live),
            Route("GET", "/readyz", self.ready),
            Route("GET", "/metrics", self.metrics),
        ]

    async def live(self, request: Request) -> Answer:
        """Whether the process runs, which it does if it answers."""
        return _FINE

    async def ready(self, request: Request) -> Answer:
        """Whether requests are taken: until the end begins."""
        if self._draining():
            raise RequestError(503, "draining", "this worker is ending")
        return _FINE

    async def metrics(self, request: Request) -> Answer:
        """The figures of all workers, rendered in a thread for all who ask meanwhile and shortly afterwards."""
        if self._page is None or (self._page.done() and time.monotonic() >= self._begun + FRESH_S):
            self._flush()
            self._begun = time.monotonic()
            self._page = asyncio.create_task(asyncio.to_thread(_rendered))
        return await asyncio.shield(self._page)


def _rendered() -> Answer:
    from bentoml._internal.configuration.containers import BentoMLContainer

    client = BentoMLContainer.metrics_client.get()
    return Answer(client.generate_latest(), media=client.CONTENT_TYPE_LATEST)
