"""A worker's end, and the connections that never begin.

uvicorn ends on SIGTERM by closing its port at once and waiting without limit. Here a worker first says that it is not
ready and asks its clients to connect elsewhere, then closes, and is gone when its time is up, whatever still runs. The
workers share one listening socket: it is shut for all of them only where the whole service ends.

BentoML makes the uvicorn server itself and hands it to nobody; the handler that uvicorn has installed for SIGTERM is a
method of it, and that is the way to it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import struct
import threading
import time
from collections.abc import Callable
from types import FrameType
from typing import Any

from serving.operations.logs import LOGGER
from serving.settings import Settings

_SWEEP_S = 1.0
_LOOK_S = 0.005
_LAST_S = 1.0  # for the last connections to be accepted and to send their requests
_UNACKED = 24  # offset in Linux's tcp_info; of a socket that listens, the connections to be accepted

logger = logging.getLogger(LOGGER)


class Lifecycle:
    """The state of one worker process: starting, ready, draining."""

    def __init__(
        self,
        settings: Settings,
        all_end: Callable[[], bool] = lambda: False,
        abandoned: Callable[[], bool] = lambda: False,
    ) -> None:
        """Takes the settings, what tells the end of the whole service from that of one worker, and that of the parent.

        A worker whose parent is gone ends as by SIGTERM: nobody would replace it, and it would keep the port.
        """
        self._settings, self._all_end, self._abandoned = settings, all_end, abandoned
        self._server: Any = None  # uvicorn's
        self._uvicorn_exit: Any = None
        self._draining = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self.connection: Callable[[type[Any]], type[Any]] = lambda base: base  # what connections are made of

    def draining(self) -> bool:
        """Whether the end has begun."""
        return self._draining

    def begin(self) -> None:
        """Takes SIGTERM over and watches the connections; to be called on the event loop, within uvicorn's server."""
        self._loop = asyncio.get_running_loop()
        handler = signal.getsignal(signal.SIGTERM)
        self._server = getattr(handler, "__self__", None)
        if self._server is None or not hasattr(self._server, "server_state"):
            return  # another server than uvicorn: its own ways hold
        self._uvicorn_exit = handler
        config = self._server.config
        config.http_protocol_class = self.connection(config.http_protocol_class)
        config.timeout_keep_alive = self._settings.keep_alive_s  # which every connection takes from there
        logger.info("worker %d is ready", os.getpid())
        signal.signal(signal.SIGTERM, self._terminate)
        _watch_the_end(self._settings.grace_s)
        self._loop.call_later(_SWEEP_S, self._sweep, {})

    def _terminate(self, number: int, frame: FrameType | None) -> None:
        if self._draining:
            return
        self._draining = True
        assert self._loop is not None
        self._loop.call_soon_threadsafe(self._loop.call_later, self._settings.drain_s, self._close, number)

    def _close(self, number: int) -> None:
        """Takes no more connections; those that queue up are answered, here or by the workers that stay."""
        assert self._loop is not None
        deadline = self._loop.time() + _LAST_S
        if not (self._all_end() or self._abandoned()):
            for server in self._server.servers:
                server.close()
            self._end(number, deadline)
            return
        listening = [sock for server in self._server.servers for sock in server.sockets]
        for sock in listening:
            with contextlib.suppress(OSError), socket.socket(fileno=os.dup(sock.fileno())) as own:
                own.listen(0)
        self._empty(number, listening, deadline)

    def _empty(self, number: int, listening: list[Any], deadline: float) -> None:
        """Stops listening once nobody queues, so that later connections are refused instead of waiting for nobody."""
        assert self._loop is not None
        if any(map(_queued, listening)) and self._loop.time() < deadline:
            self._loop.call_later(_LOOK_S, self._empty, number, listening, deadline)
            return
        for sock in listening:  # another worker may have been first: they share it
            with contextlib.suppress(OSError), socket.socket(fileno=os.dup(sock.fileno())) as own:
                own.shutdown(socket.SHUT_RD)
        self._end(number, deadline)

    def _end(self, number: int, deadline: float) -> None:
        """Hands over to uvicorn, which closes on whoever has sent nothing, once the last to be accepted have sent."""
        assert self._loop is not None
        fresh = [one for one in self._server.server_state.connections if getattr(one, "cycle", self) is None]
        if fresh and self._loop.time() < deadline:
            self._loop.call_later(_LOOK_S, self._end, number, deadline)
        else:
            self._uvicorn_exit(number, None)

    def _sweep(self, seen: dict[Any, float]) -> None:
        """Closes connections whose request line and headers do not arrive: uvicorn waits for those without limit.

        Every time it also asks whether the parent is still there.
        """
        if not self._draining and self._abandoned():
            logger.error("the service's parent process is gone; worker %d ends", os.getpid())
            os.kill(os.getpid(), signal.SIGTERM)
        now, waiting = time.monotonic(), {}
        for connection in list(self._server.server_state.connections):
            cycle = getattr(connection, "cycle", None)
            idle = cycle is None or cycle.response_complete
            if not idle or getattr(connection, "timeout_keep_alive_task", None) is not None:
                continue
            waiting[connection] = since = seen.get(connection, now)
            if now - since >= self._settings.header_timeout_s:
                connection.transport.close()
        assert self._loop is not None
        self._loop.call_later(_SWEEP_S, self._sweep, waiting)


def _queued(listening: Any) -> bool:
    """Whether connections wait to be accepted; unknown, hence no, where the system does not tell."""
    try:
        told = listening.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _UNACKED + 4)
    except (OSError, AttributeError):
        return False
    return len(told) >= _UNACKED + 4 and struct.unpack_from("I", told, _UNACKED)[0] > 0


def _watch_the_end(grace_s: float) -> None:
    """Has a thread end the process `grace_s` after SIGTERM, though the main thread may hang in a runtime by then.

    Python calls handlers in the main thread only, but tells the wake-up descriptor of a signal at once; the event
    loop's own descriptor gets the news passed on.
    """
    reading, writing = socket.socketpair()
    writing.setblocking(False)
    passed_on = signal.set_wakeup_fd(writing.fileno(), warn_on_full_buffer=False)

    def watch() -> None:
        with writing:  # kept open as long as this thread lives
            while signal.SIGTERM not in (numbers := reading.recv(64)):
                _pass_on(passed_on, numbers)
            _pass_on(passed_on, numbers)
            time.sleep(grace_s)
            logger.error("requests were still running %g s after SIGTERM; the worker ends without them", grace_s)
            os._exit(1)

    threading.Thread(target=watch, name="modelkiln-end", daemon=True).start()


def _pass_on(descriptor: int, numbers: bytes) -> None:
    if descriptor >= 0:
        with contextlib.suppress(OSError):
            os.write(descriptor, numbers)
