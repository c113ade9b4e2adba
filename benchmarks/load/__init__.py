"""`make load`: the service under load, and beside it the application one would write by hand, in one run.

    python -m benchmarks.load                          every row, seconds as they come
    python -m benchmarks.load --rows predict,v2 --seconds 10 --rounds 3
    python -m benchmarks.load --rows tail --seconds 100       over five minutes, in three rounds
    python -m benchmarks.load --rows memory --seconds 600     over half an hour

Both sides of a row run at the same time, one of them under load while the other waits, turn by turn; a figure is the
median of the rounds. The generator shares the machine, and `load_before` says what else did.
"""

from __future__ import annotations

import dataclasses
import functools
import io
import json
import shutil
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import rich.table
import typer

import catalog
import console
from benchmarks import machine
from benchmarks.load import served, wire
from benchmarks.load.contents import BYTES, form, v2
from benchmarks.load.held import answered, hold, offer, run
from catalog import ROOT, KilnError, Store
from export.formats import Predict

SAMPLE = ROOT / "serving" / "page" / "samples" / "cifar10" / "truck.png"
INT8 = "onnx-int8"  # the version under load
NEAR = (0.8, 0.9, 1.0, 1.1, 1.2)  # of the capacity, where the peak is looked for
MODELS = 4  # that the service starts with
BATCH_CLIENTS = 4  # two keep a thread and its next batch supplied, two are on their way


@dataclass(frozen=True)
class Row:
    """A figure, what it is to be, and what it was made of; `met` is None where the row could not be measured.

    `beside` says in a few words what the figure comes from.
    """

    name: str
    value: float | None
    unit: str
    goal: str
    met: bool | None
    detail: dict[str, Any]
    beside: str = ""

    @property
    def figure(self) -> str:
        """The value with its unit."""
        return "" if self.value is None else f"{self.value:.3g} {self.unit}"

    @property
    def verdict(self) -> str:
        """Whether the goal is met, or why nobody knows."""
        told = {True: "met", False: "MISSED", None: f"not measured: {self.detail.get('reason')}"}
        return told[self.met]


@dataclass(frozen=True)
class Plan:
    """What all rows are measured with."""

    store: Store
    seconds: float
    rounds: int
    threads: int
    model: str
    deep: str

    def file(self, model: str, version: str = INT8) -> Path:
        """A variant's model file.

        Raises:
            KilnError: The store has none.
        """
        for card in self.store.variants(model):
            if card.variant.version == version and card.file:
                return self.store.variant_dir(card.variant) / card.file
        raise KilnError(f"{self.store.root} has no {model}/{version}")

    def service(self, **settings: str) -> Any:
        """The service with this plan's threads."""
        return served.ours(self.store.root, threads=str(self.threads), **settings)


@functools.cache
def sample() -> bytes:
    """A PNG of the networks' size, as a user of theirs would send it."""
    from PIL import Image

    buffer = io.BytesIO()
    with Image.open(SAMPLE) as image:
        image.convert("RGB").resize((32, 32)).save(buffer, "PNG")
    return buffer.getvalue()


def png(model: str) -> bytes:
    """A raw upload of a sample image for a network's int8 variant."""
    return wire.request(f"/predict?model={model}&version={INT8}", sample(), {"content-type": "image/png"})


def upload(path: str) -> bytes:
    """The same as a form."""
    return form(path, "image", sample(), "image/png")


def noise(count: int) -> np.ndarray[Any, Any]:
    """uint8 `[count, 32, 32, 3]`."""
    return np.random.default_rng(count).integers(0, 256, (count, 32, 32, 3), np.uint8)


def against(
    plan: Plan, ours: tuple[served.Server, bytes], theirs: tuple[served.Server, bytes], clients: int
) -> tuple[float, dict[str, Any], str]:
    """Requests/s of both, turn by turn: the ratio of their medians, all figures, and these in words."""
    rates: list[list[float]] = [[], []]
    costs: list[list[float]] = [[], []]
    for _ in range(plan.rounds):
        for rate, cost, (server, content) in zip(rates, costs, (ours, theirs), strict=True):
            seen = hold(server, [content], clients, plan.seconds)
            rate.append(seen.rate)
            cost.append(seen.cpu_us)
    mine, other = (statistics.median(rate) for rate in rates)
    detail = {"requests_per_s": mine, f"{theirs[0].name}_requests_per_s": other, "rounds": rates}
    names = ("cpu_us_per_request", f"{theirs[0].name}_cpu_us_per_request")  # of use where other work disturbs
    detail |= {name: statistics.median(cost) for name, cost in zip(names, costs, strict=True)}
    return mine / other, detail, f"{mine:,.0f} and {other:,.0f} requests/s"


def predict(plan: Plan) -> Row:
    """PNG uploads as forms, 16 connections, one worker, against the hand-written application."""
    with plan.service() as ours, served.fastapi(plan.file(plan.model), plan.threads) as peer:
        mine = (ours, upload(f"/predict?model={plan.model}&version={INT8}"))
        ratio, detail, beside = against(plan, mine, (peer, upload("/predict")), 16)
    return Row("predict PNG, 16 connections, to FastAPI", ratio, "x", ">= 0.9", ratio >= 0.9, detail, beside)


def batches(plan: Plan) -> Row:
    """V2 binary of 32 images against the same session called in this process."""
    images = noise(32)
    load = catalog.plugin("export.formats", "onnx").load
    with plan.service() as ours:
        bare: Predict = load(plan.file(plan.deep), plan.threads, spinning=False)
        here, there = [], []
        for _ in range(plan.rounds):
            here.append(_called(bare, images, plan.seconds))
            there.append(32 * hold(ours, [v2(plan.deep, INT8, images)], BATCH_CLIENTS, plan.seconds).rate)
    mine, bare_rate = statistics.median(there), statistics.median(here)
    share, beside = mine / bare_rate, f"{mine:,.0f} and {bare_rate:,.0f} images/s"
    detail = {"images_per_s": there, "in_process_images_per_s": here, "connections": BATCH_CLIENTS}
    return Row(f"V2 binary, batch 32, {plan.deep}, of in process", share, "x", ">= 0.85", share >= 0.85, detail, beside)


def _called(bare: Predict, images: np.ndarray[Any, Any], seconds: float) -> float:
    calls, begun = 0, time.perf_counter()
    while time.perf_counter() < begun + seconds:
        bare(images)
        calls += 1
    return len(images) * calls / (time.perf_counter() - begun)


def singles(plan: Plan) -> Row:
    """Single images as V2 binary over 64 connections, against the application's raw tensors."""
    image = noise(1)
    with plan.service() as ours, served.fastapi(plan.file("mobilenetv2"), plan.threads) as peer:
        raw = wire.request("/tensor", image.tobytes(), BYTES)
        ratio, detail, beside = against(plan, (ours, v2("mobilenetv2", INT8, image)), (peer, raw), 64)
    name = "V2 binary singles, 64 connections, mobilenetv2, to FastAPI"
    return Row(name, ratio, "x", ">= 1.3", ratio >= 1.3, detail, beside)


def tail(plan: Plan) -> Row:
    """One connection, PNG uploads: how far the slow answers are from the usual one.

    The hand-written application has its turn in each round: what the machine itself does to the slow ones is in both.
    """
    mine, other = wire.Seen(), wire.Seen()
    with plan.service() as ours, served.fastapi(plan.file(plan.model), plan.threads) as peer:
        for _ in range(plan.rounds):
            mine.good += hold(ours, [png(plan.model)], 1, plan.seconds).good
            other.good += hold(peer, [upload("/predict")], 1, plan.seconds).good
    ratio = mine.ms(99) / mine.ms(50)
    both = (("", mine), ("FastAPI_", other))
    detail = {f"{name}p{percent:g}_ms": seen.ms(percent) for name, seen in both for percent in (50, 99, 99.9)}
    detail |= {"requests": len(mine.good), "FastAPI_p99_to_p50": other.ms(99) / other.ms(50)}
    beside = f"{mine.ms(99):.2f} and {mine.ms(50):.2f} ms of {len(mine.good):,} requests; FastAPI's p99 is "
    beside += f"{detail['FastAPI_p99_to_p50']:.2f} times its p50"
    return Row("one connection, p99 to p50", ratio, "x", "<= 2", ratio <= 2, detail, beside)


def overload(plan: Plan) -> list[Row]:
    """Three times the capacity arrives, whatever the answers do.

    Capacity and peak are measured before each round: the one as 64 connections have it, the other as the most good
    answers where about as much arrives as that, by the same kind of load.
    """
    statuses: Counter[int] = Counter()
    rounds: list[dict[str, Any]] = []
    lost = 0
    with plan.service() as ours:
        content = png(plan.model)
        for _ in range(plan.rounds):
            full = hold(ours, [content], 64, plan.seconds)
            near = {share: offer(ours, [content], share * full.rate, 512, plan.seconds) for share in NEAR}
            seen = offer(ours, [content], 3 * full.rate, 512, plan.seconds)
            statuses, lost = statuses + seen.statuses, lost + seen.lost
            rounds.append(_overloaded(full, near, seen))
        time.sleep(1)
        after = hold(ours, [content], 1, plan.seconds)
    ratio, goodput, refusal = (_median(rounds, name) for name in ("p99_ratio", "goodput", "refusal_p99_ms"))
    accepted = [one["overload"] for one in rounds]
    slow = f"{_median(accepted, 'accepted_p99_ms'):.0f} and {_median(rounds, 'capacity_p99_ms'):.0f} ms"
    good = f"{_median(accepted, 'accepted_per_s'):,.0f} and {_median(rounds, 'peak_per_s'):,.0f} answers/s, while "
    good += f"{_median(accepted, 'offered_per_s'):,.0f} requests/s arrive"
    told = ", ".join(f"{count:,} with {status}" for status, count in sorted(statuses.items()))
    detail = {"rounds": rounds, "statuses": dict(statuses), "lost": lost, "p99_ms_afterwards": after.ms(99)}
    odd = lost + broken(statuses)
    return [
        Row("three times the capacity: accepted p99 to that at capacity", ratio, "x", "<= 2", ratio <= 2, detail, slow),
        Row("three times the capacity: goodput of the peak", goodput, "x", ">= 0.9", goodput >= 0.9, {}, good),
        Row("three times the capacity: refusals, p99", refusal, "ms", "<= 50", refusal <= 50, {}),
        Row("three times the capacity: 5xx but 503, or lost", float(odd), "requests", "0", not odd, {}, told),
    ]


def _median(rounds: list[dict[str, Any]], name: str) -> float:
    return float(statistics.median(one[name] for one in rounds))


def broken(statuses: Counter[int]) -> int:
    """Answers that say of the service that it failed: 5xx, but for 503, a refusal."""
    return sum(count for status, count in statuses.items() if status >= 500 and status != 503)


def _overloaded(full: wire.Seen, near: dict[float, wire.Seen], seen: wire.Seen) -> dict[str, Any]:
    """One round: what an overload made of the capacity, and the processor time that both sides took for it."""
    peak = max(one.rate for one in near.values())
    on_refusals = 1e6 * seen.cpu_s - len(seen.good) * full.cpu_us
    return {
        "capacity_per_s": full.rate,
        "capacity_p99_ms": full.ms(99),
        "near_capacity": [_told(one) for one in near.values()],
        "peak_per_s": peak,
        "overload": _told(seen),
        "refusal_p99_ms": seen.ms(99, seen.refused),
        "cpu_us_per_answer": full.cpu_us,
        "cpu_us_per_refusal": on_refusals / len(seen.refused) if seen.refused else None,
        "p99_ratio": seen.ms(99) / full.ms(99),
        "goodput": seen.rate / peak,
    }


def _told(seen: wire.Seen) -> dict[str, float]:
    """An open load: what was offered, what came of it, and how busy server and generator were with it."""
    return {
        "offered_per_s": seen.offered / seen.seconds,
        "accepted_per_s": seen.rate,
        "accepted_p99_ms": seen.ms(99),
        "server_cpu_s": seen.cpu_s,
        "generator_cpu_s": seen.own_s,
        "seconds": seen.seconds,
    }


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


def alone(plan: Plan) -> Row:
    """One connection, single images: what batching costs whoever has nobody to share a batch with."""
    content = v2(plan.model, INT8, noise(1))
    with plan.service() as ours, plan.service(batch_images="1") as single:
        other = dataclasses.replace(single, name="unbatched")
        ratio, detail, beside = against(plan, (ours, content), (other, content), 1)
    return Row("one connection, to the service without batching", ratio, "x", ">= 0.95", ratio >= 0.95, detail, beside)


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


ROWS: dict[str, Callable[[Plan], Row | list[Row]]] = {
    "predict": predict,
    "v2": batches,
    "singles": singles,
    "tail": tail,
    "alone": alone,
    "overload": overload,
    "memory": memory,
    "start": start,
}


def measure(plan: Plan, names: list[str]) -> list[Row]:
    """The rows by name; one that cannot be measured says why instead of ending the run."""
    import psutil

    rows: list[Row] = []
    with console.progress() as bar:
        task = bar.add_task("load", total=len(names))
        for name in names:
            try:
                found = ROWS[name](plan)
                rows += found if isinstance(found, list) else [found]
            except (KilnError, OSError, psutil.Error) as error:  # the last two: the server is gone
                rows.append(Row(name, None, "", "", None, {"reason": str(error)}))
            bar.advance(task)
    return rows


def main(
    rows: Annotated[str, typer.Option(help=f"which, separated by commas: {', '.join(ROWS)}")] = ",".join(ROWS),
    store: Annotated[Path | None, typer.Option(help="the folder of models; without one, the zoo")] = None,
    seconds: Annotated[float, typer.Option(min=0.2, help="of each load")] = 5,
    rounds: Annotated[int, typer.Option(min=1)] = 3,
    threads: Annotated[int, typer.Option(min=1, help="of the runtime, on both sides")] = 1,
    model: Annotated[str, typer.Option(help="the small network")] = "lenet",
    deep: Annotated[str, typer.Option(help="the network of the V2 row")] = "simcnn",
    out: Annotated[Path, typer.Option(help="the file of figures")] = ROOT / "reports" / "load.json",
) -> None:
    """Puts the service under load and compares; exits 1 if a goal that was measured is missed."""
    names = [name.strip() for name in rows.split(",") if name.strip()]
    if unknown := [name for name in names if name not in ROWS]:
        raise KilnError(f"there is no row {unknown[0]!r}; there are: {', '.join(ROWS)}")
    plan = Plan(Store(store or ROOT / "zoo"), seconds, rounds, threads, model, deep)
    before = machine.load()
    found = measure(plan, names)
    told = {
        "created": catalog.now(),
        "commit": catalog.commit(),
        "plan": {"seconds": seconds, "rounds": rounds, "threads": threads, "model": model, "deep": deep},
        "machine": dataclasses.asdict(machine.read(("bentoml", "fastapi", "uvicorn", "uvloop"))),
        "load_before": before,
        "rows": [dataclasses.asdict(row) for row in found],
    }
    catalog.write_atomic(out, json.dumps(told, indent=2) + "\n")
    table = rich.table.Table("row", "figure", "goal", "", "from")
    for row in found:
        table.add_row(row.name, row.figure, row.goal, row.verdict, row.beside)
    console.out.print(table)
    console.out.print(f"all figures: {out}", highlight=False)
    if any(row.met is False for row in found):
        raise typer.Exit(1)
