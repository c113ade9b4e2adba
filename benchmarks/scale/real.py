"""The simulation held against the real service: what a load simulates to, and what its clients see.

`bentoml serve` runs with one and with two workers of one thread each. Just before every load the service times are
measured as the page takes them: batches in this process, and what a request takes beside the inference, over one
connection. Then come Poisson arrivals of single images at a share of the capacity of that moment.
"""

from __future__ import annotations

import dataclasses
import functools
import statistics
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from benchmarks import machine
from benchmarks.load import served, wire
from benchmarks.load.held import answered, hold, run
from benchmarks.measuring import tax
from benchmarks.scale import fleet
from catalog import Store, VariantCard, plugin

WORKERS = (1, 2)
LOADS = (0.3, 0.6, 0.8)  # of the capacity, which is that of a closed loop just before
SIZES = (1, 2, 4, 8, 16, 32)  # of batches; 32 is the most that the service takes together
SINGLE_S = 0.2  # of batches of one image, whose spread counts …
SAMPLE_S = 0.05  # … and of each other size
FEW = 5  # calls, however long they take
REQUESTS = 100  # over one connection
FULL_S = 0.4  # of the closed loop
FULL = 16  # connections of it
CONNECTIONS = 64  # of the load
BUSY_PERCENT = 5.0  # of the processors' time that others may take
Run = Callable[[int], Any]


@dataclass(frozen=True)
class Compared:
    """One real load beside its simulation; medians of the rounds."""

    workers: int
    share: float  # of the capacity
    capacity: float  # requests/s of all workers
    rate: float
    http_us: float  # what a request took beside the inference
    p50_ms: float
    p99_ms: float
    simulated_p50_ms: float
    simulated_p99_ms: float
    factor: float  # p99 to the simulated


@dataclass(frozen=True)
class Check:
    """All loads, and the state of the machine meanwhile."""

    variant: str
    cpu: str
    created: str
    seconds: float  # of each load
    rounds: int
    load_before: float
    others_percent: float | None  # of the processors' time, taken by other processes; the higher of both numbers
    steal_percent: float | None
    rows: list[Compared]

    @property
    def warning(self) -> str:
        """What a reader must know of the machine, in a sentence; "" where it was idle."""
        told = [
            f"{who} took {percent:.0f}% of the processors' time"
            for who, percent in (("other processes", self.others_percent), ("other guests", self.steal_percent))
            if percent is not None and percent >= BUSY_PERCENT
        ]
        return f"The machine was busy ({' and '.join(told)}): check again when it is idle." if told else ""


def compared(store: Store, card: VariantCard, seconds: float, rounds: int, created: str) -> Check:
    """Holds every load against its simulation, in rounds.

    Raises:
        KilnError: The service does not start, or did not answer every request with 200.
    """
    load_before, rows, shares = machine.load()[0], [], list[tuple[float | None, float | None]]()
    for workers in WORKERS:
        watch = machine.Watch()
        with served.ours(store.root, threads="1", workers=str(workers)) as server:
            rows += _rows(server, store, card, workers, seconds, rounds)
            shares.append(watch.percents(server.cpu_s()))
    others, stolen = zip(*shares, strict=True)
    return Check(
        variant=str(card.variant),
        cpu=machine.read().cpu,
        created=created,
        seconds=seconds,
        rounds=rounds,
        load_before=load_before,
        others_percent=_most(others),
        steal_percent=_most(stolen),
        rows=rows,
    )


def _most(percents: Iterable[float | None]) -> float | None:
    return max((one for one in percents if one is not None), default=None)


def _rows(
    server: served.Server, store: Store, card: VariantCard, workers: int, seconds: float, rounds: int
) -> list[Compared]:
    shape = (max(SIZES), card.dataset.height, card.dataset.width, 3)
    images = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    path = (store.variant_dir(card.variant) / card.file).resolve()
    predict = plugin("export.formats", card.variant.format).load(path, 1, spinning=False)
    asked = tax.Asked(card.variant, tax.request(card.variant, tax.image(store, card.variant.model)))
    hold(server, [asked.content], FULL, FULL_S)  # warms every worker
    found: dict[float, list[Compared]] = {share: [] for share in LOADS}
    for number in range(rounds):
        for share in LOADS:
            of = service(server, asked, lambda size: predict(images[:size]))
            full = answered(server, run(wire.closed(server.port, [asked.content], FULL, FULL_S)))
            rate = share * full.rate
            seen = run(wire.open_loop(server.port, [asked.content], rate, CONNECTIONS, seconds, number))
            answered(server, seen)
            simulated = fleet.simulate(of, rate / workers, seed=number, queries=max(1, len(seen.good) // workers))
            found[share].append(
                Compared(
                    workers=workers,
                    share=share,
                    capacity=full.rate,
                    rate=rate,
                    http_us=1e6 * of.http_s,
                    p50_ms=seen.ms(50),
                    p99_ms=seen.ms(99),
                    simulated_p50_ms=simulated.p50_ms,
                    simulated_p99_ms=simulated.p99_ms,
                    factor=seen.ms(99) / simulated.p99_ms,
                )
            )
    return [_median(rows) for rows in found.values()]


def service(server: served.Server, asked: tax.Asked, predict: Run) -> fleet.Service:
    """The service times of this moment, as `fleet.services` takes them from results; the spread ends at the p99."""
    singles = _times(functools.partial(predict, 1), SINGLE_S)
    batch_s = {1: float(np.median(singles))}
    for size in SIZES[1:]:
        batch_s[size] = float(np.median(_times(functools.partial(predict, size), SAMPLE_S)))
    spread = np.percentile(singles, (0, 50, 90, 99, 99)) - batch_s[1]
    requests = tax.ask(server, asked, REQUESTS, tax.LONGEST)
    http_ms = statistics.median(one["http"] - one["compute"] for one in requests)
    return fleet.Service(batch_s, 1, tuple(spread.tolist()), http_ms / 1e3)


def _times(call: Callable[[], Any], seconds: float) -> list[float]:
    found: list[float] = []
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(found) < FEW:
        start = time.perf_counter()
        call()
        found.append(time.perf_counter() - start)
    return found


def _median(rows: list[Compared]) -> Compared:
    """Each figure's median over the rounds."""
    names = [field.name for field in fields(Compared) if field.name != "workers"]
    found = {name: round(statistics.median([getattr(row, name) for row in rows]), 4) for name in names}
    return dataclasses.replace(rows[0], **found)
