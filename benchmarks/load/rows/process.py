"""Rows of the service as a process: how its memory grows, and how long it takes to be ready."""

from __future__ import annotations

import dataclasses
import shutil
import statistics
import tempfile
from pathlib import Path

import catalog
from benchmarks.load import served, wire
from benchmarks.load.contents import png
from benchmarks.load.held import answered, hold, run
from benchmarks.load.plan import Plan, Row
from catalog import Store

MODELS = 4  # that the service starts with


def memory(plan: Plan) -> Row:
    """A worker's memory at 80% of the capacity, after a first minute (or tenth of the time).

    Raises:
        KilnError: A request was refused or lost, so that the worker did less than it was to.
    """
    import psutil

    with plan.service() as ours:
        content = png(plan.model)
        rate = 0.8 * hold(ours, [content], 16, min(5.0, plan.seconds)).rate
        whole = plan.seconds * plan.rounds
        worker = psutil.Process(ours.workers()[0])
        answered(ours, run(wire.open_loop(ours.port, [content], rate, 64, min(60.0, whole / 10))))
        first = worker.memory_info().rss
        answered(ours, run(wire.open_loop(ours.port, [content], rate, 64, whole, seed=1)))
        grown = 100 * (worker.memory_info().rss - first) / first
    detail = {"first_bytes": first, "seconds": whole, "rate": rate}
    beside = f"from {first / 1e6:.0f} MB, after {whole / 60:.3g} minutes of {rate:,.0f} requests/s"
    return Row("a worker's memory at 80% of capacity, growth", grown, "%", "< 2", grown < 2, detail, beside)


def start(plan: Plan) -> Row:
    """From `bentoml serve` to ready, with four models; and how much of that plain BentoML takes."""
    times, plain = [], []
    with tempfile.TemporaryDirectory() as folder:
        four = dataclasses.replace(plan, store=_of_four(plan.store, Path(folder, "store")))
        for _ in range(plan.rounds):
            with four.service(zoo=str(Path(folder, "none"))) as ours:
                times.append(ours.ready_s)
            with served.bentoml(plan.file(plan.model), THREADS=str(plan.threads)) as theirs:
                plain.append(theirs.ready_s)
    taken = statistics.median(times)
    detail = {"rounds": times, "plain_bentoml_s": statistics.median(plain), "plain_bentoml_rounds": plain}
    beside = f"plain BentoML with one model: {statistics.median(plain):.1f} s"
    return Row(f"start with {MODELS} models", taken, "s", "<= 4", taken <= 4, detail, beside)


def _of_four(store: Store, folder: Path) -> Store:
    """A store with four models of another, which are served again under further names where it has fewer."""
    there = store.models()
    for number in range(MODELS):
        name = there[number % len(there)]
        called = name if number < len(there) else f"{name}-{number}"
        shutil.copytree(store.root / name, folder / called)
        for card in (folder / called).rglob(catalog.CARD):
            card.write_text(card.read_text().replace(f'"model": "{name}"', f'"model": "{called}"'))
    return Store(folder)
