"""Who takes part in `benchmarks.peers.serving`: how each server is started, asked and understood.

Every contender takes one image a request, in two ways: a PNG as a user uploads it, and a tensor in the fastest form
that its documentation has for one. A request is prepared as bytes and an answer read as probabilities by class.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.load import served, wire
from benchmarks.load.contents import BYTES, form, v2

INSTALL = "make peers-setup"
JSON = {"content-type": "application/json"}
Answer = dict[int, float]  # probability by index of the class; the likeliest five at least


@dataclass(frozen=True)
class Subject:
    """What all of them serve: one file, with so many threads."""

    model: str
    version: str
    file: Path
    store: Path  # holds this variant and no other
    classes: list[str]
    height: int
    width: int
    threads: int
    batch: int  # images that a peer may compute together; 1 leaves it as it comes
    scratch: Path
    environments: Path  # folders of the peers' environments, by contender


@dataclass(frozen=True)
class Picture:
    """One image: as uint8 `[1, H, W, 3]` and as a PNG."""

    pixels: NDArray[np.uint8]
    png: bytes


@dataclass(frozen=True)
class Way:
    """One way to ask for one image."""

    says: str  # in a table
    ask: Callable[[Subject, Picture], bytes]
    read: Callable[[Subject, bytes], Answer]  # of an answer's body
    kind: type[wire.Connection] = wire.Connection
    port: str = ""  # by name, where it is not the one of HTTP

    def at(self, server: served.Server) -> int:
        """The port to ask at."""
        return server.ports[self.port] if self.port else server.port


@dataclass(frozen=True)
class Contender:
    """A server, whether or not it is installed; `package` is its distribution, "" that of this project."""

    name: str
    title: str
    package: str
    start: Callable[[Subject], AbstractContextManager[served.Server]]
    png: Way
    tensor: Way
    own_environment: bool = True
    install: str = INSTALL

    def way(self, name: str) -> Way:
        """One of its two ways: `png` or `tensor`."""
        return {"png": self.png, "tensor": self.tensor}[name]

    def missing(self, subject: Subject) -> str:
        """Why it cannot be started here, or nothing."""
        if not self.own_environment or self.version(subject):
            return ""
        return f"{self.package} is not installed in {subject.environments / self.name}; run: {self.install}"

    def version(self, subject: Subject) -> str:
        """Of its package; empty where it is not installed."""
        from importlib import metadata

        if not self.package:
            return ""
        places = [str(place) for place in (subject.environments / self.name).glob("lib/python*/site-packages")]
        path = places if self.own_environment else sys.path
        found = next(iter(metadata.distributions(name=self.package, path=path)), None)
        return found.version if found else ""


def png_form(path: str) -> Callable[[Subject, Picture], bytes]:
    """An upload of the PNG."""
    return lambda subject, picture: form(path, "image", picture.png, "image/png")


def numbered(values: Any) -> Answer:
    """Probabilities in the order of the classes."""
    return {index: float(value) for index, value in enumerate(values)}


def named(classes: list[str], body: bytes) -> Answer:
    """The likeliest classes by name."""
    return {classes.index(found["class"]): float(found["probability"]) for found in json.loads(body)["predictions"]}


def floats(subject: Subject, body: bytes) -> Answer:
    """The float32 at an answer's end: of a V2 answer what follows the JSON, of a raw one all."""
    return numbered(np.frombuffer(body[-4 * len(subject.classes) :], np.float32))


def listed(subject: Subject, body: bytes) -> Answer:
    """`{"probabilities": […]}`."""
    return numbered(json.loads(body)["probabilities"])


# --- ours and the hand-written application ---------------------------------------------------------------------------


def _start_ours(subject: Subject) -> AbstractContextManager[served.Server]:
    return served.ours(subject.store, threads=str(subject.threads), zoo=str(subject.scratch / "no-zoo"))


def _upload_to_ours(subject: Subject, picture: Picture) -> bytes:
    return png_form(f"/predict?model={subject.model}&version={subject.version}")(subject, picture)


def _v2_binary(subject: Subject, picture: Picture) -> bytes:
    return v2(subject.model, subject.version, picture.pixels)


def raw(path: str) -> Callable[[Subject, Picture], bytes]:
    """The pixels as a body."""
    return lambda subject, picture: wire.request(path, picture.pixels.tobytes(), BYTES)


def _by_index(subject: Subject, body: bytes) -> Answer:
    return named([str(index) for index in range(len(subject.classes))], body)


OURS = Contender(
    "modelkiln",
    "modelkiln",
    "",
    _start_ours,
    png=Way("PNG in a form", _upload_to_ours, lambda subject, body: named(subject.classes, body)),
    tensor=Way("V2, binary", _v2_binary, floats),
    own_environment=False,
)
FASTAPI = Contender(
    "fastapi",
    "FastAPI by hand",
    "fastapi",
    lambda subject: served.fastapi(subject.file, subject.threads),
    png=Way("PNG in a form", png_form("/predict"), _by_index),
    tensor=Way("raw bytes", raw("/tensor"), _by_index),
    own_environment=False,
)
