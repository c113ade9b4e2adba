"""LitServe: a `LitAPI` with setup, decode, predict and encode, and its server as documented for many requests.

    MODEL=model.onnx THREADS=1 python -m benchmarks.peers.litserve_app PORT

Sources: lightning.ai/docs/litserve, "LitAPI" (the four methods), "LitServer": `fast_queue=True` for more than a hundred
requests a second, `workers_per_device=1` is the default, and "Request types": files come in a form. It takes JSON and
forms only, so that the fastest way for a tensor is a file of raw bytes in a form. Its access log is off, as the
hand-written application's is. "Batching" has `max_batch_size` and `batch_timeout`, used where `BATCH` is above 1.
"""

import sys  # and no postponed annotations: LitServe looks at the type of `request` itself
from typing import Any

import litserve
import numpy as np
from fastapi import Request
from numpy.typing import NDArray

from benchmarks.peers import network


class Classifier(litserve.LitAPI):  # type: ignore[misc]  # it has no types where this is checked
    """The network behind /predict."""

    def setup(self, device: str) -> None:
        """Opens the session, once in each worker."""
        self.network = network.opened()

    def decode_request(self, request: Request) -> NDArray[np.uint8]:
        """The pixels of a form's `image` (a PNG) or `tensor` (raw bytes); LitServe gives the form it has parsed."""
        form: Any = request
        if "image" in form:
            return self.network.decode(form["image"].file.read())
        return self.network.raw(form["tensor"].file.read())

    def predict(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Probabilities `[N, classes]`."""
        return self.network(pixels)

    def batch(self, inputs: list[NDArray[np.uint8]]) -> NDArray[np.uint8]:
        """Several requests' pixels as one array."""
        return np.concatenate(inputs)

    def unbatch(self, output: NDArray[np.float32]) -> list[NDArray[np.float32]]:
        """Each request's probabilities."""
        return list(output)

    def encode_response(self, probabilities: NDArray[np.float32]) -> dict[str, Any]:
        """The answer's JSON."""
        return {"probabilities": probabilities.ravel().tolist()}


if __name__ == "__main__":
    batching = {"max_batch_size": network.BATCH, "batch_timeout": network.BATCH_WAIT_S} if network.BATCH > 1 else {}
    server = litserve.LitServer(Classifier(**batching), accelerator="cpu", workers_per_device=1, fast_queue=True)
    server.run(
        host="127.0.0.1", port=int(sys.argv[1]), log_level="warning", generate_client_file=False, access_log=False
    )
