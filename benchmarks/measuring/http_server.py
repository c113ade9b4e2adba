"""The Server scenario over HTTP: the highest rate of Poisson arrivals whose p99 at the client stays under a limit.

As `benchmarks.measuring.server`, but for two things: whoever waits is batched by the service, and those of many
variants take turns, so that what disturbs the machine for a moment costs a rate only one of its tries.
"""

from __future__ import annotations

from benchmarks.load import wire
from benchmarks.load.held import run
from benchmarks.measuring.bisection import Rule, Search, Trial

QUERIES = 200  # of a trial: two are then above the p99 …
LONGEST = 0.7  # … unless they took longer to arrive than these seconds
RULE = Rule(held=1, tries=2, steps=4)  # the rate is found to about a sixteenth of the closed loop's throughput
CONNECTIONS = 64
PATIENCE_S = 2.0  # for the last answers of a trial


def trial(search: Search, port: int, content: bytes, least_s: float) -> None:
    """Offers the next rate of a search once, for `least_s` seconds or longer."""
    seconds = max(least_s, min(QUERIES / search.rate, LONGEST))
    arrivals = (port, [content], search.rate, CONNECTIONS, seconds)
    seen = run(wire.open_loop(*arrivals, len(search.trials), PATIENCE_S, search.limit_ms / 1e3))
    search.saw(Trial(search.rate, seen.ms(99)), whole=not seen.lost and set(seen.statuses) == {200})
