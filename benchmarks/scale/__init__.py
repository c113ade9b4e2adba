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
from benchmarks.scale import balancing, fleet, real
from catalog import ROOT, KilnError, Store, servable

PAGE = ROOT / "docs" / "scale.md"
CHECK = ROOT / "docs" / "scale-check.json"
RATES = (1_000, 10_000, 100_000, 1_000_000)
WINDOWS_MS = (0.0, 0.5, 1.0, 2.0, 5.0)
LAGS_S = (0, 5, 15, 60)
HEADROOMS = (1.0, 1.25, 1.6)
RISE = 1.5
LIMIT_MS = 15.0
CORE_HOUR = 0.04  # dollars; a common price of a virtual core
MORE = 1.1  # times what is simulated, from which a measured rate is more than that
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
    simulated = [_simulated(row, detail) for row, detail in served]
    largest, example, of = _example(found, simulated)
    check = catalog.from_json(real.Check, json.loads(CHECK.read_text(encoding="utf-8"))) if CHECK.is_file() else None
    factors = sorted(row.factor for row in check.rows) if check else []
    factor = statistics.median(factors) if factors else None
    http = http_cost(found, http_us)
    taxed = [_simulated(row, detail, http.us / 1e6) for row, detail in served] if http.us else []
    beside = _beside(simulated)
    context = {
        "source": source,
        "machine": found.machine.cpu,
        "threads": found.threads,
        "rates": RATES,
        "rows": [_cores(one, core_hour, factor) for one in simulated],
        "with_http": [_cores(one, core_hour, factor) for one in taxed],
        "beside": beside,
        "floors": not (beside.more or beside.corrected) and (not factors or factors[0] >= 1),
        "up": rounded_up,
        "factor": factor,
        "factors": factors,
        "largest": largest,
        "example": example,
        "three_quarters": 0.75 * fleet.held(of, LIMIT_MS) if of else 0.0,
        "holds": fleet.held(of, LIMIT_MS) if of else 0.0,
        "replicas": balancing.REPLICAS,
        "balancers": _balancers(of) if of else [],
        "fullest": fleet.FULLEST,
        "windows": _windows(of) if of else [],
        "surges": _surges(of) if of else [],
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


@dataclass(frozen=True)
class Simulated:
    """A variant's replica in each of its passes, with what it holds there in images/s, and what Server measured."""

    row: catalog.Measurement
    passes: list[tuple[fleet.Service, float]]  # in the order in which they were made
    measured: float | None = None  # in the first pass and in process; None with HTTP, and where the run left it out
    refuted: bool = False  # the measured one corrected the simulation, which then says nothing of its own

    @property
    def least(self) -> tuple[fleet.Service, float]:
        """The pass that holds the least, on which a fleet is to be reckoned."""
        return min(self.passes, key=lambda one: (one[1], one[0].capacity))

    @property
    def first(self) -> float:
        """What it holds in the pass in which Server was measured."""
        return self.passes[0][1]

    @property
    def most(self) -> float:
        """What it holds in the best pass."""
        return max(rate for _, rate in self.passes)


def _simulated(row: catalog.Measurement, detail: results.Detail, http_s: float = 0.0) -> Simulated:
    passes = [(of, fleet.held(of, LIMIT_MS)) for of in fleet.services(row, detail, http_s)]
    return Simulated(row, passes, None if http_s else detail.server_rate, fleet.refuted(detail))


@dataclass(frozen=True)
class Beside:
    """What Server measured in a run beside what is simulated of the same pass.

    `ratios` are measured to simulated, ascending; `more` counts those that held more than simulated, of `variants`.
    `only_measured` and `only_simulated` name those that hold something by one of the two alone. Those whose simulation
    was `corrected` by what Server measured are in none of these.
    """

    variants: int
    ratios: list[float]
    more: int
    only_measured: list[str]
    only_simulated: list[str]
    corrected: list[str]


def _beside(simulated: list[Simulated]) -> Beside:
    known = [(one, one.measured) for one in simulated if one.measured is not None and not one.refuted]
    corrected = [str(one.row.variant) for one in simulated if one.refuted]
    ratios = sorted(rate / one.first for one, rate in known if rate and one.first)
    only_measured = [str(one.row.variant) for one, rate in known if rate and not one.first]
    only_simulated = [str(one.row.variant) for one, rate in known if one.first and not rate]
    more = sum(ratio > MORE for ratio in ratios) + len(only_measured)
    return Beside(len(known), ratios, more, only_measured, only_simulated, corrected)


def _example(found: results.Results, simulated: list[Simulated]) -> tuple[str, str, fleet.Service | None]:
    """The choice of the largest model, and the one of the largest that holds a load in every pass with its replica.

    The largest is that with the most multiply-accumulates. Where no choice holds a load there is no example.
    """
    chosen = {line.row.variant: line.chosen for group in groups(found) for line in group.lines}
    size = {one.row.variant: found.models[one.row.variant.model].macs for one in simulated}
    ranked = sorted(
        simulated,
        key=lambda one: (size[one.row.variant], chosen[one.row.variant], one.row.variant.version),
        reverse=True,
    )
    choices = [one for one in ranked if chosen[one.row.variant]] or ranked
    holds = next((one for one in choices if one.least[1]), None)
    if holds is None:
        return str(choices[0].row.variant), "", None
    return str(choices[0].row.variant), str(holds.row.variant), holds.least[0]


def _cores(one: Simulated, core_hour: float, factor: float | None) -> dict[str, Any]:
    """Cores by rate, and at the highest rate those that it takes if the real p99 is `factor` times the simulated."""
    (of, each), largest = one.least, RATES[-1]

    def cores(rate: float, each: float) -> int | None:
        replicas = fleet.needed(rate, each)
        return None if replicas is None else replicas * of.cores

    found = {rate: cores(rate, each) for rate in RATES}
    needed = found[largest]
    cost = None if needed is None else fleet.cost_per_million(needed, largest, core_hour)
    careful = cores(largest, fleet.held(of, LIMIT_MS / max(1.0, factor))) if factor else None
    return {
        "name": str(one.row.variant),
        "cores": found,
        "careful": careful,
        "cost": cost,
        "batch": of.most,
        "least": each,
        "most": one.most,
        "measured": one.measured,
    }


def rounded_up(cores: int) -> int:
    """Cores with the two digits that another run would find again, rounded up: too few would not hold the load."""
    step: int = 10 ** max(0, len(str(cores)) - 2)
    return -(-cores // step) * step


def _balancers(of: fleet.Service) -> list[dict[str, Any]]:
    """Replicas at what they hold by chance, and what they hold, by what their balancer knows."""
    rate, found = fleet.held(of, LIMIT_MS), []
    for name in balancing.BALANCERS:
        met, holds = balancing.simulate(of, rate, name), balancing.held(of, LIMIT_MS, name)
        cores = (fleet.needed(RATES[-1], holds) or 0) * of.cores
        found.append({"name": name, "p50_ms": met.p50_ms, "p99_ms": met.p99_ms, "holds": holds, "cores": cores})
    return found


def _windows(of: fleet.Service) -> list[dict[str, Any]]:
    """A replica at three quarters of what it holds, with longer and longer windows."""
    rate = 0.75 * fleet.held(of, LIMIT_MS)
    return [{"ms": ms, **asdict(fleet.simulate(of, rate, ms / 1e3))} for ms in WINDOWS_MS]


def _surges(of: fleet.Service) -> list[dict[str, Any]]:
    """A rise of the load by `RISE`, by lag, for fleets with more and more room; the replica must hold a load."""
    rate = float(RATES[-1])
    replicas = math.ceil(rate / fleet.held(of, LIMIT_MS))
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
