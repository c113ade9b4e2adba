"""What a contender answers, held against the session called in process, before anybody is timed."""

from __future__ import annotations

import asyncio
import io
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.load import served, wire
from benchmarks.peers.contenders import Answer, Picture, Subject, Way
from catalog import ROOT, KilnError, plugin

SAMPLES = ROOT / "serving" / "page" / "samples" / "cifar10"
PICTURES = 20
TOLERANCE = 1e-5  # of a probability, against the session called in process
LIKELIEST = 5  # classes that an answer has to name
ANSWER_WITHIN_S = 30.0
DROPPED, PAUSE_S = 5, 1.0  # connections that may be closed after a server became ready: a proxy may reload itself


def pictures(height: int, width: int) -> list[Picture]:
    """The sample photographs in the network's size, as they are and mirrored."""
    from PIL import Image, ImageOps

    made = []
    turns: tuple[Callable[[Any], Any], ...] = (lambda image: image, ImageOps.mirror, ImageOps.flip, ImageOps.invert)
    for turn in turns:
        for path in sorted(SAMPLES.glob("*.png")):
            buffer = io.BytesIO()
            with Image.open(path) as image:
                small = turn(image.convert("RGB").resize((width, height)))
            small.save(buffer, "PNG")
            made.append(Picture(np.asarray(small)[None].copy(), buffer.getvalue()))
    return made[:PICTURES]


def expected(subject: Subject, shown: list[Picture]) -> NDArray[np.float32]:
    """Probabilities `[images, classes]` of the session called in this process, one image at a time."""
    predict = plugin("export.formats", "onnx").load(subject.file, subject.threads, spinning=False)
    return np.concatenate([predict(picture.pixels) for picture in shown])


def check(server: served.Server, subject: Subject, way: Way, shown: list[Picture], wanted: Any) -> None:
    """Asks for every picture and compares.

    Raises:
        KilnError: There was no answer, or not the one of the session called in process.
    """
    contents = [way.ask(subject, picture) for picture in shown]
    for index, (body, row) in enumerate(zip(answers(server, way, contents), wanted, strict=True)):
        try:
            found = way.read(subject, body)
        except (ValueError, KeyError, IndexError, TypeError) as error:
            raise KilnError(f"{way.says}: its answer cannot be read ({error}): {body[:80]!r}") from error
        if wrong := difference(found, row):
            raise KilnError(f"{way.says}: it answers image {index} wrongly: {wrong}")


def difference(found: Answer, row: NDArray[np.float32]) -> str:
    """What is wrong with an answer, or nothing."""
    if len(found) < min(LIKELIEST, len(row)) or int(row.argmax()) not in found:
        return f"it names the classes {sorted(found)}, and the likeliest is {int(row.argmax())}"
    index = max(found, key=lambda index: abs(found[index] - float(row[index])))
    if abs(found[index] - float(row[index])) <= TOLERANCE:
        return ""
    return f"class {index} has {found[index]:.6f}, and in process {float(row[index]):.6f}"


def answers(server: served.Server, way: Way, contents: list[bytes]) -> list[bytes]:
    """The bodies of the answers to these requests, asked one after another by the load generator's own connection.

    Raises:
        KilnError: One was not 200, or did not come.
    """
    import uvloop

    for left in reversed(range(DROPPED)):
        try:
            return uvloop.run(_asked(server, way, contents))
        except TimeoutError:
            raise KilnError(f"{server.name} did not answer within {ANSWER_WITHIN_S:g} s") from None
        except ConnectionError as error:
            if not left:
                raise KilnError(f"{server.name} closed {DROPPED} connections without an answer") from error
            time.sleep(PAUSE_S)
    raise AssertionError("the last attempt returned or raised")


async def _asked(server: served.Server, way: Way, contents: list[bytes]) -> list[bytes]:
    loop, found, waiting = asyncio.get_running_loop(), list[bytes](), list[asyncio.Future[None]]()

    def done(_: wire.Connection) -> None:
        if waiting:
            waiting.pop().set_result(None)

    _, connection = await loop.create_connection(lambda: way.kind(wire.Seen(), done), "127.0.0.1", way.at(server))
    try:
        for content in contents:
            answered = loop.create_future()
            waiting.append(answered)
            connection.ask(content)
            await asyncio.wait_for(answered, ANSWER_WITHIN_S)
            if connection.gone:
                raise ConnectionResetError
            head, _, body = connection.body.partition(b"\r\n\r\n")
            if head[9:12] != b"200":
                raise KilnError(f"{server.name} answered {head[9:12].decode()}: {body[:200]!r}")
            found.append(body)
    finally:
        waiting.clear()
        if connection.transport:
            connection.transport.abort()  # a loop that is closed around an open connection may never end
        await asyncio.sleep(0)
    return found
