"""Measurements that take minutes, each behind a progress bar; failures appear above it as they happen."""

from __future__ import annotations

import console
from benchmarks.measuring import tax
from benchmarks.measuring.candidates import Candidate
from benchmarks.measuring.measure import Run
from benchmarks.results import Results
from catalog import Store


def measured(run: Run, found: list[Candidate], seconds: float) -> Results:
    """What `run` finds out about the candidates; first the seconds it may take are told, in minutes."""
    with console.progress() as bar:
        bar.console.print(f"about {max(1, round(seconds / 60))} min", highlight=False)
        task, told = bar.add_task("measuring", total=len(found) * run.settings.passes), set[str]()

        def begun(name: str) -> None:
            bar.update(task, description=name)

        def done(name: str, reason: str) -> None:
            bar.advance(task)
            if reason and name not in told:
                told.add(name)
                bar.console.print(f"{name}: {reason}", style="yellow", markup=False, highlight=False)

        return run.measure(found, begun, done)


def over_http(found: Results, store: Store) -> Results:
    """The results with the serving tax of every variant."""
    with console.progress() as bar:
        task = bar.add_task("over HTTP", total=None)

        def turned(variant: str, turns: int, of: int) -> None:
            bar.update(task, description=f"over HTTP: {variant}", completed=turns, total=of)

        return tax.measured(found, store, turned)
