"""Whole requests as bytes, for `benchmarks.load.wire` to send."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.load.wire import request

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
