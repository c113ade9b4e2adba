"""`python -m benchmarks.repeat`: measures a store several times and says whether the runs agree.

They agree where every variant's speed-up over fp32 ONNX of its model, one by one, stays within `TOLERANCE`, and where
no two variants whose intervals lie apart change places.
"""

from __future__ import annotations

import dataclasses
import itertools
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

import console
from benchmarks import machine, progress, results
from benchmarks.judging import speed
from benchmarks.measuring import planning
from benchmarks.measuring.candidates import candidates, named
from benchmarks.measuring.measure import Run
from benchmarks.results import Results
from catalog import KilnError, Store

TOLERANCE = 0.05
# Of a run. Many passes: a process keeps the memory it was given, which alone may make it some percent faster.
SETTINGS = results.Settings(single_seconds=1.0, passes=6, slow_passes=3)

app = console.app("Measures several times and says whether the runs agree.")


@dataclass(frozen=True)
class Agreement:
    """What several runs of the same variants come to."""

    spreads: dict[str, float]  # by variant: the largest p50 ratio to fp32 over the least, less 1
    swapped: list[tuple[str, str]]  # first faster in one run, second in another, their intervals apart in both

    @property
    def holds(self) -> bool:
        """Whether the runs agree."""
        return not self.swapped and all(spread <= TOLERANCE for spread in self.spreads.values())


def agreement(runs: Sequence[Results]) -> Agreement:
    """Compares the runs; variants that were not measured in all of them, or have no fp32 ONNX, are left out."""
    measured = set.intersection(*(set(run.details) for run in runs))
    spreads = {}
    for name in sorted(measured):
        reference = f"{name.partition('/')[0]}/onnx-fp32"
        if reference in measured and name != reference:
            ratios = [_speed_up(run, name, reference) for run in runs]
            spreads[name] = max(ratios) / min(ratios) - 1
    models = {name.partition("/")[0] for name in measured}
    pairs = [
        pair
        for model in sorted(models)
        for pair in itertools.combinations(sorted(name for name in measured if name.startswith(f"{model}/")), 2)
    ]
    return Agreement(spreads, [pair for pair in pairs if {_faster(run, *pair) for run in runs} >= set(pair)])


def _speed_up(run: Results, name: str, reference: str) -> float:
    p50 = {str(row.variant): row.p50_ms or 0.0 for row in run.rows}
    return speed.in_turns(run.details[name]) or p50[reference] / p50[name]


def _faster(run: Results, left: str, right: str) -> str:
    """The faster of two variants in one run; "" where their intervals meet."""
    a, b = run.details[left], run.details[right]
    return left if a.p50_high_ms < b.p50_low_ms else right if b.p50_high_ms < a.p50_low_ms else ""


def repeated(
    store: Store, models: list[str], runs: int, threads: int, settings: results.Settings, kept: Path
) -> list[Results]:
    """So many runs, of latency alone, each in an order of its own.

    `kept` is the folder of answers on the test split, so that no variant is asked for them more than once.
    """
    from training import data

    alone: dict[str, Any] = {"offline_seconds": 0.0, "offline_rounds": 1, "batches": [1], "more_batches": []}
    lean = dataclasses.replace(
        settings, server_seconds=0.0, robust_images=0, peak_seconds=0.0, http_requests=0, **alone
    )
    orders = [secrets.randbelow(2**31) for _ in range(runs)]
    found = candidates(store, models)
    seconds = planning.seconds(lean, planning.load(store, found, threads))
    return [progress.measured(Run(store, threads, lean, seed, data.load, kept=kept), found, seconds) for seed in orders]


@app.command()
def repeat(
    store: Annotated[Path | None, typer.Option(help="The artifact store.", show_default="artifacts")] = None,
    models: Annotated[str, typer.Option(help="Names with commas between; all if left out.")] = "",
    runs: Annotated[int, typer.Option(min=2, help="How often.")] = 3,
    threads: Annotated[int, typer.Option(min=1, help="Threads an inference may use.")] = min(2, len(machine.cores())),
    out: Annotated[Path, typer.Option(help="The folder where answers on the test split are kept.")] = Path("reports"),
) -> None:
    """Measures and prints how far the runs lie apart; fails where they do not agree."""
    shelf = Store(store)
    found = agreement(repeated(shelf, named(shelf, models), runs, threads, SETTINGS, out / "predictions"))
    for name, spread in found.spreads.items():
        console.out.print(f"{name}: p50 to fp32 within {100 * spread:.1f}%", highlight=False)
    for left, right in found.swapped:
        console.out.print(f"{left} and {right} changed places", highlight=False)
    if not found.spreads:
        raise KilnError("no variant was measured beside fp32 ONNX of its model in every run; run: python -m export all")
    if not found.holds:
        raise KilnError(f"the {runs} runs do not agree; was the machine busy? Load average {machine.load()[0]}")
    console.out.print(f"{runs} runs agree")


if __name__ == "__main__":
    console.run(app)
