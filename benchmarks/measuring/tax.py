"""The serving tax: what one image costs over HTTP beyond the inference, by where the time goes.

The service is started as a user starts it. Each round asks every variant for a moment, in a new order: first over one
connection, one request after another, where it says in each answer what decoding, queueing and computing took, and the
rest is its own handling and the transport; then over many connections at once. What slows the machine for seconds then
falls on all variants alike, and the rounds say how far it moved a figure. Last comes the Server scenario over HTTP.

The client is `benchmarks.load.wire`, on the same machine; it costs little, but what it costs is in the transport.
"""

from __future__ import annotations

import dataclasses
import io
import json
import random
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from benchmarks import machine
from benchmarks.load import wire
from benchmarks.load.held import answered, run
from benchmarks.load.served import Server, ours
from benchmarks.measuring import http_server
from benchmarks.measuring.bisection import Search
from benchmarks.results import Results, Settings, Tax, TaxRound
from catalog import KilnError, Store, Variant, servable

STAGES = ("decode", "queue", "compute")
WARM = 30  # requests of a variant that are not counted, before the first round …
WARM_TURN = 5  # … and at the beginning of each
LONGEST = 4.0  # seconds of one variant's requests in all rounds, however few they then are
BAD = (KilnError, OSError)  # what a service that fails or answers wrongly ends in
Stages = dict[str, float]  # milliseconds of one request
Turned = Callable[[str, int, int], None]  # told after a turn: the variant, the turns that are done, of how many


@dataclass
class Asked:
    """A variant on its way through the rounds."""

    variant: Variant
    content: bytes  # a whole request
    requests: list[Stages] = field(default_factory=list)
    rounds: list[TaxRound] = field(default_factory=list)
    search: Search | None = None
    reason: str = ""  # why it has no tax

    def tax(self) -> Tax:
        """All rounds in one."""
        rates = [one.images_per_s for one in self.rounds if one.images_per_s is not None]
        ms = [one["http"] for one in self.requests]
        server: dict[str, Any] = {}
        if (found := self.search) is not None:
            server = {"server_rate": round(found.low, 1), "server_p99_ms": found.p99_ms, "server_trials": found.told}
        return Tax(
            requests=len(self.requests),
            **_medians(self.requests),  # type: ignore[arg-type]
            p90_ms=round(float(np.percentile(ms, 90)), 4),
            p99_ms=round(float(np.percentile(ms, 99)), 4),
            rounds=self.rounds,
            images_per_s=round(statistics.median(rates), 1) if rates else None,
            **server,
        )


def _ignore(*_: object) -> None:
    """Told and not interested."""


def measured(found: Results, store: Store, turned: Turned = _ignore) -> Results:
    """The results with the tax of every variant that can be served, or with the reason why one or all have none."""
    names = [row.variant for row in found.rows if row.status == "ok" and row.p50_ms and servable(row.variant)]
    asked = [Asked(variant, request(variant, image(store, variant.model))) for variant in names]
    begun, watch = time.perf_counter(), machine.Watch()
    try:
        with _service(store, found.threads) as server:
            _ask_all(server, asked, found, store, turned)
            others, stolen = watch.percents(server.cpu_s())
    except BAD as error:
        return dataclasses.replace(found, http_reason=_line(error, store))
    details = dict(found.details)
    for one in asked:
        tax = None if one.reason else one.tax()
        details[str(one.variant)] = dataclasses.replace(details[str(one.variant)], tax=tax, tax_reason=one.reason)
    return dataclasses.replace(
        found,
        details=details,
        http_seconds=round(time.perf_counter() - begun, 1),
        http_load_before=watch.load,
        http_steal_percent=stolen,
        http_others_percent=others,
    )


def _ask_all(server: Server, asked: list[Asked], found: Results, store: Store, turned: Turned) -> None:
    """All rounds, then Server; a variant that fails is left out from then on."""
    settings, rng, done = found.settings, random.Random(found.seed), 0
    server_too = bool(settings.http_seconds and settings.server_seconds)
    turns = len(asked) * (1 + settings.http_rounds + server_too)

    def everyone(turn: Callable[[Server, Asked, Settings], None], of: list[Asked]) -> None:
        nonlocal done
        for one in rng.sample(of, len(of)):
            try:
                turn(server, one, settings)
            except BAD as error:
                one.reason = _line(error, store)
            done += turn is not _trial or bool(one.search and one.search.done)
            turned(str(one.variant), done, turns)

    everyone(_warm, asked)
    for _ in range(settings.http_rounds):
        everyone(_round, [one for one in asked if not one.reason])
    if server_too:
        while searching := [one for one in asked if not one.reason and not (one.search and one.search.done)]:
            everyone(_trial, searching)


def _warm(server: Server, one: Asked, settings: Settings) -> None:
    ask(server, one, WARM, LONGEST)


def _round(server: Server, one: Asked, settings: Settings) -> None:
    """One variant's turn in a round."""
    requests = WARM_TURN + max(1, round(settings.http_requests / settings.http_rounds))
    seen = ask(server, one, requests, LONGEST / settings.http_rounds)
    counted = seen[WARM_TURN:] or seen[len(seen) // 2 :]
    one.requests += counted
    rate = None
    if settings.http_seconds:
        closed = run(wire.closed(server.port, [one.content], settings.http_connections, settings.http_seconds))
        rate = round(answered(server, closed).rate, 1)
    one.rounds.append(TaxRound(**_medians(counted), images_per_s=rate))


def _trial(server: Server, one: Asked, settings: Settings) -> None:
    """One trial of a variant's Server."""
    if one.search is None:
        capacity = statistics.median(r.images_per_s or 0.0 for r in one.rounds)
        one.search = Search(http_server.RULE, capacity, settings.server_p99_ms)
    http_server.trial(one.search, server.port, one.content, settings.server_seconds)


def _medians(requests: list[Stages]) -> dict[str, float]:
    stages = ("http", *STAGES, "handling", "transport")
    return {f"{stage}_ms": round(statistics.median(one[stage] for one in requests), 4) for stage in stages}


def _line(error: Exception, store: Store) -> str:
    """What went wrong, in one line without the folders of this machine."""
    line = " ".join(str(error).split()).replace(str(store.root.resolve()), "the store")[:300]
    return line or type(error).__name__


@contextmanager
def _service(store: Store, threads: int) -> Iterator[Server]:
    with ours(store.root, threads=str(threads)) as server:
        yield server


def image(store: Store, model: str) -> bytes:
    """A PNG of the size the model was trained on, of smooth noise."""
    from PIL import Image

    data, file = store.card(model).dataset, io.BytesIO()
    coarse = np.random.default_rng(0).integers(0, 256, (8, 8, 3)).astype(np.uint8)
    Image.fromarray(coarse).resize((data.width, data.height)).save(file, "PNG")
    return file.getvalue()


def request(variant: Variant, png: bytes) -> bytes:
    """An upload for one variant."""
    path = f"/predict?model={variant.model}&version={variant.version}"
    return wire.request(path, png, {"content-type": "image/png"})


def ask(server: Server, one: Asked, requests: int, longest_s: float) -> list[Stages]:
    """The milliseconds of so many uploads on one connection, by stage; of fewer, where they take longer.

    Raises:
        KilnError: An answer was not 200 or did not come, or does not say what took how long.
    """
    seen, bodies = run(wire.one_by_one(server.port, one.content, requests, longest_s))
    if seen.refused:
        status = next(status for status in seen.statuses if status != 200)
        said = bodies[-1][:200].decode(errors="replace")
        raise KilnError(f"the service answered {status} for {one.variant}: {said}")
    if seen.lost:
        raise KilnError(f"the service left a request for {one.variant} without an answer")
    try:
        told = [json.loads(body)["milliseconds"] for body in bodies]
        return [_stages(1e3 * taken, ms) for taken, ms in zip(seen.good, told, strict=True)]
    except (ValueError, KeyError, TypeError) as error:
        raise KilnError(f"the service did not say how long {one.variant} took: {bodies[0][:200]!r}") from error


def _stages(http_ms: float, told: dict[str, float]) -> Stages:
    stages = {stage: told[stage] for stage in STAGES}
    handling = told["total"] - sum(stages.values())
    return {"http": http_ms, **stages, "handling": handling, "transport": http_ms - told["total"]}
