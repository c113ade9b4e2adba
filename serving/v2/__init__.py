"""The Open Inference Protocol V2 at `/v2`: KServe's REST standard with Triton's extensions.

These are binary tensors, classification, model configuration, statistics and the model repository. Models are the
networks, versions their variants; without a version the chosen one answers, or its canary.
"""

from __future__ import annotations

import asyncio
import dataclasses
import math
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from serving.decoding import Images
from serving.errors import RequestError, quoted
from serving.http.web import RAW_TYPES, Answer, Request, Route
from serving.models.library import Library
from serving.models.repository import Model, Served
from serving.models.steering import Steering
from serving.settings import Settings
from serving.v2 import codec, metadata
from serving.v2.fields import Expected, fields_of, invalid

_TYPES = ("application/json", *RAW_TYPES)
_SEND = "send application/json, or application/octet-stream with binary data"
_MODEL = "/v2/models/{model}"
_VERSION = _MODEL + "/versions/{version}"
_MAX_CONTROL_BYTES = 4096


class V2:
    """Handlers over one library."""

    def __init__(
        self, library: Library, settings: Settings, images: Images, draining: Callable[[], bool] = lambda: False
    ) -> None:
        self._library, self._settings, self._images, self._draining = library, settings, images, draining
        self._steering = Steering(library)

    def routes(self) -> list[Route]:
        """The table for `web.Router`, the one for many requests first."""
        about = [
            ("POST", "/infer", self.infer),
            ("GET", "", self.metadata),
            ("GET", "/ready", self.model_ready),
            ("GET", "/config", self.config),
            ("GET", "/stats", self.statistics),
        ]
        repository = "/v2/repository/models/{model}"
        return [
            *(Route(method, path + end, handler) for method, end, handler in about for path in (_MODEL, _VERSION)),
            Route("GET", "/v2", self.server),
            Route("GET", "/v2/health/live", self.live),
            Route("GET", "/v2/health/ready", self.ready),
            Route("GET", "/v2/models", self.models),
            Route("GET", "/v2/models/stats", self.all_statistics),
            Route("POST", "/v2/repository/index", self.index),
            Route("POST", f"{repository}/load", self.load),
            Route("POST", f"{repository}/unload", self.unload),
            Route("POST", f"{repository}/rollback", self.rollback),
        ]

    # --- inference ---------------------------------------------------------------------------------------------------

    async def infer(self, request: Request) -> Answer:
        """Answers an inference request by one variant, together with others' images where there are any."""
        request.query()
        model = self._library.model(request.params["model"])
        version = request.params.get("version", "")
        served, record = model.pick(version), request.record
        record.model, record.version = model.card.model, served.version
        request.media(_TYPES, _SEND)
        info, settings = model.card.dataset, self._settings
        expected = Expected(info.height, info.width, len(info.classes), settings.max_batch)
        with served.lane:
            body = await request.body(settings.max_body_bytes, settings.body_timeout_s)
            begun = time.perf_counter()
            if encoding := request.header(b"content-encoding"):
                body = codec.decompress(body, encoding, settings.max_body_bytes)
            inference = codec.parse(body, request.header(b"inference-header-content-length"), expected)
            del body  # which encoded images are copied from, and pixels keep
            pixels = inference.images
            if pixels is None:
                pixels = await self._images.pixels(inference.encoded, info.height, info.width)
            record.decode_s = time.perf_counter() - begun
            outcome = await served.lane.run(pixels, inference.timeout_s, request.gone)
        probabilities = outcome.probabilities
        record.images, record.queue_s, record.compute_s = len(pixels), outcome.queue_s, outcome.compute_s
        record.tops += tops(probabilities, info.classes)
        self._library.answered(model, served, bool(version), pixels, probabilities)
        content, header = codec.encode(inference, model.card.model, served.version, info.classes, probabilities)
        if header is None:
            return Answer(content)
        headers = {"inference-header-content-length": str(header)}
        return Answer(content, headers=headers, media="application/octet-stream")

    # --- what there is -----------------------------------------------------------------------------------------------

    async def server(self, request: Request) -> Answer:
        """The server's name, version and extensions."""
        request.query()
        return Answer(metadata.server())

    async def live(self, request: Request) -> Answer:
        """Whether the process runs, which it does if it answers."""
        request.query()
        return Answer({"live": True})

    async def ready(self, request: Request) -> Answer:
        """Whether every model is loaded and the end has not begun."""
        request.query()
        if self._draining():
            raise RequestError(503, "draining", "this worker is ending")
        return Answer({"ready": True})

    async def models(self, request: Request) -> Answer:
        """The names of the models that are loaded, as KServe's server lists them."""
        request.query()
        return Answer({"models": list(self._library.models)})

    async def model_ready(self, request: Request) -> Answer:
        """Whether a model, or one of its variants, is loaded."""
        model, served = self._named(request)
        return Answer({"name": model.card.model, "version": served.version, "ready": True})

    async def metadata(self, request: Request) -> Answer:
        """What a model takes and gives."""
        return Answer(metadata.metadata(*self._named(request)))

    async def config(self, request: Request) -> Answer:
        """A model's configuration, in the words of Triton."""
        return Answer(metadata.config(*self._named(request), self._settings.max_batch))

    async def statistics(self, request: Request) -> Answer:
        """What the variants of a model, or one of them, have done in this worker."""
        model, served = self._named(request)
        chosen = [served] if "version" in request.params else list(model.variants.values())
        return Answer({"model_stats": [metadata.statistics(model, one) for one in chosen]})

    async def all_statistics(self, request: Request) -> Answer:
        """What every variant has done in this worker."""
        request.query()
        pairs = [(model, served) for model in self._library.models.values() for served in model.variants.values()]
        return Answer({"model_stats": [metadata.statistics(*pair) for pair in pairs]})

    def _named(self, request: Request) -> tuple[Model, Served]:
        request.query()
        model = self._library.model(request.params["model"])
        return model, model.variant(request.params.get("version", ""))

    # --- the repository ----------------------------------------------------------------------------------------------

    async def index(self, request: Request) -> Answer:
        """Every variant that is loaded and every model that is not; `{"ready": true}` leaves the latter out."""
        request.query()
        told = await self._told(request, "ready")
        if not isinstance(ready := told.get("ready", False), bool):
            raise invalid("ready takes true or false")
        entries = await asyncio.to_thread(self._library.index)
        return Answer([dataclasses.asdict(entry) for entry in entries if entry.state == "READY" or not ready])

    async def load(self, request: Request) -> Answer:
        """Loads a model from the store, or loads it anew."""
        name = await self._controlled(request)
        await self._steering.load(name)
        return Answer({})

    async def unload(self, request: Request) -> Answer:
        """Takes a model out of service."""
        name = await self._controlled(request, "unload_dependents")
        await self._steering.unload(name)
        return Answer({})

    async def rollback(self, request: Request) -> Answer:
        """Serves what was served of a model before its last change; an extension of our own."""
        name = await self._controlled(request)
        await self._steering.rollback(name)
        return Answer({"name": name, "version": self._library.model(name).default})

    async def _controlled(self, request: Request, *parameters: str) -> str:
        request.query()
        if self._settings.control != "on":
            sentence = "models are not loaded and unloaded by request here; start the service with MODELKILN_CONTROL=on"
            raise RequestError(403, "control_off", sentence)
        told = (await self._told(request, "parameters")).get("parameters", {})
        if not isinstance(told, dict):
            raise invalid("parameters is no JSON object")
        for name in told:
            if name not in parameters:
                sentence = f"parameters has {quoted(name)}; a model is loaded as the store has it"
                raise invalid(sentence)
        return request.params["model"]

    async def _told(self, request: Request, *fields: str) -> dict[str, Any]:
        body = await request.body(_MAX_CONTROL_BYTES, self._settings.body_timeout_s)
        return fields_of(body, *fields) if body else {}


def tops(probabilities: NDArray[np.float32], classes: list[str]) -> list[tuple[str, float]]:
    """Each image's likeliest class and its probability.

    Raises:
        RequestError: 500 `model_output_invalid`; a probability is not finite.
    """
    if not math.isfinite(float(probabilities.sum())):  # one of them is not
        raise RequestError(500, "model_output_invalid", "the model's output for these images is not finite")
    best, highest = probabilities.argmax(axis=1).tolist(), probabilities.max(axis=1).tolist()
    return [(classes[index], probability) for index, probability in zip(best, highest, strict=True)]
