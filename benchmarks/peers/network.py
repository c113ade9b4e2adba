"""What every peer holds: one ONNX session with a given number of threads, and the service's own image decoder.

The environment says which: `MODEL` is the path of an ONNX file that takes uint8 `[N, H, W, 3]`, `THREADS` the
session's threads, `BATCH` how many images may be computed together. It imports nothing that a peer's environment lacks:
NumPy, Pillow and ONNX Runtime.
"""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from serving import images

BATCH = int(os.environ.get("BATCH", "1"))  # images of concurrent requests computed together; 1 is none, as they come
BATCH_WAIT_S = 0.01  # for them, Ray Serve's default
MAX_PIXELS = 25_000_000  # of an upload, as the service's default


class Network:
    """A session and the size of the images it takes."""

    def __init__(self, path: str, threads: int) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # as in the service
        self._session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        taken = self._session.get_inputs()[0]
        self._name = taken.name
        _, self.height, self.width, _ = taken.shape

    def __call__(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Probabilities `[N, classes]` of uint8 `[N, H, W, 3]`."""
        found: NDArray[np.float32] = self._session.run(None, {self._name: pixels})[0]
        return found

    def decode(self, body: bytes) -> NDArray[np.uint8]:
        """uint8 `[1, H, W, 3]` of a PNG's bytes."""
        return images.inspect(body, MAX_PIXELS).decode(self.height, self.width)[None]

    def raw(self, body: bytes) -> NDArray[np.uint8]:
        """uint8 `[N, H, W, 3]` of as many raw bytes."""
        return np.frombuffer(body, np.uint8).reshape(-1, self.height, self.width, 3)


def opened(environment: Any = os.environ) -> Network:
    """The network that `MODEL` and `THREADS` name."""
    return Network(environment["MODEL"], int(environment.get("THREADS", "1")))
