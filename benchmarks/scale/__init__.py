"""`python -m benchmarks.scale`: how many cores a load takes, by simulation from measured service times.

`page` writes docs/scale.md from a run's results; `check` holds the simulation against the real service here.
"""

from __future__ import annotations

import json
import math
import statistics
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

import catalog
import console
from benchmarks import results
from benchmarks.judging.compare import groups
from benchmarks.reporting import words
from benchmarks.scale import fleet, real
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
ASSUMED_US = 400.0  # of HTTP a request, where a run measured none

app = console.app("Simulates replicas behind a load balancer from measured service times.")


@app.command("page")
def page(
    results_file: Annotated[
        Path | None, typer.Option("--results", help="What a run wrote; else the newest in results/.")
    ] = None,
    out: Annotated[Path, typer.Option(help="The page to write.")] = PAGE,
    http_us: Annotated[
        float | None,
        typer.Option(min=0, help="Time HTTP costs a request, microseconds.", show_default="what the run measured"),
    ] = None,
    core_hour: Annotated[float, typer.Option(min=0, help="What a core costs an hour, in dollars.")] = CORE_HOUR,
) -> None:
    """Writes the page."""
    path = results_file or results.newest(ROOT / "results")
    catalog.write_atomic(out, text(results.read(path), path.name, http_us, core_hour))
    console.out.print(f"written: {out}", markup=False, highlight=False, soft_wrap=True)


@dataclass(frozen=True)
class Http:
    """What a request takes beside the inference, in microseconds, and how that is known.

    `low_us` and `high_us` are those of the variant with the least and of the one with the most, of `variants`.
    """

    us: float
    how: Literal["measured", "given", "assumed"]
    variants: int = 0
    low_us: float = 0.0
    high_us: float = 0.0


def http_cost(found: results.Results, given: float | None = None) -> Http:
    """The median over the variants of a run: all are asked for the same, so that their differences are disturbance."""
    if given is not None:
        return Http(given, "given")
    each = sorted(1e3 * detail.tax.beside_ms for detail in found.details.values() if detail.tax)
    if not each:
        return Http(ASSUMED_US, "assumed")
    return Http(statistics.median(each), "measured", len(each), each[0], each[-1])


def text(found: results.Results, source: str, http_us: float | None = None, core_hour: float = CORE_HOUR) -> str:
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
    check = catalog.from_json(real.Check, json.loads(CHECK.read_text(encoding="utf-8"))) if CHECK.is_file() else None
    factors = sorted(row.factor for row in check.rows) if check else []
    factor = statistics.median(factors) if factors else None
    http = http_cost(found, http_us)
    context = {
        "source": source,
        "machine": found.machine.cpu,
        "threads": found.threads,
        "rates": RATES,
        "rows": [_cores(row, detail, core_hour, factor) for row, detail in served],
        "with_http": [_cores(row, detail, core_hour, factor, http.us / 1e6) for row, detail in served if http.us],
        "factor": factor,
        "factors": factors,
        "example": str(chosen.variant),
        "fullest": fleet.FULLEST,
        "windows": _windows(of),
        "surges": _surges(of),
        "check": check,
        "full": real.FULL,
        "http": http,
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
    """Cores by rate, and at the highest rate those that it takes if the real p99 is `factor` times the simulated."""
    of = fleet.service(row, detail, http_s)

    def cores(rate: float, each: float) -> int | None:
        replicas = fleet.needed(rate, each)
        return None if replicas is None else replicas * of.cores

    each, largest = fleet.held(of, LIMIT_MS), RATES[-1]
    found = {rate: cores(rate, each) for rate in RATES}
    needed = found[largest]
    cost = None if needed is None else fleet.cost_per_million(needed, largest, core_hour)
    careful = cores(largest, fleet.held(of, LIMIT_MS / max(1.0, factor))) if factor else None
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
    """Runs the service with one and two workers of one thread, and compares its latencies with the simulated ones."""
    card = next((c for c in Store(store).variants(model) if c.variant.version == version), None)
    if card is None:
        raise KilnError(f"no variant {model}/{version} in {store}; run: python -m export {model}")
    found = real.compared(Store(store), card, seconds, rounds, catalog.now())
    for row in found.rows:
        console.out.print(
            f"{row.workers} x {row.rate:,.0f}/s: p50 {row.p50_ms:.3f} ms (simulated {row.simulated_p50_ms:.3f}), "
            f"p99 {row.p99_ms:.3f} ms (simulated {row.simulated_p99_ms:.3f}), {row.factor:.1f} times the simulated",
            highlight=False,
        )
    if found.warning:
        console.out.print(found.warning, style="yellow", highlight=False)
    if out is not None:
        catalog.write_atomic(out, json.dumps(asdict(found), indent=2) + "\n")
