"""The rows of a load test by name, from requests/s to the time of a start."""

from __future__ import annotations

from collections.abc import Callable

import console
from benchmarks.load.plan import Plan, Row
from benchmarks.load.rows import overload, process, tail, throughput
from catalog import KilnError

ROWS: dict[str, Callable[[Plan], Row | list[Row]]] = {
    "predict": throughput.predict,
    "v2": throughput.batches,
    "singles": throughput.singles,
    "tail": tail.tail,
    "alone": throughput.alone,
    "overload": overload.overload,
    "memory": process.memory,
    "start": process.start,
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
