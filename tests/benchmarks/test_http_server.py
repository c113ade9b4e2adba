"""Server over HTTP: the bisection by itself; the real service is in test_benchmark_runs."""

from __future__ import annotations

import pytest

from benchmarks.measuring.http_server import HEADROOM, STEPS, TRIES, Search


def searched(holds: float) -> Search:
    """A search over a service that holds any rate up to this one."""
    search = Search(1000.0, 15.0, 0.4)
    while not search.done:
        search.saw(3.0 if search.rate <= holds else 40.0, search.rate <= holds)
    return search


@pytest.mark.parametrize("holds", [100.0, 333.0, 800.0])
def test_the_rate_is_found(holds: float) -> None:
    found = searched(holds).found()
    assert holds - HEADROOM * 1000 / 2**STEPS <= found["server_rate"] <= holds and found["server_p99_ms"] == 3.0
    rates = [rate for rate, _ in found["server_trials"]]
    assert rates[:TRIES] == [950.0] * TRIES and len(set(rates)) == STEPS + 1


def test_both_ends() -> None:
    assert searched(2000.0).found() == {"server_rate": 950.0, "server_p99_ms": 3.0, "server_trials": [[950.0, 3.0]]}
    nothing = searched(0.0).found()
    assert nothing["server_rate"] == 0.0 and nothing["server_p99_ms"] is None


def test_a_moment_s_disturbance_costs_no_rate() -> None:
    search = Search(1000.0, 15.0, 0.4)
    search.saw(90.0, False)
    assert search.rate == 950.0 and not search.done
    search.saw(4.0, True)
    assert search.done and search.found()["server_trials"] == [[950.0, 90.0], [950.0, 4.0]]
