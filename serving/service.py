"""The one BentoML service: `bentoml serve` from the root runs it, `bentoml build` packs it.

BentoML supervises the workers, answers health and metrics, and builds the bento. Everything else it would put around a
request (a timer that outlives it, a span, an access log line, three metrics, a context: half a millisecond in all) is
left out by answering our own routes before its application sees them.
"""

from __future__ import annotations

import gc
import logging
import os
import socket
import sys
from typing import Any, NoReturn

import bentoml

from catalog import KilnError
from serving import metrics, repository
from serving.api import Api
from serving.errors import RequestError
from serving.settings import Settings
from serving.web import Receive, Route, Router, Scope, Send

logger = logging.getLogger("bentoml.modelkiln")
OPERATIONS = ("/livez", "/readyz", "/healthz", "/metrics")  # BentoML's


def _do_not_track() -> None:
    """Turns BentoML's usage tracking off: it waits for the network, even where there is none.

    `bentoml serve` asks the environment once, before it imports any service, and remembers the answer.
    """
    from bentoml._internal.utils.analytics import usage_stats

    os.environ["BENTOML_DO_NOT_TRACK"] = "True"
    usage_stats.do_not_track.cache_clear()


_do_not_track()


class Front:
    """The ASGI application of a worker: BentoML's where it is asked for health and metrics, ours for the rest."""

    def __init__(self, bento: Any, router: Router) -> None:
        self._bento, self._router = bento, router

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes a request on, and the start and stop of the process to BentoML."""
        if scope["type"] == "lifespan" or (scope.get("path") in OPERATIONS and scope.get("method") in ("GET", "HEAD")):
            await self._bento(scope, receive, send)
        else:
            await self._router(scope, receive, send)


class KilnService(bentoml.Service[Any]):  # type: ignore[misc]
    """A BentoML service whose workers answer through `Front`."""

    def to_asgi(self, is_main: bool = True) -> Any:
        """Loads the repository and builds a worker's application."""
        try:
            loaded = repository.load(_SETTINGS)
        except KilnError as error:
            _exit(error)
        routes = [*Api(loaded, _SETTINGS).routes(), *(Route("GET", path, _unreachable) for path in OPERATIONS)]
        bento = super().to_asgi(is_main)
        router = Router(routes, observe=metrics.observer())
        gc.collect()
        gc.freeze()  # what is loaded stays; the collector need not look at it again
        return Front(bento, router)


async def _unreachable(_: object) -> NoReturn:
    """Stands for BentoML's routes in the table, so that other methods there get a 405."""
    raise RequestError(404, "route_unknown", "BentoML answers here")


def _exit(error: KilnError) -> NoReturn:
    print(f"error: {error}", file=sys.stderr, flush=True)
    raise SystemExit(1)


def _check_port() -> None:
    """Binds what `bentoml serve` was told to, or is configured to, for a moment.

    Raises:
        KilnError: It cannot be bound.
    """
    import click
    from bentoml._internal.configuration.containers import BentoMLContainer

    context = click.get_current_context(silent=True)
    told = context.params if context else {}
    host, port = (
        told.get("host") or BentoMLContainer.http.host.get(),
        told.get("port") or BentoMLContainer.http.port.get(),
    )
    try:
        with socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET):
            pass
    except OSError as error:
        raise KilnError(f"port {port} of {host} cannot be had: {error.strerror}. Choose another: --port") from error


def _settings() -> Settings:
    try:
        return Settings.from_environment()
    except KilnError as error:
        _exit(error)


_SETTINGS = _settings()


@bentoml.service(
    name="modelkiln",
    service_class=KilnService,
    workers=_SETTINGS.workers,
    endpoints={"livez": "/livez", "readyz": "/readyz"},
    logging={"access": {"enabled": False}},
)
class Modelkiln:
    """Classifies images with the variants in the store."""

    @bentoml.on_deployment  # type: ignore[untyped-decorator]
    @staticmethod
    def check() -> None:
        """Runs in the parent process before the port opens: is the port free, is every file whole, does each load?"""
        try:
            _check_port()
            for warning in repository.load(_SETTINGS).stale:
                logger.warning(warning)
        except KilnError as error:
            _exit(error)
