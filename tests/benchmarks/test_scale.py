"""The simulated fleet against what queueing theory knows, and the page that is made from it."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import results, scale
from benchmarks.reporting import words
from benchmarks.results import Results
from benchmarks.scale import fleet, worker
from benchmarks.scale.fleet import Service, held, needed, piled_up, simulate, surge
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


def test_a_surge_beyond_the_capacity_in_closed_form() -> None:
    """1,000 able, 1,500 come: 500/s pile up for 4 s, then 2,500 are able and 1,000/s go."""
    found = piled_up(1000, 1500, 4.0, 2500, 0.1)
    assert found.recovered_s == pytest.approx(4 + (2000 - 250) / 1000)
    assert found.late_requests == pytest.approx(1500 * (found.recovered_s - 0.2))
    short = piled_up(1000, 1500, 0.3, 2500, 0.1)  # 150 behind: late at the old capacity only
    assert (short.recovered_s, short.late_requests) == pytest.approx((0.3, 1500 * 0.1))
    assert piled_up(1000, 1500, 0.1, 2500, 0.1).late_requests == 0


@pytest.mark.parametrize("replicas", range(16, 25))
def test_a_surge_is_held_where_the_simulation_says_so(replicas: int) -> None:
    """15 replicas' worth of load: fewer than that pile up, somewhat more are late at times, many hold it."""
    found = surge(ALONE, replicas, 15_000, 60.0, 30, 5.0)
    late = simulate(ALONE, 15_000 / replicas, limit_ms=5.0)
    if late.p99_ms <= 5.0:
        assert (found.late_requests, found.recovered_s) == (0.0, 0.0)
    else:
        assert (found.late_requests, found.recovered_s) == (late.late * 15_000 * 60, 60.0) and late.late > 0.01


def test_a_surge_at_both_ends() -> None:
    assert surge(ALONE, 10, 15_000, 60.0, 30, 5.0) == piled_up(10_000, 15_000, 60.0, 30_000, 0.005)
    assert surge(ALONE, 17, 15_000, 0.0, 30, 5.0).late_requests == 0
    assert math.isinf(surge(ALONE, 10, 15_000, 0.0, 16, 5.0).recovered_s)  # what comes does not hold it either


def test_the_careful_column_leaves_room_for_what_the_check_found(golden: Results) -> None:
    row = next(row for row in golden.rows if row.variant == Variant("mobilenetv2", "onnx", "int8"))
    detail = golden.details[str(row.variant)]
    plain, careful = (scale._cores(row, detail, 0.04, factor) for factor in (None, 3.0))
    assert plain["careful"] is None and plain["cores"] == careful["cores"]
    assert careful["careful"] > careful["cores"][scale.RATES[-1]]
    hopeless = scale._cores(row, detail, 0.04, 1e3)
    assert hopeless["careful"] is None


def test_the_page_says_how_far_real_workers_were_off() -> None:
    check = json.loads(scale.CHECK.read_text())
    factors = [row["p99_ms"] / row["simulated_p99_ms"] for row in check["rows"]]
    page = scale.PAGE.read_text(encoding="utf-8")
    assert f"{words.digits(min(factors))} to {words.digits(max(factors))} times the simulated one" in page
    assert "in replicas of 2 threads" in page


def test_both_spreads_end_at_the_p99(golden: Results) -> None:
    row = next(row for row in golden.rows if row.variant == Variant("mobilenetv2", "onnx", "int8"))
    measured = fleet.service(row, golden.details[str(row.variant)]).spread_s
    checked = worker._service({1: 0.001}, {1: [0.001] * 2000 + [0.002] * 30 + [0.1]})["spread_s"]
    assert measured[3] == measured[4] and checked[3] == checked[4] == pytest.approx(0.001)


def test_workers_that_take_too_long_are_stopped() -> None:
    sleeping = [subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]) for _ in range(2)]
    with pytest.raises(KilnError, match="not done after 0 s; fewer --seconds or --rounds"):
        scale._await(sleeping, 0.1)
    assert all(child.poll() for child in sleeping)
    with pytest.raises(KilnError, match="a worker failed"):
        scale._await([subprocess.Popen([sys.executable, "-c", "raise SystemExit(3)"])], 30)
    job = {"seconds": 40.0, "rounds": 5}
    assert worker.seconds(job) > 2 * 5 * len(worker.LOADS) * 40


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
