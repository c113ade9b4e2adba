"""Every setting of the service, in one place: a field, its default, and the environment variable that overrides it.

The variable is `MODELKILN_` and the field's name in capitals: `MODELKILN_MAX_BODY_BYTES=1048576 bentoml serve`.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from catalog import ROOT, KilnError

PREFIX = "MODELKILN_"


@dataclass(frozen=True)
class Settings:
    """What an operator may change. Sizes are bytes, times seconds, unless the name says otherwise."""

    store: Path = ROOT / "artifacts"
    zoo: Path = ROOT / "zoo"  # what ships with the project; a model in `store` hides its namesake here
    model: str = ""  # answers where a request names none; "" is the most accurate one
    workers: int = 1  # processes that share the port
    threads: int = 1  # of a runtime, for one inference; workers x threads should not exceed the cores
    max_body_bytes: int = 8 * 1024 * 1024
    max_pixels: int = 25_000_000  # of an uploaded image, known from its header before it is decoded
    body_timeout_s: float = 10.0  # for a whole request body to arrive
    top: int = 5  # classes in an answer, where a request names no number
    inline_ms: float = 2.0  # work expected to be shorter runs on the event loop, longer work in the thread pool
    pool_threads: int = 2

    def __post_init__(self) -> None:
        """Refuses numbers that no service can run with.

        Raises:
            KilnError: Names the setting, what it was given and what it takes.
        """
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if isinstance(value, int | float) and not 0 < value < float("inf"):
                raise KilnError(f"{PREFIX}{field.name.upper()} is {value}; it takes a number above 0")

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> Settings:
        """The defaults, overridden by the `MODELKILN_*` variables that are set and not empty.

        Raises:
            KilnError: A variable's value is not of the field's type.
        """
        given: dict[str, Path | str | int | float] = {}
        for field in dataclasses.fields(cls):
            name = PREFIX + field.name.upper()
            if text := environment.get(name, ""):
                given[field.name] = _parse(name, text, type(getattr(cls, field.name)))
        return dataclasses.replace(cls(), **given)  # type: ignore[arg-type]


def _parse(name: str, text: str, kind: Callable[[str], Path | str | int | float]) -> Path | str | int | float:
    try:
        return kind(text)
    except ValueError:
        noun = {int: "a whole number", float: "a number"}.get(kind, "text")  # type: ignore[call-overload]
        raise KilnError(f"{name} is {text[:80]!r}; it takes {noun}") from None
