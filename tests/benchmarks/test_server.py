"""The Server scenario: the load a variant holds, on the real clock and on one that passes as the test says."""

from __future__ import annotations

import dataclasses
import time

import numpy as np
import pytest

from benchmarks.measuring import process, server
from benchmarks.measuring.bisection import HEADROOM, Rule, Search, Trial
from benchmarks.measuring.job import Outcome, Server
from benchmarks.measuring.process import Ran
from benchmarks.results import Pass
from catalog import Measurement, Variant

LIMIT_MS = 15.0
CAPACITY = 1780.0  # images/s, in batches of eight


class Machine:
    """Its own clock, and a variant that takes half a millisecond and half an image's; it pauses now and then."""

    def __init__(self, seed: int, every_s: float) -> None:
        self.now, self.every_s = 0.0, every_s
        self.chance = np.random.default_rng(seed)
        self.pause = self.chance.exponential(every_s)

    def perf_counter(self) -> float:
        self.now += 5e-5
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds

    def run(self, first: int, size: int) -> None:
        self.now += 0.5e-3 * (1 + size)
        if self.now > self.pause:
            self.now += 0.02
            self.pause = self.now + self.chance.exponential(self.every_s)


def held(monkeypatch: pytest.MonkeyPatch, seed: int, every_s: float) -> Server:
    machine = Machine(seed, every_s)
    monkeypatch.setattr(server, "time", machine)
    return server.search(machine.run, CAPACITY, 8, LIMIT_MS, 0.4)


def test_pauses_of_the_machine_do_not_decide_what_a_variant_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    """One of 20 ms about every three seconds fails some trials; the variant is the same all the time."""
    steady = held(monkeypatch, 0, float("inf"))
    assert steady.rate == pytest.approx(HEADROOM * CAPACITY, rel=0.07)  # arrivals are drawn, and a finest step is 3%
    paused = [held(monkeypatch, seed, 3.0) for seed in range(12)]
    assert min(found.rate for found in paused) > 0.7 * steady.rate
    assert np.median([found.rate for found in paused]) > 0.95 * steady.rate
    failed = [
        p99 for found in paused for rate, p99 in found.trials if p99 > 1.2 * LIMIT_MS and rate < 0.9 * steady.rate
    ]
    assert failed and all(found.p99_ms and found.p99_ms <= LIMIT_MS for found in paused)


def test_a_rate_that_is_not_held_is_tried_again_and_given_up_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(0, float("inf"))
    monkeypatch.setattr(server, "time", machine)
    hopeless = server.search(machine.run, 800.0, 8, 0.5, 0.4)
    assert (hopeless.rate, hopeless.p99_ms) == (0.0, None)
    assert [rate for rate, _ in hopeless.trials[:2]] == [760.0] * 2  # a third could not save it
    assert len(hopeless.trials) == 2 * (1 + server.RULE.steps) and all(p99 > 0.5 for _, p99 in hopeless.trials)
    assert machine.now < 10


def test_rates_so_low_that_trials_would_take_long_are_not_looked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    slow = search_over(monkeypatch, {}, capacity=100.0)
    assert [rate for rate, _ in slow.trials] == [95.0] * 2 + [47.5] * 2 + [23.8] * 2 and slow.rate == 0
    slowest = search_over(monkeypatch, {9.5: [3.0, 4.0]}, capacity=10.0)  # its first is tried all the same
    assert (slowest.rate, slowest.p99_ms) == (9.5, 4.0)


def search_over(monkeypatch: pytest.MonkeyPatch, p99s: dict[float, list[float]], capacity: float = 1000.0) -> Server:
    """A search whose trials find, rate by rate, these p99 in ms; other rates find one far above the limit."""
    left = {rate: iter(values) for rate, values in p99s.items()}

    def trial(run: object, rate: float, *_: object) -> Trial:
        return Trial(rate, next(left.get(rate, iter([])), 99.0), 2.0)

    monkeypatch.setattr(server, "trial", trial)
    return server.search(lambda first, size: None, capacity, 8, LIMIT_MS, 0.4)


def test_one_lucky_trial_of_three_holds_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    lucky = search_over(monkeypatch, {950.0: [20.0, 5.0, 30.0], 475.0: [30.0, 2.0, 4.0]})
    assert lucky.rate == 475.0 and [rate for rate, _ in lucky.trials[:5]] == [950.0] * 3 + [475.0] * 2
    assert lucky.p99_ms == 4.0 and lucky.trials[-1] == [475.0, 4.0]  # the higher of the two that held it
    both = search_over(monkeypatch, {950.0: [6.0, 4.0]})
    assert (both.rate, both.p99_ms) == (950.0, 6.0) and len(both.trials) == 2


def searched(p99s: dict[float, list[float]]) -> Search:
    """A search to a sixteenth of 1,000 images/s whose trials find these p99 in ms; other rates are not held."""
    left = {rate: iter(values) for rate, values in p99s.items()}
    search = Search(Rule(held=2, tries=3, steps=4), 1000.0, LIMIT_MS)
    while not search.done:
        search.saw(Trial(search.rate, next(left.get(search.rate, iter([])), 99.0)))
    return search


def test_a_rate_on_the_way_is_believed_once_and_the_last_one_after_another_trial() -> None:
    found = searched({475.0: [3.0], 712.5: [20.0, 4.0], 831.25: [5.0, 6.0]})
    assert [trial.rate for trial in found.trials] == [*[950.0] * 2, 475, *[712.5] * 2, 831.25, *[890.625] * 2, 831.25]
    assert (found.low, found.p99_ms) == (831.25, 6.0)


def test_where_the_other_trials_fail_the_search_goes_on_below() -> None:
    found = searched({475.0: [3.0, 7.0], 593.75: [30.0, 2.0, 30.0], 712.5: [4.0, 30.0, 30.0]})
    last = [*[712.5] * 2, *[593.75] * 3, 475.0]
    assert [trial.rate for trial in found.trials][-len(last) :] == last  # no new rate after so many trials
    assert len(found.trials) > found.rule.most and (found.low, found.p99_ms) == (475.0, 7.0)


def test_the_load_held_is_below_what_the_variant_can_and_above_none() -> None:
    def run(first: int, size: int) -> None:
        end = time.perf_counter() + 0.001 * size
        while time.perf_counter() < end:
            pass

    found = server.search(run, 1000.0, 4, 50.0, 0.05)
    assert 100 < found.rate <= 950 and found.p99_ms and found.p99_ms <= 50 and found.batch and found.batch >= 1


def test_latencies_count_the_wait_of_an_open_loop() -> None:
    sizes: list[int] = []
    found = server.latencies(lambda first, size: time.sleep(0.02), 200.0, 40, 8, 0, batches=sizes)
    assert len(found) == 40 == sum(sizes) and set(sizes) <= {1, 2, 4, 8} and max(sizes) > 1
    assert found.min() >= 0.02 and np.median(found) > 0.02


@pytest.mark.parametrize(("count", "late"), [(100, 2), (400, 5), (1000, 11)])
def test_a_trial_ends_once_its_p99_must_be_above_the_limit(
    count: int, late: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = Machine(0, float("inf"))
    monkeypatch.setattr(server, "time", machine)
    found = server.latencies(machine.run, 100.0, count, 1, 0, limit_s=1e-4)
    assert len(found) == late and np.percentile(found, 99) > 1e-4
    whole = np.full(count, 1e-5)
    whole[:late] = found
    assert np.percentile(whole, 99) > 1e-4  # whatever the others had become


def test_the_load_told_is_not_above_the_throughput_told() -> None:
    """The pass that measured it may have been the quickest of all; nobody knows the p99 at a rate not tried."""

    def ran(images_per_s: float, server: Server | None) -> Ran:
        outcome = Outcome(1.0, 1.0, 1, True, 1, 1, 0.1, 1, [0], server)
        return Ran(Pass(0, True, 1, 1.0, 1.0, 1.0, {"8": images_per_s}, 0.1), outcome, [1.0], [1.0], 0.1, {"8": 1}, 1.0)

    first = Server(950.0, 4.0, 2.0, [[950.0, 40.0], [950.0, 4.0]])
    row = Measurement(Variant("m", "onnx"), "ok")
    row, detail = process.merged(row, [ran(1000.0, first), ran(800.0, None), ran(700.0, None)])
    assert (row.images_per_s, detail.server_rate, detail.server_trials) == (800.0, 800.0, first.trials)
    assert detail.server_p99_ms is None and detail.server_batch is None
    _, detail = process.merged(row, [ran(1000.0, dataclasses.replace(first, rate=400.0))])
    assert (detail.server_rate, detail.server_p99_ms, detail.server_batch) == (400.0, 4.0, 2.0)
