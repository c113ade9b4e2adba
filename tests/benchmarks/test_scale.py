"""The simulated fleet against what queueing theory knows, and the page that is made from it."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from benchmarks import results, scale
from benchmarks.results import Results
from benchmarks.scale import fleet
from benchmarks.scale.fleet import Service, held, needed, simulate, surge
from catalog import ROOT, KilnError, Variant

ALONE = Service({1: 0.001}, 1)  # a thousand a second, one at a time, always as long


@pytest.mark.parametrize("load", [0.3, 0.6, 0.8])
def test_one_replica_is_an_md1_queue(load: float) -> None:
    """Whose mean wait is load / (2 (1 - load)) service times."""
    import numpy as np

    due = np.cumsum(np.random.default_rng(0).exponential(0.001 / load, 60_000))
    latencies, batches, busy = fleet._served(ALONE, due, np.zeros(len(due)), 0.0)
    assert batches == len(due) and busy / due[-1] == pytest.approx(load, rel=0.03)
    assert latencies.mean() - 0.001 == pytest.approx(0.001 * load / (2 * (1 - load)), rel=0.1)


def test_turns_smooth_the_arrivals() -> None:
    """The same load a replica waits less where a balancer hands out in turn among many."""
    one, many = simulate(ALONE, 800), simulate(ALONE, 800, in_turn_among=100)
    assert many.p99_ms < 0.6 * one.p99_ms and many.p50_ms == pytest.approx(1.0)


def test_a_spread_of_times_costs_at_the_p99() -> None:
    even, uneven = (
        simulate(Service({1: 0.001}, 1, spread), 500) for spread in [(0.0,) * 5, (-0.0001, 0, 0.0002, 0.003, 0.003)]
    )
    assert uneven.p99_ms > 1.5 * even.p99_ms


def test_batches_grow_with_the_load_and_with_a_window() -> None:
    of = Service({1: 0.001, 2: 0.0011, 4: 0.0013, 8: 0.0016}, 1)
    assert (of.most, round(of.capacity)) == (8, 5000)
    light, heavy = simulate(of, 300), simulate(of, 4500)
    assert light.batch < 1.5 < 4 < heavy.batch
    waited = simulate(of, 1000, window_s=0.005)
    assert waited.batch > simulate(of, 1000).batch and waited.p50_ms > simulate(of, 1000).p50_ms


def test_a_full_batch_does_not_wait_for_the_window() -> None:
    of = Service({1: 0.001, 2: 0.001}, 1)
    assert simulate(of, 1500, window_s=10.0).p99_ms < 100


def test_the_rate_a_replica_holds() -> None:
    rate = held(ALONE, 5.0)
    assert 500 < rate < 950
    assert simulate(ALONE, rate).p99_ms <= 5.0 < simulate(ALONE, rate + 10).p99_ms
    assert held(ALONE, 5.0, in_turn_among=50) > rate
    assert held(ALONE, 0.9) == 0  # one alone takes longer
    assert (needed(10_000, rate), needed(1, rate), needed(10_000, 0)) == (math.ceil(10_000 / rate), 1, None)


def test_the_same_seed_gives_the_same_figures() -> None:
    assert simulate(ALONE, 700, seed=3) == simulate(ALONE, 700, seed=3) != simulate(ALONE, 700, seed=4)


def test_http_counts_by_request() -> None:
    of = Service({1: 0.001, 4: 0.002}, 1, http_s=0.001)
    assert of.seconds(4) == pytest.approx(0.006) and of.capacity == pytest.approx(4 / 0.006)


def test_service_times_are_the_measured_ones(golden: Results) -> None:
    row = next(row for row in golden.rows if row.variant == Variant("mobilenetv2", "onnx", "int8"))
    of = fleet.service(row, golden.details[str(row.variant)])
    assert of.cores == golden.threads and of.most == row.offline_batch
    assert of.capacity == pytest.approx(row.images_per_s)
    assert row.p50_ms and row.p90_ms and row.p99_ms
    p50, p90, p99 = row.p50_ms / 1e3, row.p90_ms / 1e3, row.p99_ms / 1e3
    assert of.spread_s[1:4] == pytest.approx((0.0, p90 - p50, p99 - p50))


def test_cost() -> None:
    assert fleet.cost_per_million(100, 1e6, 0.36) == pytest.approx(0.01)


def test_a_surge_in_closed_form() -> None:
    """1,000 able, 1,500 come: 500/s pile up for 4 s, then 2,500 are able and 1,000/s go."""
    found = surge(1000, 1000, 1.5, 4.0, 2500, 0.1)
    assert found.longest_wait_s == pytest.approx(2.0)  # 2,000 before the last one, at the old capacity
    assert found.recovered_s == pytest.approx(4 + (2000 - 250) / 1000)
    assert found.late_requests == pytest.approx(1500 * (found.recovered_s - 0.2))
    short = surge(1000, 1000, 1.5, 0.3, 2500, 0.1)  # 150 behind: late at the old capacity only
    assert (short.recovered_s, short.late_requests) == pytest.approx((0.3, 1500 * 0.1))
    assert surge(1500, 1000, 1.5, 60, 1500, 0.1).late_requests == 0
    assert math.isinf(surge(1000, 1000, 1.5, 0.0, 1400, 0.1).recovered_s)


def test_the_committed_page_is_what_some_committed_results_give() -> None:
    """After `make publish` it is so by itself; else: `python -m benchmarks.scale`."""
    page = scale.PAGE.read_text(encoding="utf-8")
    source = next(path for path in (ROOT / "results").glob("*.json") if f"`results/{path.name}`" in page)
    assert page == scale.text(results.read(source), source.name)


def test_nothing_to_serve_is_said(golden: Results, tmp_path: Path) -> None:
    import dataclasses

    rows = [dataclasses.replace(row, status="failed", reason="no", accuracy=None, p50_ms=None) for row in golden.rows]
    with pytest.raises(KilnError, match="no variant that serving could take"):
        scale.text(dataclasses.replace(golden, rows=rows), "x.json")
    with pytest.raises(KilnError, match="no results in"):
        results.newest(tmp_path)
