"""The service's own routes: `POST /predict`, `GET /models`, `GET /models/{model}`."""

from __future__ import annotations

import dataclasses
import time
from typing import Any

import numpy as np
from numpy.typing import NDArray

from catalog import Measurement
from serving.decoding import Images
from serving.errors import RequestError, quoted
from serving.http import multipart
from serving.http.web import RAW_TYPES, Answer, Request, Route
from serving.models.choice import measured
from serving.models.library import Library
from serving.models.repository import Model, Served
from serving.routes import many
from serving.settings import Settings

_TYPES = ("multipart/form-data", "image/*", *RAW_TYPES)
_SEND = "send multipart/form-data with a field 'image', or the image itself as image/* or application/octet-stream"
_LOCAL = {"root", "command"}  # fields of cards that hold paths of the machine that made them


class Api:
    """Handlers over one library."""

    def __init__(self, library: Library, settings: Settings, images: Images) -> None:
        self._library, self._settings, self._images = library, settings, images
        self._measured: dict[str, dict[str, Measurement]] = {}

    def routes(self) -> list[Route]:
        """The table for `web.Router`."""
        return [
            Route("POST", "/predict", self.predict),
            Route("POST", "/predict/batch", self.predict_batch),
            Route("GET", "/models", self.models),
            Route("GET", "/models/{model}", self.model),
        ]

    async def predict(self, request: Request) -> Answer:
        """Classifies one image: a form's field `image`, or the body itself; `?model=&version=&top=`."""
        begun = time.perf_counter()
        query = request.query("model", "version", "top")
        model = self._library.model(query.get("model", ""))
        served = model.pick(query.get("version", ""))
        record = request.record
        record.model, record.version = model.card.model, served.version
        top = _top(query.get("top", ""), self._settings.top, len(model.card.dataset.classes))
        form = request.media(_TYPES, _SEND) == "multipart/form-data"
        info = model.card.dataset
        with served.lane:
            body = await request.body(self._settings.max_body_bytes, self._settings.body_timeout_s)
            received = time.perf_counter()
            if form:  # in place of the body, which would be held twice
                body = multipart.only_field(request.header(b"content-type"), body, "image")
            pixels = await self._images.pixels([body], info.height, info.width)
            decoded = time.perf_counter()
            outcome = await served.lane.run(pixels, gone=request.gone)
        record.images, record.decode_s = 1, decoded - received
        record.queue_s, record.compute_s = outcome.queue_s, outcome.compute_s
        predictions = ranked(outcome.probabilities, model.card.dataset.classes, top)
        self._library.answered(model, served, "version" in query, pixels, outcome.probabilities)
        record.tops.append((predictions[0]["class"], predictions[0]["probability"]))
        return Answer(
            {
                "model": model.card.model,
                "version": served.version,
                "predictions": predictions,
                "milliseconds": {
                    "receive": round(1000 * (received - begun), 3),
                    "decode": round(1000 * (decoded - received), 3),
                    "queue": round(1000 * outcome.queue_s, 3),
                    "compute": round(1000 * outcome.compute_s, 3),
                    "total": round(1000 * (time.perf_counter() - begun), 3),
                },
            }
        )

    async def predict_batch(self, request: Request) -> Answer:
        """Classifies several files of a form, or a uint8 tensor; `?model=&version=&top=&shape=`."""
        begun = time.perf_counter()
        query = request.query("model", "version", "top", "shape")
        model = self._library.model(query.get("model", ""))
        served = model.pick(query.get("version", ""))
        record = request.record
        record.model, record.version = model.card.model, served.version
        top = _top(query.get("top", ""), self._settings.top, len(model.card.dataset.classes))
        with served.lane:
            pixels = await many.Batches(self._settings, self._images).read(request, model, query.get("shape", ""))
            decoded = time.perf_counter()
            outcome = await served.lane.run(pixels, gone=request.gone)
        record.images, record.decode_s = len(pixels), decoded - begun
        record.queue_s, record.compute_s = outcome.queue_s, outcome.compute_s
        rows = outcome.probabilities
        self._library.answered(model, served, "version" in query, pixels, rows)
        results = [ranked(rows[i : i + 1], model.card.dataset.classes, top) for i in range(len(rows))]
        record.tops += [(result[0]["class"], result[0]["probability"]) for result in results]
        times = {"decode": record.decode_s, "queue": outcome.queue_s, "compute": outcome.compute_s}
        return many.answer(model.card.model, served.version, results, begun, times)

    async def models(self, request: Request) -> Answer:
        """Every model, its variants and which of them answers by default."""
        request.query()
        found = self._library.models
        listed = [{"default": name == self._library.default, **self._summary(model)} for name, model in found.items()]
        return Answer({"models": listed})

    async def model(self, request: Request) -> Answer:
        """One model: its card, and the card of every variant."""
        request.query()
        model = self._library.model(request.params["model"])
        variants = [_public(dataclasses.asdict(served.card)) for served in model.variants.values()]
        card = _public(dataclasses.asdict(model.card))
        return Answer({**self._summary(model), "card": card, "variants": variants})

    def _summary(self, model: Model) -> dict[str, Any]:
        info, weights = model.card.dataset, model.card.weights_sha256
        if weights not in self._measured:
            self._measured[weights] = measured(self._settings.results, model.card)
        rows = self._measured[weights]
        return {
            "name": model.card.model,
            "dataset": info.name,
            "classes": info.classes,
            "input": [info.height, info.width, 3],
            "default_version": model.default,
            "versions": [_figures(served, rows.get(served.version)) for served in model.variants.values()],
        }


def _top(text: str, default: int, classes: int) -> int:
    if not text:
        return min(default, classes)
    if not (text.isascii() and text.isdecimal() and len(text) < 7 and int(text) > 0):
        raise RequestError(400, "query_invalid", f"top is {quoted(text)}; it takes a whole number above 0")
    return min(int(text), classes)


def ranked(probabilities: NDArray[np.float32], classes: list[str], top: int) -> list[dict[str, Any]]:
    """The `top` likeliest classes of float32 `[1, classes]`, the first by index among equals.

    Raises:
        RequestError: 500 `model_output_invalid`; a probability is not finite.
    """
    row = probabilities[0]
    if not np.isfinite(row).all():
        raise RequestError(500, "model_output_invalid", "the model's output for this image is not finite")
    order = np.argsort(-row, kind="stable")[:top].tolist()
    return [{"class": classes[index], "probability": round(float(row[index]), 6)} for index in order]


def _figures(served: Served, row: Measurement | None) -> dict[str, Any]:
    card = served.card
    return {
        "version": served.version,
        "format": card.variant.format,
        "precision": card.variant.precision,
        "top1": card.accuracy.top1 if card.accuracy else None,
        "size_bytes": card.size_bytes,
        "warm_ms": round(served.warm_ms, 3),
        "p50_ms": row.p50_ms if row else None,
        "images_per_s": row.images_per_s if row else None,
    }


def _public(card: Any) -> Any:
    if isinstance(card, dict):
        return {key: _public(value) for key, value in card.items() if key not in _LOCAL}
    return card
