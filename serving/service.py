"""The one BentoML service: `bentoml serve` from the root runs it, `bentoml build` packs it.

BentoML supervises the workers, gathers their metrics and builds the bento. What it would put around a request (a timer
that outlives it, a span, an access log line, three metrics, a context: half a millisecond in all) is left out by
answering every request before its application sees it.
"""

from __future__ import annotations

import contextlib
import gc
import os
import socket
import sys
import tempfile
from typing import Any, NoReturn

import bentoml

from catalog import KilnError
from serving import page
from serving.decoding import Images
from serving.http import door
from serving.http.gate import Gate
from serving.http.web import Receive, Router, Scope, Send
from serving.models import control, repository
from serving.models.control import Control
from serving.models.counts import PrometheusCounts
from serving.models.library import Library
from serving.operations import logs
from serving.operations.lifecycle import Lifecycle
from serving.operations.metrics import Metrics
from serving.operations.series import Series
from serving.operations.supervisor import Supervisor
from serving.routes import openapi
from serving.routes.api import Api
from serving.routes.operations import Operations
from serving.settings import Settings
from serving.v2 import V2
from serving.v2 import openapi as openapi_v2

logger = logs.configure()


def _do_not_track() -> None:
    """Turns BentoML's usage tracking off: it waits for the network, even where there is none.

    `bentoml serve` asks the environment once, before it imports any service, and remembers the answer.
    """
    from bentoml._internal.utils.analytics import usage_stats

    os.environ["BENTOML_DO_NOT_TRACK"] = "True"
    usage_stats.do_not_track.cache_clear()


_do_not_track()


class Front:
    """The ASGI application of a worker: requests are ours, the start and stop of the process BentoML's."""

    def __init__(self, bento: Any, router: Router, lifecycle: Lifecycle, library: Library, metrics: Metrics) -> None:
        self._bento, self._router, self._lifecycle, self._library = bento, router, lifecycle, library
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers a request, or passes the start and stop on."""
        if scope["type"] != "lifespan":
            await self._router(scope, receive, send)
            return
        self._lifecycle.begin()
        self._library.begin()
        await self._bento(scope, receive, send)
        self._metrics.flush()


class KilnService(bentoml.Service[Any]):  # type: ignore[misc]
    """A BentoML service whose workers answer through `Front`."""

    def to_asgi(self, is_main: bool = True) -> Any:
        """Loads the repository and builds a worker's application."""
        logs.take_over()
        lifecycle, series = Lifecycle(_SETTINGS, control.ending, control.abandoned), Series()
        metrics = Metrics(series)
        try:
            library = Library(_SETTINGS, Control(), PrometheusCounts(series), metrics)
        except KilnError as error:
            _exit(error)
        images = Images(_SETTINGS)
        routes = [
            *Api(library, _SETTINGS, images).routes(),
            *V2(library, _SETTINGS, images, lifecycle.draining).routes(),
            *page.routes(),
            openapi.route(_SETTINGS, openapi_v2.paths(), openapi_v2.schemas()),
            *Operations(lifecycle.draining, metrics.flush).routes(),
        ]
        bento = super().to_asgi(is_main)
        gate = Gate(Front(bento, Router(routes), lifecycle, library, metrics), _SETTINGS, metrics, lifecycle.draining)
        lifecycle.connection = lambda base: door.behind(base, gate, _SETTINGS.write_timeout_s)
        library.present = gate.house.present
        gc.collect()
        gc.freeze()  # what is loaded stays; the collector need not look at it again
        return gate


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


def _check_folder() -> None:
    """Has BentoML a folder for its sockets where none of the usual temporary ones can be written.

    Raises:
        KilnError: Not even its own home or the machine's memory can be.
    """
    from bentoml._internal.configuration.containers import BentoMLContainer

    with contextlib.suppress(FileNotFoundError):
        tempfile.gettempdir()
        return
    home = BentoMLContainer.bentoml_home.get()
    for folder in (home, "/dev/shm"):
        with contextlib.suppress(OSError), tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"?")
            file.flush()
            tempfile.tempdir = os.environ["TMPDIR"] = folder  # the latter is for the workers
            return
    raise KilnError(f"no file can be written, neither in {home} nor in a temporary folder. Name one: TMPDIR=/…")


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
        """Runs in the parent process before the port opens: is it free, is every file whole, does each model load?"""
        try:
            _check_port()
            _check_folder()
            logs.take_over()
            for warning in repository.load(_SETTINGS).stale:
                logger.warning(warning)
            control.begin()
            Supervisor(_SETTINGS.restarts, control.end).begin()
        except KilnError as error:
            _exit(error)
