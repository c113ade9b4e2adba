"""The parent process notices at once when a worker dies.

BentoML's supervisor (circus) looks every ten seconds, replaces a worker that cannot live for ever, and in a container
not at all. Here a death wakes it: the worker is replaced at once, unless too many have died within a minute; then the
service ends, says why, and its exit status is 1. Before the workers of a service that ends are told so, `on_end` is
called, so that they need not take it for the end of one of them. Whoever asks the service to end is heard: circus
forgets a SIGTERM that comes while it replaces a worker, so here it is told again until it obeys.

circus keeps its arbiter to itself; the handler that it has installed for SIGTERM leads there.
"""

from __future__ import annotations

import atexit
import logging
import os
import signal
import sys
import time
from collections.abc import Callable
from types import FrameType
from typing import Any

from serving.operations import metrics
from serving.operations.logs import LOGGER

_WINDOW_S = 60.0
_AGAIN_S = 0.1
_PATIENCE_S = 5.0  # with what circus does when it is to end

logger = logging.getLogger(LOGGER)


class Supervisor:
    """Listens for SIGCHLD in the process that `bentoml serve` is."""

    def __init__(self, restarts: int, on_end: Callable[[], None]) -> None:
        self._restarts, self._on_end = restarts, on_end
        self._deaths: list[float] = []
        self._known: set[int] = set()
        self._ending = False

    def begin(self) -> None:
        """To be called before the workers are started, in the main thread."""
        from tornado.ioloop import IOLoop

        signal.signal(signal.SIGCHLD, self._child_died)
        IOLoop.current().add_callback(self._hook)  # circus runs this loop, once it has made its arbiter

    def _hook(self) -> None:
        controller = _controller()
        if controller is None:
            return
        for watcher in controller.arbiter.iter_watchers():
            watcher.hooks["before_stop"] = self._stops
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, Asked(controller, signal.getsignal(number)))

    def _stops(self, arbiter: Any, **_: object) -> None:
        if arbiter._stopping:  # else the workers are restarted
            self._on_end()

    def _child_died(self, number: int, frame: FrameType | None) -> None:
        controller = _controller()
        if controller is not None:  # else circus has not begun, or has ended
            controller.loop.add_callback_from_signal(self._look, controller)

    def _look(self, controller: Any) -> None:
        """Counts the dead and has circus replace them."""
        arbiter = controller.arbiter
        if self._ending or getattr(arbiter, "_stopping", False):
            return
        dead = _dead(arbiter)
        for pid in dead - self._known:
            self._deaths.append(time.monotonic())
            metrics.worker_died(pid)
            logger.warning("worker %d died; it is replaced", pid)
        self._known |= dead
        self._deaths = [at for at in self._deaths if time.monotonic() - at < _WINDOW_S]
        if len(self._deaths) > self._restarts:
            self._give_up(controller)
        elif dead:
            self._replace(controller)

    def _replace(self, controller: Any) -> None:
        from circus.exc import ConflictError

        for watcher in controller.arbiter.iter_watchers():
            watcher.respawn = True  # which BentoML turns off in a container
        try:
            controller.arbiter.manage_watchers()
        except ConflictError:  # circus does one thing at a time
            controller.loop.call_later(_AGAIN_S, self._look, controller)

    def _give_up(self, controller: Any) -> None:
        from circus.client import make_json

        self._ending = True
        logger.error(
            "%d workers died within %g s; the service gives up. Their last words are above",
            len(self._deaths),
            _WINDOW_S,
        )
        atexit.register(_exit_failed)
        controller.dispatch((None, make_json("quit")))


class Asked:
    """A handler of a signal that asks the service to end: circus's own, and then it is seen to that it was heard."""

    def __init__(self, controller: Any, handler: Any) -> None:
        self.controller, self._handler, self._since = controller, handler, 0.0

    def __call__(self, number: int, frame: FrameType | None) -> None:
        """Has circus end the service, as soon as it can."""
        self._since = time.monotonic()
        self._handler(number, frame)
        self.controller.loop.add_callback_from_signal(self._insist)

    def _insist(self) -> None:
        from circus.client import make_json

        arbiter = self.controller.arbiter
        if arbiter._stopping:
            return
        if time.monotonic() - self._since > _PATIENCE_S:
            logger.warning("circus was still busy %g s after it was to end: it ends now", _PATIENCE_S)
            arbiter._exclusive_running_command = None
        self.controller.dispatch((None, make_json("quit")))
        self.controller.loop.call_later(_AGAIN_S, self._insist)


def _controller() -> Any:
    handler = signal.getsignal(signal.SIGTERM)
    owner = handler if isinstance(handler, Asked) else getattr(handler, "__self__", None)
    return getattr(owner, "controller", None)


def _dead(arbiter: Any) -> set[int]:
    """Process ids of the workers that have died and not been replaced."""
    from circus.process import DEAD_OR_ZOMBIE, UNEXISTING

    processes = [process for watcher in arbiter.iter_watchers() for process in watcher.processes.values()]
    return {process.pid for process in processes if process.status in (DEAD_OR_ZOMBIE, UNEXISTING)}


def _exit_failed() -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(1)
