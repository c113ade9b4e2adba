"""Ray Serve: one replica behind its HAProxy, with the flags its documentation gives for high throughput.

    env MODEL=model.onnx THREADS=1 RAY_SERVE_THROUGHPUT_OPTIMIZED=1 RAY_SERVE_ENABLE_HA_PROXY=1
        python -m benchmarks.peers.ray_app PORT

Sources: docs.ray.io, "Performance Tuning" (`RAY_SERVE_THROUGHPUT_OPTIMIZED=1`; asynchronous methods with a higher
`max_ongoing_requests` than the 5 it comes with), "HAProxy Load Balancing" (`RAY_SERVE_ENABLE_HA_PROXY=1`, requests go
past the Python proxy), "HTTP Guide" (a deployment's `__call__` takes a Starlette request). A tensor goes in and out as
raw bytes. "Dynamic Request Batching" is used where `BATCH` is above 1.
"""

from __future__ import annotations

import sys

import numpy as np
import ray
from numpy.typing import NDArray
from ray import serve
from starlette.datastructures import UploadFile
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from benchmarks.peers import network


@serve.deployment(num_replicas=1, max_ongoing_requests=1000)
class Classifier:
    """The network behind one replica."""

    def __init__(self) -> None:
        self.network = network.opened()

    async def __call__(self, request: Request) -> Response:
        """Probabilities: of a form's `image` as JSON, of a body of raw pixels as raw float32."""
        if request.method == "GET":
            return Response()
        if request.headers.get("content-type", "").startswith("multipart/form-data"):
            upload = (await request.form())["image"]
            assert isinstance(upload, UploadFile)
            found = await self.compute(self.network.decode(await upload.read()))
            return JSONResponse({"probabilities": found[0].tolist()})
        found = await self.compute(self.network.raw(await request.body()))
        return Response(found.tobytes(), media_type="application/octet-stream")

    async def compute(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Probabilities `[1, classes]` of one image."""
        if network.BATCH == 1:
            return self.network(pixels)
        found: NDArray[np.float32] = await self.together(pixels)
        return found

    @serve.batch(max_batch_size=network.BATCH, batch_wait_timeout_s=network.BATCH_WAIT_S)
    async def together(self, pixels: list[NDArray[np.uint8]]) -> list[NDArray[np.float32]]:
        """What several requests want, in one call."""
        return list(self.network(np.concatenate(pixels))[:, None])


if __name__ == "__main__":
    ray.init(include_dashboard=False, configure_logging=False)
    serve.start(http_options={"host": "127.0.0.1", "port": int(sys.argv[1])})
    serve.run(Classifier.bind(), blocking=True)  # type: ignore[attr-defined]  # the decorator makes it a deployment
