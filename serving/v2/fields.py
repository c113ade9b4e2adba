"""The words of V2 requests, and their JSON as far as any field is alike."""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass
from typing import Any

from serving.errors import RequestError, quoted

IMAGES, ENCODED, PROBABILITIES = "images", "encoded", "probabilities"


@dataclass(frozen=True)
class Expected:
    """What a model takes: images of this height and width, so many in a request; and how many classes it knows."""

    height: int
    width: int
    classes: int
    max_images: int

    @property
    def image_bytes(self) -> int:
        """Of one image's pixels."""
        return self.height * self.width * 3

    @functools.cached_property
    def marks(self) -> dict[bytes, int]:
        """How often JSON of so many images can need the marks that cost time and memory to read, with some to spare."""
        lists = self.max_images * (1 + self.height * (1 + self.width))  # nested as the shape says
        commas = lists + self.max_images * self.image_bytes
        few = 1024  # of a request's own fields and parameters
        return {b"[": lists + 64, b"{": 64, b",": commas + few, b":": few, b'"': 4 * self.max_images + few}


def invalid(what: str, code: str = "request_invalid") -> RequestError:
    """A 400 about the request's content."""
    return RequestError(400, code, what)


def shown(value: Any) -> str:
    """Somebody else's JSON value for a message: short, whatever it holds."""
    if isinstance(value, list | dict):
        return "a list" if isinstance(value, list) else "an object"
    return quoted(str(value))


def bounded(text: bytes, expected: Expected) -> bytes:
    """JSON that can be read in bounded time: a list of empty lists takes a second where its bytes are the limit's.

    Raises:
        RequestError: 400 `json_invalid`; there is more in it than a request needs.
    """
    for mark, most in expected.marks.items():
        if text.count(mark) > most:
            sentence = f"the JSON has {mark.decode()} more than {most} times, the most that a request"
            raise invalid(f"{sentence} of {expected.max_images} images needs", "json_invalid")
    return text


def json_of(text: bytes) -> Any:
    """A JSON document, which has neither NaN nor Infinity.

    Raises:
        RequestError: 400 `json_invalid`, with the place.
    """
    try:
        return json.loads(text.decode("utf-8"), parse_constant=_no_constant)
    except RecursionError:
        raise invalid("the JSON is nested too deeply", "json_invalid") from None
    except ValueError as error:  # of UTF-8 too
        found = isinstance(error, json.JSONDecodeError)
        where = f"line {error.lineno} column {error.colno}: {error.msg}" if found else str(error)  # type: ignore[attr-defined]
        raise invalid(f"the request is not JSON: {where[:160]}", "json_invalid") from None


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is no number in JSON")


def object_of(value: Any, what: str, known: tuple[str, ...]) -> dict[str, Any]:
    """The value, once it is an object of known fields."""
    if not isinstance(value, dict):
        raise invalid(f"{what} is no JSON object")
    for name in value:
        if name not in known:
            raise invalid(f"{what} has the unknown field {quoted(name)}; known are: {', '.join(known)}")
    return value


def parameters_of(of: dict[str, Any], what: str) -> dict[str, Any]:
    """The parameters of a request, an input or an output."""
    found = of.get("parameters")
    if found is None:
        return {}
    if not isinstance(found, dict):
        raise invalid(f"the parameters of {what} are no JSON object")
    for name in found:
        if name.startswith("shared_memory"):
            raise invalid(f"{what} has the parameter {quoted(name)}; shared memory is not offered here")
    return found


def flag(parameters: dict[str, Any], name: str) -> bool:
    """A parameter that is true or false; absent it is false."""
    value = parameters.get(name, False)
    if not isinstance(value, bool):
        raise invalid(f"the parameter {name} is {shown(value)}; it takes true or false")
    return value


def fields_of(body: bytes, *known: str) -> dict[str, Any]:
    """A small JSON object of known fields.

    Raises:
        RequestError: 400; it is none, or has others.
    """
    return object_of(json_of(body), "the request", known)
