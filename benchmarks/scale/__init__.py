"""`python -m benchmarks.scale`: how many cores a load takes, by simulation from measured service times.

`page` writes docs/scale.md from a run's results; `check` holds the simulation against one and two real workers here.
"""

from __future__ import annotations

import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Annotated, Any

import typer

import catalog
import console
from benchmarks import results
from benchmarks.judging.compare import groups
from benchmarks.measuring.process import thread_environment
from benchmarks.reporting import words
from benchmarks.scale import fleet
from catalog import ROOT, KilnError, Store, Variant, servable

PAGE = ROOT / "docs" / "scale.md"
CHECK = ROOT / "docs" / "scale-check.json"
RATES = (1_000, 10_000, 100_000, 1_000_000)
WINDOWS_MS = (0.0, 0.5, 1.0, 2.0, 5.0)
LAGS_S = (0, 5, 15, 60)
HEADROOMS = (1.0, 1.25, 1.6)
RISE = 1.5
LIMIT_MS = 15.0
CORE_HOUR = 0.04  # dollars; a common price of a virtual core
HTTP_US = 400.0

app = console.app("Simulates replicas behind a load balancer from measured service times.")


@app.command("page")
def page(
    results_file: Annotated[
        Path | None, typer.Option("--results", help="What a run wrote; else the newest in results/.")
    ] = None,
    out: Annotated[Path, typer.Option(help="The page to write.")] = PAGE,
    http_us: Annotated[float, typer.Option(min=0, help="Processor time HTTP costs a request, microseconds.")] = HTTP_US,
    core_hour: Annotated[float, typer.Option(min=0, help="What a core costs an hour, in dollars.")] = CORE_HOUR,
) -> None:
    """Writes the page."""
    path = results_file or results.newest(ROOT / "results")
    catalog.write_atomic(out, text(results.read(path), path.name, http_us, core_hour))
    console.out.print(f"written: {out}", markup=False, highlight=False, soft_wrap=True)


def text(found: results.Results, source: str, http_us: float = HTTP_US, core_hour: float = CORE_HOUR) -> str:
    """The page, in Markdown; the same results give the same page."""
    import jinja2

    served = [
        (line.row, found.details[str(line.row.variant)])
        for group in groups(found)
        for line in group.lines
        if line.row.status == "ok" and line.row.p50_ms and servable(line.row.variant)
    ]
    if not served:
        raise KilnError(f"{source} has no variant that serving could take; run: make benchmark")
    chosen = next(row for row, _ in served if row.variant == _example(found))
    of = fleet.service(chosen, found.details[str(chosen.variant)])
    check = json.loads(CHECK.read_text(encoding="utf-8")) if CHECK.is_file() else None
    factors = sorted(row["p99_ms"] / row["simulated_p99_ms"] for row in check["rows"]) if check else []
    factor = statistics.median(factors) if factors else None
    context = {
        "source": source,
        "machine": found.machine.cpu,
        "threads": found.threads,
        "rates": RATES,
        "rows": [_cores(row, detail, core_hour, factor) for row, detail in served],
        "with_http": [_cores(row, detail, core_hour, factor, http_us / 1e6) for row, detail in served if http_us],
        "factor": factor,
        "factors": factors,
        "example": str(chosen.variant),
        "fullest": fleet.FULLEST,
        "windows": _windows(of),
        "surges": _surges(of),
        "check": check,
        "http_us": http_us,
        "core_hour": core_hour,
        "limit_ms": LIMIT_MS,
        "rise": RISE,
        "word": words,
    }
    loader = jinja2.FileSystemLoader(Path(__file__).with_name("templates"))
    environment = jinja2.Environment(
        loader=loader,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,
    )
    return environment.get_template("scale.md.j2").render(context)


def _example(found: results.Results) -> Variant:
    """The chosen variant of the largest model, by its multiply-accumulates."""
    lines = [line for group in groups(found) for line in group.lines if line.row.p50_ms and line.row.status == "ok"]
    lines = [x for x in lines if servable(x.row.variant)]
    return max(
        lines, key=lambda x: (found.models[x.row.variant.model].macs, x.chosen, x.row.variant.version)
    ).row.variant


def _cores(
    row: catalog.Measurement, detail: results.Detail, core_hour: float, factor: float | None, http_s: float = 0.0
) -> dict[str, Any]:
    """Cores by rate, and at the highest rate those that are left if the real p99 is `factor` times the simulated."""
    of = fleet.service(row, detail, http_s)

    def cores(rate: float, each: float) -> int | None:
        replicas = fleet.needed(rate, each)
        return None if replicas is None else replicas * of.cores

    each, largest = fleet.held(of, LIMIT_MS), RATES[-1]
    found = {rate: cores(rate, each) for rate in RATES}
    needed = found[largest]
    cost = None if needed is None else fleet.cost_per_million(needed, largest, core_hour)
    careful = cores(largest, fleet.held(of, LIMIT_MS / factor)) if factor else None
    return {"name": str(row.variant), "cores": found, "careful": careful, "cost": cost, "batch": of.most}


def _windows(of: fleet.Service) -> list[dict[str, Any]]:
    """A replica at three quarters of its capacity, with longer and longer windows."""
    return [{"ms": ms, **asdict(fleet.simulate(of, 0.75 * of.capacity, ms / 1e3))} for ms in WINDOWS_MS]


def _surges(of: fleet.Service) -> list[dict[str, Any]]:
    """A rise of the load by `RISE`, by lag, for fleets with more and more room."""
    rate, each = float(RATES[-1]), fleet.held(of, LIMIT_MS)
    replicas = fleet.needed(rate, each) or math.ceil(rate / of.capacity)
    found = []
    for room in HEADROOMS:
        before, grown = math.ceil(replicas * room), math.ceil(replicas * RISE * max(room, 1.05))
        surges = [fleet.surge(of, before, RISE * rate, float(lag), grown, LIMIT_MS) for lag in LAGS_S]
        found.append({"room": room, "cores": before * of.cores, "by_lag": list(zip(LAGS_S, surges, strict=True))})
    return found


@dataclass(frozen=True)
class Compared:
    """One real load beside its simulation; medians of the rounds."""

    workers: int
    share: float  # of the capacity
    rate: float
    slower: float  # what its batches took, of what such batches had taken just before, one after another
    p50_ms: float
    p99_ms: float
    simulated_p50_ms: float
    simulated_p99_ms: float


@app.command("check")
def check(
    model: Annotated[str, typer.Argument(help="A model of the store.")] = "simcnn",
    version: Annotated[str, typer.Argument(help="Its variant.")] = "onnx-int8",
    store: Annotated[Path, typer.Option(help="The store it lies in.")] = ROOT / "zoo",
    seconds: Annotated[float, typer.Option(min=0.1, help="Of each load.")] = 2.0,
    rounds: Annotated[int, typer.Option(min=1, help="How often every load is held; medians are told.")] = 5,
    out: Annotated[
        Path | None, typer.Option(help="A JSON file for the page.", show_default="docs/scale-check.json")
    ] = CHECK,
) -> None:
    """Runs one and two real workers, one core each, and compares their latencies with the simulated ones."""
    from benchmarks import machine

    card = next((c for c in Store(store).variants(model) if c.variant.version == version), None)
    if card is None:
        raise KilnError(f"no variant {model}/{version} in {store}; run: python -m export {model}")
    load_before = machine.load()[0]
    rows = [row for workers in (1, 2) for row in _compared(Store(store), card, workers, seconds, rounds)]
    for row in rows:
        console.out.print(
            f"{row.workers} x {row.rate:,.0f}/s: p50 {row.p50_ms:.3f} ms (simulated {row.simulated_p50_ms:.3f}), "
            f"p99 {row.p99_ms:.3f} ms (simulated {row.simulated_p99_ms:.3f}), "
            f"{row.p99_ms / row.simulated_p99_ms:.1f} times the simulated",
            highlight=False,
        )
    if out is not None:
        told = {
            "variant": str(card.variant),
            "cpu": machine.read().cpu,
            "created": catalog.now(),
            "seconds": seconds,
            "rounds": rounds,
            "load_before": load_before,
            "rows": [asdict(row) for row in rows],
        }
        catalog.write_atomic(out, json.dumps(told, indent=2) + "\n")


def _compared(store: Store, card: catalog.VariantCard, workers: int, seconds: float, rounds: int) -> list[Compared]:
    from benchmarks.scale import worker  # not above: the workers, which run it as their main module, import this one

    with tempfile.TemporaryDirectory(prefix="modelkiln-scale-") as scratch:
        job = {
            "format": card.variant.format,
            "file": str((store.variant_dir(card.variant) / card.file).resolve()),
            "shape": [card.dataset.height, card.dataset.width, 3],
            "seconds": seconds,
            "rounds": rounds,
        }
        jobs = [
            {**job, "seed": i, "out": f"{scratch}/{i}.json", "workers": workers, "ready": scratch}
            for i in range(workers)
        ]
        command = [sys.executable, "-m", "benchmarks.scale.worker"]
        environment = {**os.environ, **thread_environment(1)}
        running = [subprocess.Popen([*command, json.dumps(one)], cwd=ROOT, env=environment) for one in jobs]
        _await(running, worker.seconds(jobs[0]))
        told = [json.loads(Path(str(one["out"])).read_text()) for one in jobs]
    by_share: dict[float, list[Compared]] = {}
    for loads in zip(*told, strict=True):
        simulated = [_simulated(load) for load in loads]
        row = Compared(
            workers,
            loads[0]["share"],
            sum(load["rate"] for load in loads),
            statistics.fmean([load["slower"] for load in loads]),
            statistics.fmean([load["p50_ms"] for load in loads]),
            statistics.fmean([load["p99_ms"] for load in loads]),
            statistics.fmean([one.p50_ms for one in simulated]),
            statistics.fmean([one.p99_ms for one in simulated]),
        )
        by_share.setdefault(row.share, []).append(row)
    return [_median(rows) for _, rows in sorted(by_share.items())]


def _await(running: list[subprocess.Popen[bytes]], seconds: float) -> None:
    """Waits for the workers to end; none of them lives on.

    Raises:
        KilnError: One failed, or they took longer than `seconds` together.
    """
    deadline = time.monotonic() + seconds
    try:
        if any([child.wait(max(0.0, deadline - time.monotonic())) for child in running]):
            raise KilnError("a worker failed; what it said stands above")
    except subprocess.TimeoutExpired as error:
        raise KilnError(f"the workers were not done after {seconds:.0f} s; fewer --seconds or --rounds are") from error
    finally:
        for child in running:
            child.kill()
            child.wait()


def _simulated(load: dict[str, Any]) -> fleet.Outcome:
    of = fleet.Service({int(k): v for k, v in load["batch_s"].items()}, 1, tuple(load["spread_s"]))
    return fleet.simulate(of, load["rate"], queries=load["queries"])


def _median(rows: list[Compared]) -> Compared:
    """Each figure's median over the rounds."""
    names = [field.name for field in fields(Compared) if field.name != "workers"]
    found = {name: round(statistics.median([getattr(row, name) for row in rows]), 4) for name in names}
    return Compared(rows[0].workers, **found)
