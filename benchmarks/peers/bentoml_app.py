"""Plain BentoML: `@bentoml.service` and `@bentoml.api` with their defaults, as its guides teach.

    MODEL=model.onnx THREADS=1 bentoml serve benchmarks.peers.bentoml_app:Classifier

Sources: docs.bentoml.com, "Create online API Services" (a class, loaded in `__init__`, synchronous methods), "Define
input and output types" (an image is a `PIL.Image.Image` in a form; a tensor is a `numpy.ndarray`, sent as JSON),
"Parallelize requests handling" (one worker is the default), "Adaptive batching" (of the tensor, where `BATCH` is above
1; an image alone cannot be batched). BentoML decodes the image itself, with Pillow too; the image is of the network's
size, so that every decoder gives the same pixels. Usage tracking is switched off from outside: where there is no
network it stalls every request.
"""

from __future__ import annotations

from typing import Annotated

import bentoml
import numpy as np
import PIL.Image
from bentoml.validators import DType

from benchmarks.peers import network

BATCHING = {"batchable": True, "max_batch_size": network.BATCH} if network.BATCH > 1 else {}


@bentoml.service
class Classifier:
    """The network behind two methods."""

    def __init__(self) -> None:
        self.network = network.opened()

    @bentoml.api  # type: ignore[untyped-decorator]
    def predict(self, image: PIL.Image.Image) -> list[float]:
        """Probabilities of an uploaded image."""
        pixels = np.asarray(image.convert("RGB"))[None]
        return self.network(pixels)[0].tolist()  # type: ignore[no-any-return]

    @bentoml.api(**BATCHING)  # type: ignore[untyped-decorator]
    def tensor(self, pixels: Annotated[np.ndarray, DType("uint8")]) -> np.ndarray:
        """Probabilities `[N, classes]` of uint8 `[N, H, W, 3]`."""
        return self.network(pixels)
