"""The one input of a V2 request: pixels or encoded images, in JSON or binary."""

from __future__ import annotations

import base64
import binascii
import math
import struct
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray

from serving.v2.fields import ENCODED, IMAGES, Expected, invalid, object_of, parameters_of, shown

_INPUT = ("name", "shape", "datatype", "parameters", "data")


def read(request: dict[str, Any], rest: memoryview, expected: Expected) -> tuple[NDArray[np.uint8] | None, list[bytes]]:
    """The one input: uint8 `[N, H, W, 3]`, or N encoded images; `rest` is what follows the JSON.

    Raises:
        RequestError: 400; names the field and what it takes.
    """
    inputs = request.get("inputs")
    takes = f"it takes one input: {IMAGES!r} (UINT8) or {ENCODED!r} (BYTES)"
    if not isinstance(inputs, list):
        raise invalid(f"the request {'has inputs that are no list' if inputs is not None else 'lacks inputs'}; {takes}")
    if len(inputs) != 1:
        raise invalid(f"the request has {len(inputs)} inputs; {takes}")
    tensor = object_of(inputs[0], "an input", _INPUT)
    name, shape, datatype = (_field(tensor, field) for field in ("name", "shape", "datatype"))
    if name not in (IMAGES, ENCODED):
        raise invalid(f"there is no input {shown(name)}; {takes}", "input_unknown")
    shape = _shape(shape, name)
    right = "UINT8" if name == IMAGES else "BYTES"
    if datatype != right:
        raise invalid(f"the input {name!r} has the datatype {shown(datatype)}; it takes {right}", "input_invalid")
    raw = _raw(tensor, rest)
    if name == IMAGES:
        return _images(shape, tensor.get("data"), raw, expected), []
    return None, _encoded(shape, tensor.get("data"), raw, expected)


def _field(tensor: dict[str, Any], name: str) -> Any:
    if name not in tensor:
        raise invalid(f"an input lacks the field {name!r}")
    return tensor[name]


def _shape(shape: Any, name: str) -> list[int]:
    if not isinstance(shape, list) or len(shape) > 8 or not all(type(side) is int and side >= 0 for side in shape):
        raise invalid(f"the shape of {name!r} is {shown(shape)}; it takes a short list of whole numbers")
    return shape


def _raw(tensor: dict[str, Any], rest: memoryview) -> memoryview | None:
    """The binary data of the one input, which all of the body behind the JSON must be."""
    size = parameters_of(tensor, "an input").get("binary_data_size")
    if size is None:
        if len(rest):
            raise invalid(f"{len(rest)} bytes follow the JSON, but no input has the parameter binary_data_size")
        return None
    if type(size) is not int or size < 0:
        raise invalid(f"binary_data_size is {shown(size)}; it takes a number of bytes")
    if tensor.get("data") is not None:
        raise invalid("an input has both data and binary_data_size")
    if size != len(rest):
        raise invalid(f"binary_data_size is {size}, but {len(rest)} bytes follow the JSON", "input_invalid")
    return rest


def count_of(count: int, expected: Expected) -> None:
    """Lets through as many images as one request may have.

    Raises:
        RequestError: 400 `images_too_many`.
    """
    if count > expected.max_images:
        sentence = f"the request has {count} images; at most {expected.max_images} are taken at a time"
        raise invalid(sentence, "images_too_many")


def _images(shape: list[int], data: Any, raw: memoryview | None, expected: Expected) -> NDArray[np.uint8]:
    takes = f"[N, {expected.height}, {expected.width}, 3]"
    if len(shape) != 4 or shape[1:] != [expected.height, expected.width, 3] or shape[0] < 1:
        raise invalid(f"the shape of {IMAGES!r} is {shape}; it takes {takes}", "input_invalid")
    count_of(shape[0], expected)
    size = shape[0] * expected.image_bytes
    if raw is None:
        raw = memoryview(_whole_numbers(data, shape, size))
    if len(raw) != size:
        raise invalid(f"{IMAGES!r} of the shape {shape} takes {size} bytes, not {len(raw)}", "input_invalid")
    return pixels(raw, shape[0], expected)


def pixels(raw: memoryview | bytes, count: int, expected: Expected) -> NDArray[np.uint8]:
    """uint8 `[count, H, W, 3]` over bytes of just that number, which are not copied."""
    return np.frombuffer(raw, np.uint8).reshape(count, expected.height, expected.width, 3)


def _whole_numbers(data: Any, shape: list[int], size: int) -> bytes:
    flat = _flat(data, shape, IMAGES)
    if len(flat) != size:
        raise invalid(f"{IMAGES!r} of the shape {shape} takes {size} numbers, not {len(flat)}", "input_invalid")
    try:
        if set(map(type, flat)) == {int}:
            return bytes(flat)
    except ValueError:
        pass
    raise invalid(f"{IMAGES!r} is UINT8: it takes whole numbers from 0 to 255", "input_invalid")


def _flat(data: Any, shape: list[int], name: str) -> list[Any]:
    """The data in row-major order, whether it was flat or nested as the shape says."""
    if not isinstance(data, list):
        what = "lacks data" if data is None else "has data that are no list"
        raise invalid(f"the input {name!r} {what}", "input_invalid")
    flat, level = data, 0
    while flat and isinstance(flat[0], list):
        sides = {len(item) if isinstance(item, list) else -1 for item in flat}
        if level + 1 >= len(shape) or len(flat) != math.prod(shape[: level + 1]) or sides != {shape[level + 1]}:
            raise invalid(f"the data of {name!r} are not nested as its shape {shape} says", "input_invalid")
        flat, level = list(chain.from_iterable(flat)), level + 1
    if level and level + 1 != len(shape):
        raise invalid(f"the data of {name!r} are not nested as its shape {shape} says", "input_invalid")
    return flat


def _encoded(shape: list[int], data: Any, raw: memoryview | None, expected: Expected) -> list[bytes]:
    if len(shape) not in (1, 2) or shape[1:] not in ([], [1]) or shape[0] < 1:
        raise invalid(f"the shape of {ENCODED!r} is {shape}; it takes [N] or [N, 1]", "input_invalid")
    count_of(shape[0], expected)
    found = _elements(raw) if raw is not None else [_base64(text) for text in _flat(data, shape, ENCODED)]
    if len(found) != shape[0]:
        raise invalid(f"{ENCODED!r} of the shape {shape} has {len(found)} elements", "input_invalid")
    return found


def _elements(raw: memoryview) -> list[bytes]:
    """Of a binary BYTES tensor: each behind its length in four little-endian bytes."""
    found, at = [], 0
    while at < len(raw):
        if at + 4 > len(raw):
            raise invalid(f"{ENCODED!r} ends within the length of an element", "input_invalid")
        (length,) = struct.unpack_from("<I", raw, at)
        at += 4 + length
        if at > len(raw):
            raise invalid(f"{ENCODED!r} has an element of {length} bytes that its data do not hold", "input_invalid")
        found.append(bytes(raw[at - length : at]))
    return found


def _base64(text: Any) -> bytes:
    try:
        if isinstance(text, str):
            return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        pass
    raise invalid(f"{ENCODED!r} takes images in base64 where it is JSON, or binary data", "input_invalid")
