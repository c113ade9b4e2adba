"""Reads from an ONNX file, without the onnx package, what has to be known before a runtime may see it.

Serving has no onnx package, and ONNX Runtime itself opens whatever files a model's external data names. An ONNX file
is a protocol buffer: fields of (number << 3 | wire type), of which only a handful matter here. The numbers are those
of onnx.proto.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

_MODEL_IR, _MODEL_GRAPH, _MODEL_OPSET, _MODEL_FUNCTION = 1, 7, 8, 25
_EXTERNAL_DATA, _DATA_LOCATION = 13, 14  # of TensorProto; location 1 is EXTERNAL
_MAX_DEPTH = 16
# message -> field number -> message within it, as far as tensors can hide there
_NESTED = {
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
    "function": {7: "node", 11: "attribute"},
}


@dataclass
class Header:
    """IR version, operator set version by domain, and whether any tensor's data lies in another file."""

    ir_version: int = 0
    opsets: dict[str, int] = field(default_factory=dict)
    external: bool = False
    graphs: int = 0


def read_header(content: bytes) -> Header:
    """What an ONNX file says of itself.

    Raises:
        ValueError: It is no protocol buffer, is cut short, or nests too deeply.
    """
    header = Header()
    for number, value in _fields(memoryview(content)):
        if number == _MODEL_IR and isinstance(value, int):
            header.ir_version = value
        elif number == _MODEL_OPSET and not isinstance(value, int):
            domain, version = _opset(value)
            header.opsets[domain] = version
        elif number in (_MODEL_GRAPH, _MODEL_FUNCTION) and not isinstance(value, int):
            header.graphs += number == _MODEL_GRAPH
            header.external |= _external(value, "graph" if number == _MODEL_GRAPH else "function", 0)
    return header


def _opset(message: memoryview) -> tuple[str, int]:
    domain, version = "", 0
    for number, value in _fields(message):
        if number == 1 and not isinstance(value, int):
            domain = bytes(value).decode()
        elif number == 2 and isinstance(value, int):
            version = value
    return domain, version


def _external(message: memoryview, kind: str, depth: int) -> bool:
    if depth > _MAX_DEPTH:
        raise ValueError("graphs within graphs, too deep")
    if kind == "tensor":
        return any(n == _EXTERNAL_DATA or (n == _DATA_LOCATION and v == 1) for n, v in _fields(message))
    inner = _NESTED[kind]
    return any(
        _external(value, inner[number], depth + 1)
        for number, value in _fields(message)
        if number in inner and not isinstance(value, int)
    )


def _fields(message: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """Every (field number, value) of a message: varints and fixed numbers as int, the rest as its bytes."""
    at, end = 0, len(message)
    while at < end:
        key, at = _varint(message, at)
        number, wire = key >> 3, key & 7
        if wire == 0:
            value, at = _varint(message, at)
            yield number, value
            continue
        if wire == 2:
            size, at = _varint(message, at)
        elif wire in (1, 5):
            size = 8 if wire == 1 else 4
        else:
            raise ValueError("not an ONNX file")
        if number == 0 or at + size > end:
            raise ValueError("cut short or not an ONNX file")
        part = message[at : at + size]
        yield number, part if wire == 2 else int.from_bytes(part, "little")
        at += size


def _varint(message: memoryview, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(message):
            raise ValueError("cut short")
        byte = message[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
    raise ValueError("not an ONNX file")
