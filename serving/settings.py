"""Every setting of the service, in one place: a field, its default, and how it is overridden.

By the environment, as `MODELKILN_` and the field's name in capitals: `MODELKILN_MAX_BODY_BYTES=1048576 bentoml serve`;
or by a TOML file that `MODELKILN_SETTINGS` names, with the field's name as key: `max_body_bytes = 1048576`. The
environment wins. `python -m serving settings` prints them all with what is in force.
"""

from __future__ import annotations

import dataclasses
import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from catalog import ROOT, KilnError

PREFIX = "MODELKILN_"
FILE = "MODELKILN_SETTINGS"
ACCESS_LOGS = ("all", "errors", "none")
Value = Path | str | int | float


@dataclass(frozen=True)
class Settings:
    """What an operator may change. Sizes are bytes, times seconds, unless the name says otherwise."""

    store: Path = ROOT / "artifacts"
    zoo: Path = ROOT / "zoo"  # what ships with the project; a model in `store` hides its namesake here
    results: Path = ROOT / "results"  # committed measurements, by which a model's policy picks its variant
    model: str = ""  # answers where a request names none; "" is the most accurate one
    workers: int = 1  # processes that share the port
    threads: int = 1  # of a runtime, for one inference; workers x threads should not exceed the cores
    provider: str = "cpu"  # of ONNX Runtime: cpu, cuda or tensorrt; one that is not active stops the start
    max_body_bytes: int = 8 * 1024 * 1024
    max_pixels: int = 25_000_000  # of an uploaded image, known from its header before it is decoded
    max_batch: int = 256  # images in one request
    max_inflight: int = 96  # requests a worker works on at a time; more get 429 at once
    retry_after_s: float = 1.0  # what a refused client is told to wait
    header_timeout_s: float = 10.0  # for a request's line and headers to arrive
    body_timeout_s: float = 10.0  # for a whole request body to arrive
    keep_alive_s: float = 75.0  # of an idle connection; longer than a load balancer keeps one, which is 60 for most
    write_timeout_s: float = 10.0  # for a client to read on, which has left 64 KiB of its answers unread
    drain_s: float = 0.5  # from SIGTERM, when /readyz turns 503, to the closing of the port
    grace_s: float = 20.0  # from SIGTERM to the end of the process, whatever still runs
    restarts: int = 5  # deaths of workers within a minute after which the service gives up
    token: str = field(default="", repr=False)  # where set, requests need `Authorization: Bearer <token>`
    cors_origins: str = ""  # origins whose pages may ask, separated by commas, or *; "" is none
    access_log: str = "errors"  # requests that get a line in the log: all, errors or none
    top: int = 5  # classes in an answer, where a request names no number
    inline_ms: float = 2.0  # work expected to be shorter runs on the event loop, longer work in the thread pool
    pool_threads: int = 2
    batch_images: int = 32  # of concurrent requests that are computed together
    queue_images: int = 512  # that wait for a variant at most; more get 429
    deadline_s: float = 5.0  # a request waits for its batch, and before to be decoded; then it gets 503, not computed
    compute_timeout_s: float = 15.0  # for one batch; then its requests get 504
    watch_s: float = 1.0  # between looks at the store for changes
    control: str = "off"  # on: requests to /v2/repository may load, unload and roll back models

    def __post_init__(self) -> None:
        """Refuses values that no service can run with.

        Raises:
            KilnError: Names the setting, what it was given and what it takes; or two that do not go together.
        """
        for setting in dataclasses.fields(self):
            value = getattr(self, setting.name)
            if isinstance(value, int | float) and not 0 < value < float("inf"):
                raise KilnError(f"{variable(setting.name)} is {value}; it takes a number above 0")
        if self.access_log not in ACCESS_LOGS:
            allowed = ", ".join(ACCESS_LOGS)
            raise KilnError(f"{variable('access_log')} is {self.access_log[:80]!r}; it takes one of: {allowed}")
        if self.control not in ("on", "off"):
            raise KilnError(f"{variable('control')} is {self.control[:80]!r}; it takes on or off")
        if self.drain_s >= self.grace_s:
            told = f"{variable('drain_s')} is {self.drain_s:g} and {variable('grace_s')} {self.grace_s:g}"
            raise KilnError(f"{told}; the port closes before the process ends, so the first is to be the smaller")

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> Settings:
        """The defaults, overridden by the settings file, overridden by the variables that are set and not empty.

        Raises:
            KilnError: The file cannot be read, or a value is not of its field's type.
        """
        given: dict[str, Value] = {}
        if path := environment.get(FILE, ""):
            given |= _from_file(Path(path))
        for setting in dataclasses.fields(cls):
            name = variable(setting.name)
            if text := environment.get(name, ""):
                given[setting.name] = _parse(name, text, type(getattr(cls, setting.name)))
        return dataclasses.replace(cls(), **given)  # type: ignore[arg-type]


def variable(name: str) -> str:
    """The environment variable of a setting."""
    return PREFIX + name.upper()


def _from_file(path: Path) -> dict[str, Value]:
    try:
        told: dict[str, Any] = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise KilnError(f"{path}, which {FILE} names, cannot be read as TOML: {error}") from error
    kinds = {setting.name: type(getattr(Settings, setting.name)) for setting in dataclasses.fields(Settings)}
    given: dict[str, Value] = {}
    for name, value in told.items():
        if name not in kinds:
            raise KilnError(f"{path} has {name[:80]!r}, which is no setting; there are: {', '.join(kinds)}")
        if type(value) not in (str, int, float):
            raise KilnError(f"{path} has {name} = {value!r:.80}; it takes {_noun(kinds[name])}")
        given[name] = _parse(f"{name} in {path}", str(value), kinds[name])
    return given


def _parse(name: str, text: str, kind: Any) -> Value:
    try:
        parsed: Value = kind(text)
    except ValueError:
        raise KilnError(f"{name} is {text[:80]!r}; it takes {_noun(kind)}") from None
    return parsed


def _noun(kind: Any) -> str:
    return {int: "a whole number", float: "a number"}.get(kind, "text")
