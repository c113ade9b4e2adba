"""Server over HTTP: the bisection by itself; the real service is in test_benchmark_runs."""

from __future__ import annotations

import pytest

from benchmarks.measuring.bisection import HEADROOM, Search, Trial
from benchmarks.measuring.http_server import RULE


def searched(holds: float) -> Search:
    """A search over a service that holds any rate up to this one."""
    search = Search(RULE, 1000.0, 15.0)
    while not search.done:
        search.saw(Trial(search.rate, 3.0 if search.rate <= holds else 40.0))
    return search


@pytest.mark.parametrize("holds", [100.0, 333.0, 800.0])
def test_the_rate_is_found(holds: float) -> None:
    found = searched(holds)
    assert holds - HEADROOM * 1000 / 2**RULE.steps <= found.low <= holds and found.p99_ms == 3.0
    rates = [rate for rate, _ in found.told]
    assert rates[: RULE.tries] == [950.0] * RULE.tries and len(set(rates)) == RULE.steps + 1


def test_both_ends() -> None:
    most, nothing = searched(2000.0), searched(0.0)
    assert (most.low, most.p99_ms, most.told) == (950.0, 3.0, [[950.0, 3.0]])
    assert (nothing.low, nothing.p99_ms, nothing.batch) == (0.0, None, None)


def test_a_moment_s_disturbance_costs_no_rate() -> None:
    search = Search(RULE, 1000.0, 15.0)
    search.saw(Trial(950.0, 90.0))
    assert search.rate == 950.0 and not search.done
    search.saw(Trial(950.0, 4.0))
    assert search.done and search.told == [[950.0, 90.0], [950.0, 4.0]] and search.p99_ms == 4.0


def test_quick_answers_that_are_not_all_there_hold_nothing() -> None:
    search = Search(RULE, 1000.0, 15.0)
    search.saw(Trial(950.0, 1.0), whole=False)
    search.saw(Trial(950.0, 1.0), whole=False)
    assert search.rate == 475.0 and search.p99_ms is None
