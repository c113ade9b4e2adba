"""The Server scenario in process: the highest rate of Poisson arrivals whose p99 latency stays under a limit.

Arrival times are drawn before the trial and kept to whatever happens (an open loop), so that waiting counts as latency.
Whenever the variant is free it takes the images that have arrived, as many together as the largest batch that Offline
found worthwhile allows, in a power of two; that is what dynamic batching without a window does.

A trial that fails costs little: it ends as soon as too many answers are late.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.measuring.bisection import Rule, Search, Trial
from benchmarks.measuring.job import Server

QUERIES = 300  # of a trial: three are then above the p99 …
LONGEST = 1.0  # … unless they took longer to arrive than these seconds
LEAST = 100  # queries, however long they take …
LEAST_RATE = 20.0  # … but no lower rates are looked for, whose trials would take longer than five seconds
RULE = Rule(
    held=2, tries=3, steps=5, least=LEAST_RATE
)  # the rate is found to about a thirtieth of the Offline throughput


def trial(run: Callable[[int, int], Any], rate: float, seconds: float, most: int, seed: int, limit_s: float) -> Trial:
    """Offers `rate` images/s for `seconds`, and longer where few would arrive.

    Args:
        run: Computes a batch, given the number of its first image and its size.
        rate: Images per second.
        seconds: How long, at least.
        most: The largest batch.
        seed: Of the arrivals.
        limit_s: The p99 above which the rate is not held; once that is certain the trial ends, and its p99 is the one
            so far, which is above the limit too.
    """
    count = max(int(rate * seconds), min(QUERIES, int(rate * LONGEST)), LEAST)
    batches: list[int] = []
    found = latencies(run, rate, count, most, seed, limit_s, batches)
    return Trial(rate, float(np.percentile(found, 99)) * 1e3, sum(batches) / len(batches))


def latencies(
    run: Callable[[int, int], Any],
    rate: float,
    count: int,
    most: int,
    seed: int,
    limit_s: float = float("inf"),
    batches: list[int] | None = None,
) -> NDArray[np.float64]:
    """Seconds from each arrival to its answer: `count` of them, or fewer once the p99 of all must exceed `limit_s`.

    The sizes of the batches that were made are appended to `batches`.
    """
    due = np.cumsum(np.random.default_rng(seed).exponential(1 / rate, count))
    found, done, late = np.zeros(count), 0, 0
    most_late = count - 1 - int(0.99 * (count - 1))  # answers above the limit that a p99 within it allows
    start = time.perf_counter()
    while done < count and late <= most_late:
        now = time.perf_counter() - start
        if now < due[done]:
            if due[done] - now > 2e-3:
                time.sleep(due[done] - now - 1e-3)
            continue
        waiting = int(np.searchsorted(due, now, side="right")) - done
        size = min(most, 1 << (waiting.bit_length() - 1))
        run(done, size)
        taken = time.perf_counter() - start - due[done : done + size]
        found[done : done + size] = taken
        if batches is not None:
            batches.append(size)
        done, late = done + size, late + int((taken > limit_s).sum())
    return found[:done]


def search(run: Callable[[int, int], Any], capacity: float, most: int, limit_ms: float, seconds: float) -> Server:
    """The highest rate that is held, in images/s; `capacity` is that of Offline. 0 where no rate tried was held."""
    found = Search(RULE, capacity, limit_ms)
    while not found.done:
        found.saw(trial(run, found.rate, seconds, most, len(found.trials), limit_ms / 1e3))
    return Server(round(found.low, 1), found.p99_ms, found.batch, found.told)
