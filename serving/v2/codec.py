"""Requests and responses of the Open Inference Protocol V2 as bytes, with Triton's binary tensors and classification.

A request is a JSON object; with the header `Inference-Header-Content-Length` it is followed by the raw little-endian
bytes of the inputs that have a parameter `binary_data_size`. Everything is checked against what the model takes before
any memory is spent on it, and what is wrong is answered by its name.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import struct
import zlib
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from serving.errors import RequestError, quoted
from serving.v2 import fields, inputs
from serving.v2.fields import PROBABILITIES, Expected, flag, invalid, json_of, object_of, parameters_of, shown

ENCODINGS = ("gzip", "x-gzip", "deflate", "identity")
MAX_ID = 256
_MAX_MEMBERS, _PIECE_BYTES = 1024, 16_384  # of gzip
_PLANNED_BYTES = 1024  # of JSON that is worth remembering
_REQUEST = ("id", "model_name", "model_version", "parameters", "inputs", "outputs")  # KServe's client adds the names
_OUTPUT = ("name", "parameters")


@dataclass(frozen=True)
class Wanted:
    """An output as it was asked for; `classification` is the number of likeliest classes, 0 for the tensor itself."""

    name: str
    binary: bool
    classification: int = 0


@dataclass(frozen=True)
class Inference:
    """A request that was understood: uint8 `[N, H, W, 3]` in `images`, or N encoded images in `encoded`."""

    id: str | None
    images: NDArray[np.uint8] | None
    encoded: list[bytes]
    outputs: list[Wanted]
    timeout_s: float | None = None
    parameters: dict[str, Any] = field(default_factory=dict)


def decompress(body: bytes, encoding: str, limit: int) -> bytes:
    """A request body as it was before its `Content-Encoding`, of at most `limit` bytes.

    Raises:
        RequestError: 415 `content_encoding_unsupported`, 413 `body_too_large`, 400 `body_undecodable`.
    """
    encoding = encoding.strip().lower()
    if encoding in ("", "identity"):
        return body
    if encoding not in ENCODINGS:
        known = ", ".join(ENCODINGS)
        sentence = f"the content encoding is {quoted(encoding)}; known are: {known}"
        raise RequestError(415, "content_encoding_unsupported", sentence, {"accept-encoding": known})
    try:
        return _inflated(body, encoding, limit)
    except zlib.error:
        raise invalid(f"the body is not {encoding} as its content encoding says", "body_undecodable") from None


def _inflated(body: bytes, encoding: str, limit: int) -> bytes:
    """The plain bytes of a zlib stream, or of the members of a gzip file one behind the other (RFC 1952)."""
    window = 16 + zlib.MAX_WBITS
    if encoding == "deflate":
        bare = len(body) < 2 or body[0] & 15 != 8 or (body[0] << 8 | body[1]) % 31  # no zlib header, as some send it
        window = -zlib.MAX_WBITS if bare else zlib.MAX_WBITS
    plain, rest, streams = bytearray(), memoryview(body), 0
    while rest or not streams:
        if streams == (1 if encoding == "deflate" else _MAX_MEMBERS):
            raise invalid(f"the body's {encoding} stream has more behind its end", "body_undecodable")
        decoder, streams = zlib.decompressobj(window), streams + 1
        while rest and not decoder.eof:
            piece = rest[:_PIECE_BYTES]  # what a stream leaves of a piece is copied, so that pieces are small
            plain += decoder.decompress(piece, limit + 1 - len(plain))
            if len(plain) > limit:
                raise RequestError(413, "body_too_large", f"the decompressed body is larger than {limit} bytes")
            rest = rest[len(piece) - len(decoder.unused_data) :]
        if not decoder.eof:
            raise invalid(f"the body's {encoding} stream is truncated", "body_undecodable")
    return bytes(plain)


def parse(body: bytes, header_length: str, expected: Expected) -> Inference:
    """Understands an inference request.

    Raises:
        RequestError: 400; names the field and what it takes.
    """
    if header_length == "0":
        return _raw_request(body, expected)
    size = len(body)
    if header_length:
        if not (header_length.isascii() and header_length.isdecimal() and len(header_length) < 16):
            raise invalid(f"Inference-Header-Content-Length is {quoted(header_length)}; it takes a number of bytes")
        size = int(header_length)
        if size > len(body):
            raise invalid(f"Inference-Header-Content-Length is {size}, but the body has {len(body)} bytes")
    if size < len(body) and size <= _PLANNED_BYTES and (plan := _planned(body[:size], len(body) - size, expected)):
        said, count = plan
        pixels = inputs.pixels(memoryview(body)[size:], count, expected)
        return Inference(said.id, pixels, [], said.outputs, said.timeout_s, said.parameters)
    return _understood(_request(fields.bounded(body[:size], expected)), memoryview(body)[size:], expected)


@functools.lru_cache(maxsize=256)
def _planned(header: bytes, rest: int, expected: Expected) -> tuple[Inference, int] | None:
    """What a request's JSON says that is followed by that many bytes of pixels, and of how many images.

    Clients send the same JSON again and again, and only other pixels. None where the input is another one.
    """
    request = _request(header)
    match request.get("inputs"):
        case [{"name": fields.IMAGES}]:
            said = _understood(request, memoryview(bytes(rest)), expected)
            assert said.images is not None
            return dataclasses.replace(said, images=None), len(said.images)
    return None


def _request(header: bytes) -> dict[str, Any]:
    return object_of(json_of(header), "the request", _REQUEST)


def _understood(request: dict[str, Any], rest: memoryview, expected: Expected) -> Inference:
    for name in ("id", "model_name", "model_version"):
        if request.get(name) is not None and not isinstance(request[name], str):
            raise invalid(f"{name} is no string")
    if len(request.get("id") or "") > MAX_ID:
        raise invalid(f"id is longer than {MAX_ID} characters")
    parameters = parameters_of(request, "the request")
    images, encoded = inputs.read(request, rest, expected)
    outputs = _outputs(request, flag(parameters, "binary_data_output"), expected.classes)
    return Inference(request.get("id"), images, encoded, outputs, _timeout(parameters), parameters)


def _timeout(parameters: dict[str, Any]) -> float | None:
    """Seconds; the parameter is microseconds, Triton's."""
    value = parameters.get("timeout")
    if value is None:
        return None
    if type(value) is not int or value < 0:
        raise invalid(f"the parameter timeout is {shown(value)}; it takes microseconds")
    return min(value, 10**12) / 1e6 if value else None


def _raw_request(body: bytes, expected: Expected) -> Inference:
    """A body that is the one input's data and nothing else, which Triton has for a header length of 0."""
    wanted = [Wanted(PROBABILITIES, binary=False)]
    if body.startswith((b"\x89PNG", b"\xff\xd8\xff", b"RIFF")):
        return Inference(None, None, [body], wanted)
    count = len(body) // expected.image_bytes
    if not count or len(body) % expected.image_bytes:
        raise invalid(
            f"the raw body has {len(body)} bytes; it takes a PNG, JPEG or WebP, or a multiple of {expected.image_bytes}"
        )
    inputs.count_of(count, expected)
    return Inference(None, inputs.pixels(body, count, expected), [], wanted)


# --- outputs ---------------------------------------------------------------------------------------------------------


def _outputs(request: dict[str, Any], binary: bool, classes: int) -> list[Wanted]:
    outputs = request.get("outputs")
    if outputs is not None and not isinstance(outputs, list):
        raise invalid("the request has outputs that are no list")
    if not outputs:
        return [Wanted(PROBABILITIES, binary)]
    if len(outputs) > 1:
        raise invalid(f"the request asks for {len(outputs)} outputs; there is one, {PROBABILITIES!r}", "output_unknown")
    output = object_of(outputs[0], "an output", _OUTPUT)
    if output.get("name") != PROBABILITIES:
        asked = shown(output.get("name"))
        raise invalid(f"there is no output {asked}; there is one, {PROBABILITIES!r}", "output_unknown")
    parameters = parameters_of(output, "an output")
    count = parameters.get("classification", 0)
    if type(count) is not int or count < 0:
        raise invalid(f"the parameter classification is {shown(count)}; it takes a number of classes")
    if "binary_data" in parameters:
        binary = flag(parameters, "binary_data")
    return [Wanted(PROBABILITIES, binary, min(count, classes))]


def encode(
    inference: Inference, model: str, version: str, classes: list[str], probabilities: NDArray[np.float32]
) -> tuple[bytes, int | None]:
    """The response to float32 `[N, classes]`, and the length of its JSON where binary data follow."""
    first = inference.outputs[0]
    if inference.id is None and first.binary and not first.classification:
        header = _binary_header(model, version, len(probabilities), len(classes))
        return header + np.ascontiguousarray(probabilities, "<f4").tobytes(), len(header)
    outputs, tail = [], b""
    for wanted in inference.outputs:
        if wanted.classification:
            output, raw = _classification(probabilities, classes, wanted)
        else:
            output = {"name": wanted.name, "datatype": "FP32", "shape": list(probabilities.shape)}
            raw = np.ascontiguousarray(probabilities, "<f4").tobytes() if wanted.binary else b""
            if not wanted.binary:
                output["data"] = probabilities.ravel().tolist()
        if wanted.binary:
            output["parameters"] = {"binary_data_size": len(raw)}
            tail += raw
        outputs.append(output)
    header = _response(model, version, inference.id, outputs)
    return header + tail, len(header) if any(wanted.binary for wanted in inference.outputs) else None


@functools.lru_cache(maxsize=256)
def _binary_header(model: str, version: str, rows: int, classes: int) -> bytes:
    parameters = {"binary_data_size": 4 * rows * classes}
    output = {"name": PROBABILITIES, "datatype": "FP32", "shape": [rows, classes], "parameters": parameters}
    return _response(model, version, None, [output])


def _response(model: str, version: str, request_id: str | None, outputs: list[dict[str, Any]]) -> bytes:
    told: dict[str, Any] = {"model_name": model, "model_version": version}
    if request_id is not None:
        told["id"] = request_id
    return json.dumps({**told, "outputs": outputs}, separators=(",", ":")).encode("ascii")


def _classification(
    probabilities: NDArray[np.float32], classes: list[str], wanted: Wanted
) -> tuple[dict[str, Any], bytes]:
    """Triton's strings `<probability>:<index>:<class>`, the likeliest first."""
    order = np.argsort(-probabilities, axis=1, kind="stable")[:, : wanted.classification]
    found = [
        f"{row[index]:f}:{index}:{classes[index]}"
        for row, top in zip(probabilities, order, strict=True)
        for index in top
    ]
    output: dict[str, Any] = {"name": wanted.name, "datatype": "BYTES", "shape": list(order.shape)}
    if not wanted.binary:
        return {**output, "data": found}, b""
    encoded = [text.encode() for text in found]
    return output, b"".join(struct.pack("<I", len(text)) + text for text in encoded)
