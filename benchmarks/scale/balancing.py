"""Several replicas behind a balancer that knows more than chance, request by request. Seeded and pure.

`fleet` reckons with requests that are handed out at random, for which one replica stands for all. Here the replicas
are simulated together, since the balancer looks at them: what that buys at the same load, and in replicas.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from benchmarks.scale.fleet import Service, rate_held

REPLICAS = 16
QUERIES = 20_000  # for all of them
Balancer = Callable[["list[_Replica]", float, random.Random, int], int]


class Balanced(NamedTuple):
    """What a load came to, over all replicas."""

    p50_ms: float
    p99_ms: float


class _Replica:
    """One that takes what waits, in powers of two up to its best batch, as `fleet._served` does."""

    def __init__(self, of: Service, luck: random.Random) -> None:
        self._of, self._luck, self._most = of, luck, of.most
        self._seconds = {size: of.seconds(size) for size in of.batch_s}
        self._waiting: deque[float] = deque()
        self._free, self._computing = 0.0, 0
        self.latencies: list[float] = []

    def until(self, now: float) -> None:
        """Begins every batch that begins before `now`."""
        while self._waiting:
            start = max(self._free, self._waiting[0])
            if start >= now:
                return
            ready = 0
            for arrival in self._waiting:
                if ready == self._most or arrival > start:
                    break
                ready += 1
            size = 1 << (ready.bit_length() - 1)
            spent = max(0.0, self._seconds[size] + float(self._of.beyond(self._luck.random())))
            self._free, self._computing = start + spent, size
            self.latencies += [self._free - self._waiting.popleft() for _ in range(size)]

    def outstanding(self, now: float) -> int:
        """Requests that were handed to it and are not answered, which is what a balancer can count."""
        self.until(now)
        return len(self._waiting) + (self._computing if self._free > now else 0)

    def take(self, now: float) -> None:
        self._waiting.append(now)


def _at_random(replicas: list[_Replica], now: float, luck: random.Random, number: int) -> int:
    return luck.randrange(len(replicas))


def _in_turn(replicas: list[_Replica], now: float, luck: random.Random, number: int) -> int:
    return number % len(replicas)


def _of_two(replicas: list[_Replica], now: float, luck: random.Random, number: int) -> int:
    one, other = luck.sample(range(len(replicas)), 2)
    return one if replicas[one].outstanding(now) <= replicas[other].outstanding(now) else other


def _of_all(replicas: list[_Replica], now: float, luck: random.Random, number: int) -> int:
    counts = [replica.outstanding(now) for replica in replicas]
    least = min(counts)
    return luck.choice([place for place, count in enumerate(counts) if count == least])


BALANCERS: dict[str, Balancer] = {
    "at random": _at_random,
    "in turn": _in_turn,
    "to the one of two with fewer requests under way": _of_two,
    "to the one of all with the fewest": _of_all,
}


def simulate(
    of: Service, rate: float, balancer: str, replicas: int = REPLICAS, seed: int = 0, queries: int = QUERIES
) -> Balanced:
    """`replicas` of them that get `rate` images/s each, as Poisson arrivals at the balancer.

    Of one seed all rates and balancers see the same arrivals, only nearer together.
    """
    arrivals, luck = random.Random(seed), random.Random(seed + 1)
    fleet = [_Replica(of, random.Random(seed + 2 + number)) for number in range(replicas)]
    choose, now, unsettled = BALANCERS[balancer], 0.0, queries // 10 // replicas
    for number in range(queries):
        now += arrivals.expovariate(1) / (rate * replicas)
        fleet[choose(fleet, now, luck, number)].take(now)
    for replica in fleet:
        replica.until(float("inf"))
    met = [latency for one in fleet for latency in one.latencies[unsettled:]]  # the first meet empty ones
    return Balanced(*(float(np.percentile(met, q)) * 1e3 for q in (50, 99)))


def held(of: Service, limit_ms: float, balancer: str, replicas: int = REPLICAS, seed: int = 0) -> float:
    """The highest rate of each replica, in images/s, that keeps p99 under the limit, up to `FULLEST`."""
    return rate_held(of, lambda rate: simulate(of, rate, balancer, replicas, seed).p99_ms <= limit_ms)
