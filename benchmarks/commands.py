"""The commands that read results instead of making them: `choose`, `compare`, `schema`."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated

import rich.table
import typer

import catalog
import console
from benchmarks import results
from benchmarks.judging import choose as choosing
from benchmarks.judging import regress
from benchmarks.reporting import prose, words
from catalog import ROOT, KilnError, Policy, Store, now

REPORTS = Path("reports/results.json")


def choose(
    model: Annotated[str, typer.Argument(help="A trained model.")],
    max_accuracy_drop: Annotated[float, typer.Option(help="Points of top-1 it may lose to its float parent.")] = 0.5,
    objective: Annotated[str, typer.Option(help=f"What to be best in: {', '.join(choosing.OBJECTIVES)}.")] = "latency",
    max_size: Annotated[str | None, typer.Option(help="Of the model file: 3MB, 300kB, 2.5MiB.")] = None,
    results_file: Annotated[
        Path | None, typer.Option("--results", help="What a run wrote; else the last run's, else the committed ones.")
    ] = None,
    store: Annotated[Path | None, typer.Option(help="The artifact store.", show_default="artifacts")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Write no policy.")] = False,
) -> None:
    """Prints the variant to take and why, and writes the policy that serving reads."""
    if objective not in choosing.OBJECTIVES:
        raise KilnError(f"--objective {objective!r} is none of {', '.join(choosing.OBJECTIVES)}")
    if not 0 <= max_accuracy_drop <= 100:  # nan neither
        raise KilnError(
            f"--max-accuracy-drop {max_accuracy_drop:g} is no number of points from 0 to 100; say how many may be lost"
        )
    shelf = Store(store)
    if store is None and model not in shelf.models() and model in Store(ROOT / "zoo").models():
        shelf = Store(ROOT / "zoo")
    found, path = choosing.measured(shelf.card(model), results_file, REPORTS, ROOT)
    policy = Policy(
        model=model,
        objective=objective,  # type: ignore[arg-type]
        max_accuracy_drop=max_accuracy_drop,
        max_size_bytes=None if max_size is None else choosing.size_of(max_size),
        rows=[row for row in found.rows if row.variant.model == model],
        created=now(),
        command=shlex.join(["python", "-m", "benchmarks", *sys.argv[1:]]),
    )
    choice = choosing.choose(found, policy, shelf)
    _say(f"{model}/{choice.taken.variant.version}")
    _say(choice.why)
    for row, why in choice.others:
        _say(f"  not {row.variant.version}: {why}")
    for caution in (*prose.warnings(found), prose.unsettled(found, model)):
        if caution:
            _say(caution)
    _say(f"measured {found.created[:10]} on {found.machine.cpu}, {found.threads} threads ({path})")
    if not dry_run:
        _say(f"policy: {choosing.write(choice, shelf)}")


def _say(text: str) -> None:
    console.out.print(text, markup=False, highlight=False, soft_wrap=True)


def compare(
    against: Annotated[
        Path | None, typer.Option(help="The saved run to hold the new one against; else the newest in results/.")
    ] = None,
    results_file: Annotated[Path, typer.Option("--results", help="The new run.")] = REPORTS,
) -> None:
    """Fails where a variant became slower than a saved run by more than noise, or can no longer be measured."""
    saved = against or results.newest(ROOT / "results")
    found = regress.compared(results.read(saved), results.read(results_file))
    table = rich.table.Table("variant, figure", "then ms", "now ms", "ratio", "least", "most", "", box=None)
    for change in found.changes:
        word = "slower" if change.regressed else "faster" if change.improved else "within noise"
        ratios = [words.times(value) for value in (change.ratio, change.least, change.most)]
        table.add_row(
            f"{change.name}, {change.figure}",
            *(words.digits(change.before_ms), words.digits(change.after_ms), *ratios, word),
        )
    console.out.print(table)
    if found.missing:
        _say(f"not measured now: {', '.join(found.missing)}")
    worse = [f"{one.name} ({one.figure}, {words.times(one.ratio)})" for one in found.changes if one.regressed]
    told = [f"slower than {saved} beyond noise: {', '.join(worse)}"] if worse else []
    told += [f"{name} was measured then and failed now: {reason}" for name, reason in found.failed.items()]
    if told:
        raise KilnError("; ".join(told))


def schema(
    out: Annotated[Path | None, typer.Option(help="A file; else it is printed.")] = None,
) -> None:
    """Prints the JSON schema of results.json."""
    from benchmarks.schema import text

    if out is None:
        sys.stdout.write(text())
    else:
        catalog.write_atomic(out, text())


def register(application: typer.Typer) -> None:
    """Adds the commands to the application."""
    for command in (choose, compare, schema):
        application.command(command.__name__)(command)
