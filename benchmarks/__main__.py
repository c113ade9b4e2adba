"""`python -m benchmarks`: measures every variant in the store and writes the report."""

from __future__ import annotations

import dataclasses
import functools
import json
import secrets
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

import catalog
import console
from benchmarks import commands, machine, progress, results
from benchmarks.measuring import planning
from benchmarks.measuring.candidates import candidates, named
from benchmarks.measuring.measure import Run

application = console.app("Measures every variant in the store, and writes the report.")
Out = Annotated[Path, typer.Option(help="The folder for results.json and the report.")]


@application.command("run")
def run(
    store: Annotated[Path | None, typer.Option(help="The artifact store.", show_default="artifacts")] = None,
    models: Annotated[str, typer.Option(help="Names with commas between; all if left out.")] = "",
    formats: Annotated[str, typer.Option(help="Names with commas between; all if left out.")] = "",
    out: Out = Path("reports"),
    threads: Annotated[int, typer.Option(help="Threads an inference may use.")] = min(2, len(machine.cores())),
    quick: Annotated[bool, typer.Option("--quick", help="A tenth of the time a variant; p99 is then rough.")] = False,
    seed: Annotated[int | None, typer.Option(help="Of the order of the variants; drawn if left out.")] = None,
    timeout: Annotated[float | None, typer.Option(help="Seconds a variant's process may take.")] = None,
    passes: Annotated[int | None, typer.Option(min=1, help="Times each variant is measured.")] = None,
    p99_limit: Annotated[float | None, typer.Option(min=0.001, help="Milliseconds; the limit of Server.")] = None,
    benchmark_json: Annotated[
        Path | None, typer.Option(help="pytest-benchmark's file.", show_default="OUT/benchmark.json")
    ] = None,
    http: Annotated[bool, typer.Option(help="Ask every variant over HTTP too (not in a --quick run).")] = True,
    fresh: Annotated[bool, typer.Option("--fresh", help="Answer the test split again, kept answers or not.")] = False,
) -> None:
    """Measures accuracy, latency, throughput, size and memory, and writes the report."""
    from training import data

    _check(threads, timeout)
    shelf = catalog.Store(store)
    given: dict[str, Any] = {
        "timeout_seconds": timeout,
        "passes": passes,
        "server_p99_ms": p99_limit,
        "http_requests": None if http else 0,
    }
    asked = {key: value for key, value in given.items() if value is not None}
    settings = dataclasses.replace(results.Settings.quick() if quick else results.Settings(), **asked)
    todo = candidates(shelf, named(shelf, models), console.words(formats))
    load = planning.load(shelf, todo, threads, fresh)
    if not quick:
        settings = dataclasses.replace(planning.fitting(settings, load), **asked)
    drawn = secrets.randbelow(2**31) if seed is None else seed
    kept = None if fresh else out / "predictions"
    measuring = Run(shelf, threads, settings, drawn, data.load, quick, kept)
    found = progress.measured(measuring, todo, planning.seconds(settings, load))
    found.write(out / results.FILE)  # whatever becomes of the part over HTTP
    catalog.write_atomic(benchmark_json or out / "benchmark.json", _plug_ins_file(found, measuring))
    if settings.http_requests and found.details:
        found = _over_http(found, shelf)
        found.write(out / results.FILE)
    _report(found, out)
    if not found.details:
        raise catalog.KilnError(
            f"none of {len(found.rows)} variants could be measured; the reasons are in {out / 'report.md'}"
        )


def _over_http(found: results.Results, shelf: catalog.Store) -> results.Results:
    """The results with the serving tax; stopped by Ctrl-C, with all but that, and it is said."""
    try:
        return progress.over_http(found, shelf)
    except KeyboardInterrupt:
        console.err.print("stopped over HTTP; what was measured in process is kept", style="yellow", highlight=False)
        return dataclasses.replace(found, http_reason="it was stopped by Ctrl-C")


def _plug_ins_file(found: results.Results, measured: Run) -> str:
    """The run as `pytest-benchmark compare` reads it."""
    told = {
        "machine_info": {"cpu": {"brand_raw": found.machine.cpu}, "python_version": found.machine.python},
        "commit_info": {"id": found.commit},
        "benchmarks": measured.benches,
        "datetime": found.created,
        "version": found.machine.versions.get("pytest-benchmark", ""),
    }
    return json.dumps(told, indent=1) + "\n"


@application.command("report")
def report(
    results_file: Annotated[Path, typer.Option("--results", help="What a run wrote.")] = Path("reports/results.json"),
    out: Out = Path("reports"),
) -> None:
    """Renders the report again, from the results alone."""
    _report(results.read(results_file), out)


@application.command("publish")
def publish(
    results_file: Annotated[Path, typer.Option("--results", help="What a full run wrote.")] = Path(
        "reports/results.json"
    ),
) -> None:
    """Commits-to-be: copies the results to results/ and renews the README's table and picture from them."""
    from benchmarks.reporting.publish import publish as put

    _published(put, results_file, "make benchmark")


@application.command("compression")
def compression(
    results_file: Annotated[Path, typer.Option("--results", help="A run over networks and their transforms.")] = Path(
        "reports/compression/results.json"
    ),
) -> None:
    """Commits-to-be: copies the results to results/compression/ and writes docs/compression.md from them."""
    from benchmarks.reporting.compression import put

    _published(put, results_file, "make compression")


@application.command("stems")
def stems(
    results_file: Annotated[Path, typer.Option("--results", help="A run over networks with the CIFAR stem.")] = Path(
        "reports/stems/results.json"
    ),
) -> None:
    """Commits-to-be: copies the results to results/stems/ and writes docs/compression.md anew."""
    from benchmarks.reporting.compression import put
    from benchmarks.reporting.stems import FOLDER

    _published(functools.partial(put, folder=FOLDER), results_file, "make stems")


commands.register(application)


def _published(put: Callable[[results.Results, Path], Path], file: Path, again: str) -> None:
    found = results.read(file)
    if found.quick:
        raise catalog.KilnError(f"{file} is of a --quick run, too rough to publish; run: {again}")
    console.out.print(f"published as {put(found, file)}", markup=False, highlight=False, soft_wrap=True)


def _check(threads: int, timeout: float | None) -> None:
    cores = len(machine.cores())
    if not 1 <= threads <= cores:
        raise catalog.KilnError(f"--threads {threads} is not between 1 and {cores}, the cores this process may use")
    if timeout is not None and timeout <= 0:
        raise catalog.KilnError(f"--timeout {timeout} is not a number of seconds above 0")


def _report(found: results.Results, out: Path) -> None:
    from benchmarks.reporting.report import render, write

    rendered = render(found)
    write(rendered, out)
    console.out.print(rendered.headline, markup=False, highlight=False, soft_wrap=True)
    console.out.print(f"report: {out / 'report.html'}", markup=False, highlight=False, soft_wrap=True)


if __name__ == "__main__":
    if len(sys.argv) == 1:
        sys.argv.append("run")
    console.run(application)
