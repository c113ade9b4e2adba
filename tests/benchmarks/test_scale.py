"""The simulated fleet against what queueing theory knows, and the page that is made from it."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import catalog
from benchmarks import results, scale
from benchmarks.measuring import tax
from benchmarks.results import Detail, Results
from benchmarks.scale import fleet, real
from benchmarks.scale.fleet import Service, held, needed, piled_up, simulate, surge
from catalog import ROOT, KilnError, Measurement, Store, Variant
from tests.benchmarks.conftest import linear_onnx, write_model, write_variant

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


INT8 = "mobilenetv2/onnx-int8"


def int8(golden: Results) -> tuple[Measurement, Detail]:
    return next(row for row in golden.rows if str(row.variant) == INT8), golden.details[INT8]


def test_service_times_are_those_of_every_pass(golden: Results) -> None:
    row, detail = int8(golden)
    found = fleet.services(row, detail)
    assert len(found) == len(detail.passes) == 3
    for of, one in zip(found, detail.passes, strict=True):
        assert of.cores == golden.threads and of.capacity == pytest.approx(one.images_per_s)
        p50, p90, p99 = one.p50_ms / 1e3, one.p90_ms / 1e3, one.p99_ms / 1e3
        assert of.spread_s == pytest.approx((0.0, 0.0, p90 - p50, p99 - p50, p99 - p50))
    (alone,) = fleet.services(row, dataclasses.replace(detail, passes=[]))
    assert alone.capacity == pytest.approx(row.images_per_s)


def test_what_server_held_corrects_a_spread_of_turns(golden: Results) -> None:
    """One image alone took 40 ms at its p99 in turns; at 400/s Server had 12 ms, waiting included."""
    row, detail = int8(golden)
    passes = [dataclasses.replace(one, p90_ms=20.0, p99_ms=40.0) for one in detail.passes]
    turns = dataclasses.replace(detail, passes=passes, server_rate=None, server_p99_ms=None)
    assert not fleet.refuted(turns) and held(fleet.services(row, turns)[0], 15.0) == 0
    served = dataclasses.replace(turns, server_rate=400.0, server_p99_ms=12.0)
    assert fleet.refuted(served) and held(fleet.services(row, served)[0], 15.0) >= 400
    assert simulate(fleet.services(row, served)[0], 400.0).p99_ms <= 12.0
    quiet = dataclasses.replace(served, passes=detail.passes)
    assert not fleet.refuted(quiet) and fleet.services(row, quiet) == fleet.services(row, detail)


def test_all_rates_and_windows_have_the_same_luck() -> None:
    """Or the noise of the draws would be taken for what a window does, and a bisection would end anywhere."""
    spread = (0.0, 0.0, 0.0005, 0.004, 0.004)
    of = Service({1: 0.001, 2: 0.0015}, 1, spread)
    now, soon = simulate(of, 600.0), simulate(of, 600.0, window_s=1e-12)
    assert soon.p50_ms == pytest.approx(now.p50_ms) and soon.p99_ms == pytest.approx(now.p99_ms)
    p99 = [simulate(of, float(rate)).p99_ms for rate in range(300, 1200, 50)]
    assert p99 == sorted(p99)


def test_more_seeds_say_about_the_same() -> None:
    found = [held(Service({1: 0.001}, 1, (0.0, 0.0, 0.0002, 0.002, 0.002)), 8.0, seed=seed) for seed in range(6)]
    assert max(found) < 1.12 * min(found)


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
    one = scale._simulated(*int8(golden))
    plain, careful = (scale._cores(one, 0.04, factor) for factor in (None, 3.0))
    assert plain["careful"] is None and plain["cores"] == careful["cores"]
    assert careful["careful"] > careful["cores"][scale.RATES[-1]]
    hopeless = scale._cores(one, 0.04, 1e3)
    assert hopeless["careful"] is None


def checked(factors: tuple[float, ...] = (1.5, 2.0, 4.0), others: float = 1.0) -> real.Check:
    """A check of known factors."""
    rows = [
        real.Compared(
            workers=1,
            share=0.3,
            capacity=1000.0,
            rate=300.0,
            http_us=700.0,
            p50_ms=1.0,
            p99_ms=2.0 * factor,
            simulated_p50_ms=0.9,
            simulated_p99_ms=2.0,
            factor=factor,
        )
        for factor in factors
    ]
    return real.Check("tiny/onnx-int8", "a CPU", "2026-11-21T00:00:00Z", 2.0, 5, 0.1, others, 0.0, rows)


@pytest.fixture
def check_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the page looks for the check; there is none yet."""
    monkeypatch.setattr(scale, "CHECK", tmp_path / "check.json")
    return tmp_path / "check.json"


@pytest.fixture
def one_row(golden: Results) -> Results:
    """The golden run, had it been of one variant: a page is quickly made of it."""
    return dataclasses.replace(golden, rows=[row for row in golden.rows if str(row.variant) == "lenet/onnx-int8"])


def test_the_page_says_how_far_the_real_service_was_off(one_row: Results, check_file: Path) -> None:
    without = scale.text(one_row, "x.json")
    assert "has not been measured yet" in without and "careful" not in without and "Not yet on this machine" in without
    check_file.write_text(json.dumps(dataclasses.asdict(checked())))
    page = scale.text(one_row, "x.json")
    assert "had a p99 1.50 to 4.00 times the simulated one" in page and "in the middle 2.00 times" in page
    assert "simulated p99 stays under 7.50 ms" in page and "in replicas of 2 threads" in page
    assert "| 1 | 30% | 300 | 700 | 1.00 | 0.900 | 3.00 | 2.00 | 1.50 |" in page and "machine was busy" not in page
    check_file.write_text(json.dumps(dataclasses.asdict(checked((0.5, 0.8), others=31.0))))
    page = scale.text(one_row, "x.json")
    assert "simulated p99 stays under 15.0 ms" in page  # better than simulated is no reason to take less
    assert "The machine was busy (other processes took 31% of the processors' time): check again" in page


def test_http_costs_what_the_run_measured(golden: Results, one_row: Results) -> None:
    each = sorted(1e3 * detail.tax.beside_ms for detail in golden.details.values() if detail.tax)
    http = scale.http_cost(golden)
    assert (http.how, http.variants, http.low_us, http.high_us) == ("measured", len(each), each[0], each[-1])
    assert http.us == pytest.approx(each[len(each) // 2], rel=0.1)
    assert f"with {http.us:,.0f} µs for HTTP a request, as this run measured it" in scale.text(one_row, "x.json")
    untaxed = {name: dataclasses.replace(detail, tax=None) for name, detail in golden.details.items()}
    bare = dataclasses.replace(one_row, details=untaxed)
    assert scale.http_cost(bare) == scale.Http(scale.ASSUMED_US, "assumed")
    assert "which is an assumption, since this run measured nothing over HTTP" in scale.text(bare, "x.json")
    assert "with 123 µs for HTTP a request, as the page was told" in scale.text(one_row, "x.json", 123.0)


def test_the_check_runs_the_real_service(digits: Any, tmp_path: Path) -> None:
    """With one worker and with two: what a load simulates to is there beside what its clients saw."""
    store = Store(tmp_path / "store")
    write_model(store, digits)
    write_variant(store, digits, Variant("tiny", "onnx"), linear_onnx(digits))
    arguments = ["check", "tiny", "onnx-fp32", "--store", str(store.root), "--seconds", "0.3", "--rounds", "1"]
    done = CliRunner().invoke(scale.app, [*arguments, "--out", str(tmp_path / "check.json")])
    assert done.exit_code == 0, done.output
    found = catalog.from_json(real.Check, json.loads((tmp_path / "check.json").read_text()))
    assert [(row.workers, row.share) for row in found.rows] == [(n, share) for n in (1, 2) for share in real.LOADS]
    assert found.variant == "tiny/onnx-fp32" and found.others_percent is not None
    for row in found.rows:
        assert 0 < row.p50_ms <= row.p99_ms and 0 < row.simulated_p50_ms <= row.simulated_p99_ms
        assert row.rate == pytest.approx(row.share * row.capacity, rel=1e-3)
        assert row.factor == pytest.approx(row.p99_ms / row.simulated_p99_ms, rel=0.01)
        assert 1e3 * row.simulated_p50_ms >= 0.5 * row.http_us > 0  # HTTP is in what is simulated
    assert done.output.count("times the simulated") == len(found.rows)
    assert ("machine was busy" in " ".join(done.output.split())) == bool(found.warning)


def test_both_spreads_end_at_the_p99(golden: Results, monkeypatch: pytest.MonkeyPatch) -> None:
    measured = fleet.services(*int8(golden))[0].spread_s
    monkeypatch.setattr(real, "_times", lambda call, seconds: [0.001] * 2000 + [0.002] * 30 + [0.1])
    monkeypatch.setattr(tax, "ask", lambda *_: [{"http": 2.0, "compute": 1.25}])
    nothing: Any = None
    here = real.service(nothing, nothing, lambda size: None)
    assert measured[3] == measured[4] and here.spread_s[3] == here.spread_s[4] == pytest.approx(0.001)
    assert here.http_s == pytest.approx(0.00075) and here.cores == 1 and set(here.batch_s) == set(real.SIZES)


def test_the_committed_page_is_what_the_newest_committed_results_give() -> None:
    """After `make publish` it is so by itself; else: `python -m benchmarks.scale`."""
    page = scale.PAGE.read_text(encoding="utf-8")
    source = results.newest(ROOT / "results")
    assert page == scale.text(results.read(source), source.name)


def test_a_choice_that_holds_no_load_is_said_in_words(one_row: Results, check_file: Path) -> None:
    """One image takes longer than the limit: no fleet holds anything, and the page can be written all the same."""
    name = "lenet/onnx-int8"
    slow = dataclasses.replace(one_row.details[name], server_rate=0.0, server_p99_ms=None, tax=None)
    passes = [dataclasses.replace(one, p50_ms=20.0, p90_ms=30.0, p99_ms=40.0) for one in slow.passes]
    found = dataclasses.replace(one_row, details={name: dataclasses.replace(slow, passes=passes)})
    page = scale.text(found, "x.json")
    assert f"{name}, the choice of the largest network, holds no load within 15 ms in the worst pass, nor does" in page
    assert "## Batching window" not in page and "## Autoscaling lag" not in page and "inf" not in page
    assert "| lenet/onnx-int8 | – | – | – | – | – |" in page and "| 0 | 0 |" in page


def test_the_example_is_a_choice_that_holds_a_load(golden: Results, check_file: Path) -> None:
    slow = golden.details[INT8]
    passes = [dataclasses.replace(one, p90_ms=30.0, p99_ms=40.0) for one in slow.passes]
    details = {**golden.details, INT8: dataclasses.replace(slow, passes=passes, server_rate=0.0, server_p99_ms=None)}
    names = (INT8, "mobilenetv2/onnx-fp32", "simcnn/litert-fp32", "simcnn/onnx-fp32")
    rows = [row for row in golden.rows if str(row.variant) in names]
    page = scale.text(dataclasses.replace(golden, rows=rows, details=details), "x.json")
    assert f"{INT8}, the choice of the largest network, holds no load" in page
    assert "What follows is about simcnn/litert-fp32." in page and "Replicas of simcnn/litert-fp32 at three" in page


def test_the_windows_are_tried_at_a_load_that_keeps_the_limit(golden: Results) -> None:
    of = fleet.services(*int8(golden))[0]
    tight = dataclasses.replace(of, spread_s=(0.0, 0.0, 0.002, 0.012, 0.012))
    assert scale._windows(tight)[0]["p99_ms"] <= scale.LIMIT_MS < simulate(tight, 0.75 * tight.capacity).p99_ms


def test_the_page_holds_the_simulated_against_the_measured(one_row: Results, check_file: Path) -> None:
    name, figures = "lenet/onnx-int8", (1.0, 1e6)
    check_file.write_text(json.dumps(dataclasses.asdict(checked())))
    pages = []
    for rate in figures:
        served = dataclasses.replace(one_row.details[name], server_rate=rate, server_p99_ms=14.0)
        pages.append(scale.text(dataclasses.replace(one_row, details={name: served}), "x.json"))
    assert "None of 1 variants held more than simulated." in pages[0] and "no floors" not in pages[0]
    assert "1 of 1 variants held more than simulated, so the cores are estimates and no floors." in pages[1]
    assert "| a replica holds | measured |" in pages[0] and "| 1,000,000 |" in pages[1]
    assert ["These are floors. The real service had" in page for page in pages] == [True, False]


def test_what_only_one_of_the_two_holds_is_named(golden: Results) -> None:
    one = scale._simulated(*int8(golden))
    none = [(of, 0.0) for of, _ in one.passes]
    found = scale._beside(
        [
            dataclasses.replace(one, measured=0.0),
            dataclasses.replace(one, passes=none, measured=10.0),
            dataclasses.replace(one, measured=10.0, refuted=True),
            dataclasses.replace(one, measured=None),
        ]
    )
    assert (found.variants, found.ratios, found.more) == (2, [], 1)
    assert found.only_simulated == found.only_measured == found.corrected == [INT8]


@pytest.mark.parametrize(("cores", "told"), [(2, 2), (58, 58), (241, 250), (24_416, 25_000), (25_000, 25_000)])
def test_cores_have_two_digits_rounded_up(cores: int, told: int) -> None:
    assert scale.rounded_up(cores) == told


def test_nothing_to_serve_is_said(golden: Results, tmp_path: Path) -> None:
    rows = [dataclasses.replace(row, status="failed", reason="no", accuracy=None, p50_ms=None) for row in golden.rows]
    with pytest.raises(KilnError, match="no variant that serving could take"):
        scale.text(dataclasses.replace(golden, rows=rows), "x.json")
    with pytest.raises(KilnError, match="no results in"):
        results.newest(tmp_path)
