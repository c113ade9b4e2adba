"""What hangs on a worker's event loop: nobody there can give it up, so a thread ends the worker, which is replaced."""

from __future__ import annotations

import logging
import os
import threading
import time

_LOOKS = 4  # within the limit

logger = logging.getLogger("bentoml.modelkiln")


class Inline:
    """The computation that a worker's event loop is in, whichever lane it belongs to."""

    def __init__(self) -> None:
        self.begun = 0.0  # by time.perf_counter; 0 while there is none

    def watch(self, limit_s: float) -> None:
        """Has a thread end the process with status 1 once a computation takes longer than `limit_s`.

        The runtimes let other threads of Python run while they compute.
        """
        threading.Thread(target=self._watch, args=(limit_s,), name="modelkiln-inline", daemon=True).start()

    def _watch(self, limit_s: float) -> None:
        seen, looks = 0.0, 0  # looks are counted: by the clock, a process that was stopped for a while would hang
        while looks < _LOOKS:
            time.sleep(limit_s / _LOOKS)
            begun = self.begun
            looks = looks + 1 if begun and begun == seen else 0
            seen = begun
        logger.error("an inference on the event loop takes longer than %g s; the worker ends to be replaced", limit_s)
        os._exit(1)
