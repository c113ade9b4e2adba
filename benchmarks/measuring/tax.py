"""The serving tax: what one image costs over HTTP beyond the inference, by where the time goes.

The service is started as a user starts it and asked over one connection, one request after another; it says in each
answer what decoding, queueing and computing took, and the rest is its own handling and the transport.
"""

from __future__ import annotations

import dataclasses
import http.client
import io
import json
import random
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

from benchmarks.results import Results, Tax
from catalog import KilnError, Store, Variant, servable

STAGES = ("decode", "queue", "compute")
WARM = 30  # requests that are not counted
BAD = (KilnError, OSError, http.client.HTTPException)  # what a service that fails or answers wrongly ends in
LONGEST = 4.0  # seconds of one variant's requests, however few they then are


def measured(found: Results, store: Store) -> Results:
    """The results with the tax of every variant that can be served, or with the reason why one or all have none."""
    names = [row.variant for row in found.rows if row.status == "ok" and row.p50_ms and servable(row.variant)]
    random.Random(found.seed).shuffle(names)
    details = dict(found.details)
    try:
        with _service(store, found.threads) as port:
            for variant in names:
                name = str(variant)
                try:
                    tax = ask(port, variant, image(store, variant.model), found.settings.http_requests)
                    details[name] = dataclasses.replace(details[name], tax=tax)
                except BAD as error:
                    details[name] = dataclasses.replace(details[name], tax_reason=_line(error, store))
    except BAD as error:
        found = dataclasses.replace(found, http_reason=_line(error, store))
    return dataclasses.replace(found, details=details)


def _line(error: Exception, store: Store) -> str:
    """What went wrong, in one line without the folders of this machine."""
    line = " ".join(str(error).split()).replace(str(store.root.resolve()), "the store")[:300]
    return line or type(error).__name__


@contextmanager
def _service(store: Store, threads: int) -> Iterator[int]:
    from benchmarks.load import served

    with served.ours(store.root, threads=str(threads)) as server:
        yield server.port


def image(store: Store, model: str) -> bytes:
    """A PNG of the size the model was trained on, of smooth noise."""
    from PIL import Image

    data, file = store.card(model).dataset, io.BytesIO()
    coarse = np.random.default_rng(0).integers(0, 256, (8, 8, 3)).astype(np.uint8)
    Image.fromarray(coarse).resize((data.width, data.height)).save(file, "PNG")
    return file.getvalue()


def ask(port: int, variant: Variant, png: bytes, requests: int) -> Tax:
    """Medians over so many uploads of `png` on one connection.

    Raises:
        KilnError: An answer was not 200, or does not say what took how long.
    """
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    path, seen = f"/predict?model={variant.model}&version={variant.version}", []
    end = time.perf_counter() + LONGEST
    try:
        for _ in range(WARM + requests):
            start = time.perf_counter()
            connection.request("POST", path, png, {"content-type": "image/png"})
            answer = connection.getresponse()
            body = answer.read()
            seen.append(((time.perf_counter() - start) * 1e3, body))
            if answer.status != 200:
                raise KilnError(
                    f"the service answered {answer.status} for {variant}: {body[:200].decode(errors='replace')}"
                )
            if time.perf_counter() > end:
                break
    finally:
        connection.close()
    counted = seen[WARM:] or seen[len(seen) // 2 :]
    try:
        told = [json.loads(body)["milliseconds"] for _, body in counted]
        stages = {stage: statistics.median(one[stage] for one in told) for stage in STAGES}
    except (ValueError, KeyError, TypeError) as error:
        raise KilnError(f"the service did not say how long {variant} took: {counted[0][1][:200]!r}") from error
    handling = statistics.median(one["total"] - sum(one[stage] for stage in STAGES) for one in told)
    transport = statistics.median(ms - one["total"] for (ms, _), one in zip(counted, told, strict=True))
    return Tax(
        requests=len(counted),
        http_ms=round(statistics.median(ms for ms, _ in counted), 4),
        **{f"{stage}_ms": round(value, 4) for stage, value in stages.items()},
        handling_ms=round(handling, 4),
        transport_ms=round(transport, 4),
    )
