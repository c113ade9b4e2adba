"""`POST /predict/batch`: many images in one request, encoded or as one tensor."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
from numpy.typing import NDArray

from serving.decoding import Images
from serving.errors import RequestError, quoted
from serving.http import multipart
from serving.http.web import RAW_TYPES, Answer, Request
from serving.models.repository import Model
from serving.settings import Settings

_TYPES = ("multipart/form-data", *RAW_TYPES)
_SEND = (
    "send multipart/form-data with a field 'image' for every image, "
    "or a uint8 tensor as application/octet-stream with ?shape=N,H,W,3"
)


class Batches:
    """Reads a request's images; the models and the decoder are the API's."""

    def __init__(self, settings: Settings, images: Images) -> None:
        self._settings, self._images = settings, images

    async def read(self, request: Request, model: Model, shape: str) -> NDArray[np.uint8]:
        """uint8 `[N, H, W, 3]`: files in a form, or the body itself with its shape in the query.

        Raises:
            RequestError: 400, 413 or 415; what is wrong with the first image that has something wrong, by its place.
        """
        kind = request.media(_TYPES, _SEND)
        info = model.card.dataset
        if kind != "multipart/form-data":
            count = self._count(shape, info.height, info.width)
            body = await request.body(self._settings.max_body_bytes, self._settings.body_timeout_s)
            return tensor(body, (count, info.height, info.width, 3))
        if shape:
            raise RequestError(400, "query_unknown", "shape is for a tensor; these are files")
        body = await request.body(self._settings.max_body_bytes, self._settings.body_timeout_s)
        parts = multipart.parse(request.header(b"content-type"), body, self._settings.max_batch)
        del body  # which the parts are copied from
        return await self._images.pixels(multipart.contents(parts, "image"), info.height, info.width)

    def _count(self, shape: str, height: int, width: int) -> int:
        told = shape.split(",")
        if not all(part.isascii() and part.isdecimal() and len(part) < 7 for part in told) or len(told) != 4:
            sentence = f"shape is {quoted(shape)}; a tensor needs ?shape=N,{height},{width},3"
            raise RequestError(400, "query_invalid", sentence)
        count, *rest = map(int, told)
        if rest != [height, width, 3] or not 1 <= count <= self._settings.max_batch:
            allowed = f"[1 to {self._settings.max_batch}, {height}, {width}, 3]"
            raise RequestError(400, "tensor_invalid", f"shape is {quoted(shape)}; this model takes {allowed}")
        return count


def tensor(body: bytes, shape: tuple[int, ...]) -> NDArray[np.uint8]:
    """The body as uint8 of this shape, in C order.

    Raises:
        RequestError: 400 `tensor_invalid`; it is shorter or longer.
    """
    needed = int(np.prod(shape))
    if len(body) != needed:
        raise RequestError(
            400, "tensor_invalid", f"the body has {len(body)} bytes; uint8 of shape {list(shape)} has {needed}"
        )
    return np.frombuffer(body, np.uint8).reshape(shape)


def answer(
    model: str, version: str, results: list[list[dict[str, Any]]], begun: float, times: dict[str, float]
) -> Answer:
    """The results in the order of the images; `times` are seconds by stage."""
    milliseconds = {stage: round(1000 * taken, 3) for stage, taken in times.items()}
    milliseconds["total"] = round(1000 * (time.perf_counter() - begun), 3)
    return Answer(
        {
            "model": model,
            "version": version,
            "results": [{"predictions": predictions} for predictions in results],
            "milliseconds": milliseconds,
        }
    )
