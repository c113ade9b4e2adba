"""Replicas behind balancers: chance is what `fleet` reckons with, and whoever counts does better."""

from __future__ import annotations

import math
import random

import pytest

from benchmarks.scale import balancing, fleet
from benchmarks.scale.balancing import BALANCERS, held, simulate
from benchmarks.scale.fleet import Service

ALONE = Service({1: 0.001}, 1)
BATCHES = Service({1: 0.001, 2: 0.0015, 4: 0.0025}, 2, (-0.0001, 0, 0.0002, 0.002, 0.002))
CHANCE, TURNS, TWO, ALL = BALANCERS


@pytest.mark.parametrize("of", [ALONE, BATCHES])
def test_by_chance_it_is_the_replica_that_stands_for_all(of: Service) -> None:
    rate = 0.7 * of.capacity
    together, one = simulate(of, rate, CHANCE, queries=100_000), fleet.simulate(of, rate, queries=100_000)
    assert together.p50_ms == pytest.approx(one.p50_ms, rel=0.05)
    assert together.p99_ms == pytest.approx(one.p99_ms, rel=0.1)


def test_who_counts_what_is_under_way_has_shorter_queues() -> None:
    p99 = {name: simulate(ALONE, 800, name).p99_ms for name in BALANCERS}
    assert p99[ALL] < p99[TWO] < 0.5 * p99[CHANCE]
    p99 = {name: simulate(BATCHES, 0.8 * BATCHES.capacity, name).p99_ms for name in BALANCERS}
    assert max(p99[ALL], p99[TWO]) < 0.8 * p99[CHANCE]
    assert held(ALONE, 5.0, CHANCE) < held(ALONE, 5.0, TWO)


def test_two_replicas_in_turn_by_hand() -> None:
    """Four requests at 0, 1, 2 and 3 ms of 1.5 ms each: every other one goes to the same replica, and none waits."""
    luck = random.Random(0)
    of = Service({1: 0.0015}, 1)
    replicas = [balancing._Replica(of, luck) for _ in range(2)]
    for number in range(4):
        now = number / 1e3
        replicas[BALANCERS[TURNS](replicas, now, luck, number)].take(now)
    assert [replica.outstanding(0.0032) for replica in replicas] == [1, 1]
    for replica in replicas:
        replica.until(math.inf)
        assert replica.latencies == pytest.approx([0.0015, 0.0015])
    assert [replica.outstanding(1.0) for replica in replicas] == [0, 0]


def test_nobody_is_handed_more_than_the_least_busy_has() -> None:
    luck = random.Random(0)
    replicas = [balancing._Replica(ALONE, luck) for _ in range(3)]
    for _ in range(7):
        replicas[BALANCERS[ALL](replicas, 0.0, luck, 0)].take(0.0)
    assert sorted(replica.outstanding(0.0) for replica in replicas) == [2, 2, 3]


def test_the_same_seed_gives_the_same_figures() -> None:
    assert simulate(ALONE, 700, TWO, seed=3) == simulate(ALONE, 700, TWO, seed=3) != simulate(ALONE, 700, TWO, seed=4)
