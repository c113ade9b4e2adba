"""Whole requests as bytes, for `benchmarks.load.wire` to send."""

from __future__ import annotations

import functools
import io
import json
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.load.plan import INT8
from benchmarks.load.wire import request
from catalog import ROOT

SAMPLE = ROOT / "serving" / "page" / "samples" / "cifar10" / "truck.png"
BYTES = {"content-type": "application/octet-stream"}


def form(path: str, field: str, content: bytes, kind: str) -> bytes:
    """An upload of one file, of the content type `kind`, as a form has it."""
    head = f'--b\r\nContent-Disposition: form-data; name="{field}"; filename="image"\r\nContent-Type: {kind}\r\n\r\n'
    body = head.encode() + content + b"\r\n--b--\r\n"
    return request(path, body, {"content-type": "multipart/form-data; boundary=b"})


def v2(model: str, version: str, images: NDArray[Any]) -> bytes:
    """A V2 request with a binary tensor in and out; the images are uint8 `[N, H, W, 3]`."""
    tensor = images.astype(np.uint8, copy=False).tobytes()
    size = {"binary_data_size": len(tensor)}
    given = {"name": "images", "shape": images.shape, "datatype": "UINT8", "parameters": size}
    wanted = {"name": "probabilities", "parameters": {"binary_data": True}}
    header = json.dumps({"inputs": [given], "outputs": [wanted]}).encode()
    headers = {**BYTES, "inference-header-content-length": str(len(header))}
    return request(f"/v2/models/{model}/versions/{version}/infer", header + tensor, headers)


@functools.cache
def sample() -> bytes:
    """A PNG of the networks' size, as a user of theirs would send it."""
    from PIL import Image

    buffer = io.BytesIO()
    with Image.open(SAMPLE) as image:
        image.convert("RGB").resize((32, 32)).save(buffer, "PNG")
    return buffer.getvalue()


def png(model: str) -> bytes:
    """A raw upload of a sample image for a network's int8 variant."""
    return request(f"/predict?model={model}&version={INT8}", sample(), {"content-type": "image/png"})


def upload(path: str) -> bytes:
    """The same as a form."""
    return form(path, "image", sample(), "image/png")


def noise(count: int) -> NDArray[Any]:
    """uint8 `[count, 32, 32, 3]`."""
    return np.random.default_rng(count).integers(0, 256, (count, 32, 32, 3), np.uint8)
