"""A simulation of replicas behind a load balancer, from the service times that a run measured. Seeded and pure.

Requests are handed out at random, as many balancers without a common memory do: every replica then sees Poisson
arrivals of its own, all are alike, and simulating one simulates them all (`balancing` has other balancers). A replica
takes what waits, in powers of two up to its best batch, as `benchmarks.measuring.server` does for real.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.results import Detail
from catalog import Measurement

QUERIES = 10_000  # of a simulation: a hundred are above the p99
FULLEST = 90  # percent of its capacity that a replica is given: a queue at the capacity itself never drains


@dataclass(frozen=True)
class Service:
    """What one replica of a variant costs: seconds of a batch by its size, on `cores` cores.

    `spread_s` holds the seconds beyond the median at the quantiles 0, .5, .9, .99 and 1 of one image: what disturbs a
    process disturbs a batch of any size for as long. `http_s` is processor time of each request beside the batch.
    """

    batch_s: dict[int, float] = field(hash=False)
    cores: int
    spread_s: tuple[float, ...] = (0.0, 0.0, 0.0, 0.0, 0.0)
    http_s: float = 0.0

    def seconds(self, size: int) -> float:
        """Median time of a batch; HTTP included."""
        return self.batch_s[size] + size * self.http_s

    def beyond(self, luck: Any) -> Any:
        """Seconds beyond the median of batches as disturbed as these numbers in 0..1 say."""
        return np.interp(luck, (0, 0.5, 0.9, 0.99, 1), self.spread_s)

    @property
    def most(self) -> int:
        """The batch with the highest throughput."""
        return max(self.batch_s, key=lambda size: size / self.seconds(size))

    @property
    def capacity(self) -> float:
        """Images/s at that batch."""
        return self.most / self.seconds(self.most)


def services(row: Measurement, detail: Detail, http_s: float = 0.0) -> list[Service]:
    """The service times of a measured row in each of its passes: medians of several would be of no minute there was.

    Where Server refutes their spread it is drawn together until the first pass does what Server did; see `refuted`.
    """
    assert row.p50_ms and row.p90_ms and row.p99_ms
    if not detail.passes:  # an older file
        found = [_service((row.p50_ms, row.p90_ms, row.p99_ms), row.images_per_s_at, row.threads)]
    else:
        found = [
            _service((one.p50_ms, one.p90_ms, one.p99_ms), one.images_per_s_at, row.threads) for one in detail.passes
        ]
    if refuted(detail):
        assert detail.server_rate and detail.server_p99_ms
        share = _spread_share(found[0], detail.server_rate, detail.server_p99_ms)
        found = [_drawn_together(of, share) for of in found]
    return [dataclasses.replace(of, http_s=http_s) for of in found]


def refuted(detail: Detail) -> bool:
    """Whether Server had a lower p99, waiting included, than single images have alone in the same pass.

    Then the spread of these is that of taking turns with other variants, which a replica of its own does not.
    """
    if not detail.passes or not detail.server_rate or not detail.server_p99_ms:
        return False
    return detail.passes[0].p99_ms > detail.server_p99_ms


def _service(times: tuple[float, float, float], rates_at: dict[str, float], threads: int) -> Service:
    """For every power of two up to the best batch; `times` are p50, p90 and p99 of one image."""
    p50, p90, p99 = times
    rates = {int(size): rate for size, rate in rates_at.items()}
    known, best = sorted(rates), max(rates, key=lambda size: rates[size])
    sizes = [1 << i for i in range(best.bit_length())]
    seconds = np.interp(sizes, known, [size / rates[size] for size in known])
    spread = tuple((ms - p50) / 1e3 for ms in (p50, p50, p90, p99, p99))
    return Service(dict(zip(sizes, seconds.tolist(), strict=True)), threads, spread)


def _spread_share(of: Service, rate: float, p99_ms: float) -> float:
    """The largest share of its spread, to a 64th, with which a replica keeps a p99 at a rate; 0 if with none."""
    return highest(64, lambda count: simulate(_drawn_together(of, count / 64), rate).p99_ms <= p99_ms) / 64


def highest(most: int, fine: Callable[[int], bool]) -> int:
    """The highest count up to `most` that is fine, where all below one that is are too; 0 if none is."""
    low, high = 0, most
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fine(middle) else (low, middle - 1)
    return low


def _drawn_together(of: Service, share: float) -> Service:
    return dataclasses.replace(of, spread_s=tuple(share * beyond for beyond in of.spread_s))


@dataclass(frozen=True)
class Outcome:
    """What one simulated load came to."""

    p50_ms: float
    p99_ms: float
    batch: float  # images taken together, on average
    busy: float  # share of the time a replica computes
    late: float = 0.0  # share of the requests that waited longer than the limit


def simulate(
    of: Service,
    rate: float,
    window_s: float = 0.0,
    seed: int = 0,
    queries: int = QUERIES,
    limit_ms: float = math.inf,
) -> Outcome:
    """A replica that gets `rate` images/s and waits up to `window_s` for company before it begins a batch.

    Of one seed all rates and windows see the same arrivals, only nearer together, and the same disturbances: what
    differs between them is what they do.
    """
    arrivals, luck = _drawn(seed, queries)
    due = arrivals / rate
    latencies, batches, busy = _served(of, due, of.beyond(luck), window_s)
    settled = latencies[queries // 10 :] * 1e3  # the first requests meet an empty replica
    p50, p99 = (float(np.percentile(settled, q)) for q in (50, 99))
    late = float((settled > limit_ms).mean())
    return Outcome(p50, p99, queries / batches, min(1.0, busy / float(due[-1])), late)


@functools.lru_cache(maxsize=8)
def _drawn(seed: int, queries: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Poisson arrivals at one a second, and for each batch a number in 0..1 that says how disturbed it is."""
    rng = np.random.default_rng(seed)
    return np.cumsum(rng.exponential(1, queries)), rng.random(queries)


def _served(
    of: Service, due: NDArray[np.float64], extra: NDArray[np.float64], window_s: float
) -> tuple[NDArray[np.float64], int, float]:
    """Latencies in seconds of the arrivals at one replica, the batches it made, and the seconds it computed."""
    count, most, free = len(due), of.most, 0.0
    times = {size: of.seconds(size) for size in of.batch_s}
    latencies, done, batches, busy = np.empty(count), 0, 0, 0.0
    arrivals = due.tolist()
    while done < count:
        start = max(free, arrivals[done])
        if window_s:
            full = arrivals[done + most - 1] if done + most <= count else math.inf
            start = max(start, min(arrivals[done] + window_s, full))
        waiting = 1
        while waiting < most and done + waiting < count and arrivals[done + waiting] <= start:
            waiting += 1
        size = 1 << (waiting.bit_length() - 1)
        spent = max(0.0, times[size] + extra[batches])
        free = start + spent
        latencies[done : done + size] = free - due[done : done + size]
        done, batches, busy = done + size, batches + 1, busy + spent
    return latencies, batches, busy


@functools.lru_cache(maxsize=64)
def held(of: Service, limit_ms: float, window_s: float = 0.0, seed: int = 0) -> float:
    """The highest rate of one replica, in images/s, that keeps p99 under the limit, up to `FULLEST`."""
    return rate_held(of, lambda rate: simulate(of, rate, window_s, seed).p99_ms <= limit_ms)


def rate_held(of: Service, fine: Callable[[float], bool]) -> float:
    """The highest rate of a replica that is fine, in percents of its capacity up to `FULLEST`."""
    return highest(FULLEST, lambda percent: fine(percent / 100 * of.capacity)) / 100 * of.capacity


def needed(rate: float, each: float) -> int | None:
    """Replicas for a load, given what each holds; None where each holds nothing."""
    return math.ceil(rate / each) if each else None


def cost_per_million(cores: int, rate: float, core_hour: float) -> float:
    """The price of a million predictions, in the currency of `core_hour`."""
    return cores * core_hour / 3600 / rate * 1e6


@dataclass(frozen=True)
class Surge:
    """What a sudden rise of the load does before and after new replicas arrive."""

    late_requests: float  # that waited longer than the limit
    recovered_s: float  # after the rise until p99 is under the limit again; infinite where it never is

    @property
    def never(self) -> bool:
        """Whether what comes does not hold the load either."""
        return math.isinf(self.recovered_s)


def surge(of: Service, replicas: int, load: float, lag_s: float, grown: int, limit_ms: float) -> Surge:
    """A rise of the load to `load` images/s, met by `replicas`, and by `grown` of them `lag_s` later.

    Below what the replicas hold p99 stays under the limit. Between that and their capacity nothing piles up, but queues
    are as long as in a simulation of that load; beyond the capacity they grow.
    """
    holds = held(of, limit_ms)
    if load > grown * holds:
        return Surge(math.inf, math.inf)
    if load <= replicas * holds:
        return Surge(0.0, 0.0)
    if load >= replicas * of.capacity:
        return piled_up(replicas * of.capacity, load, lag_s, grown * of.capacity, limit_ms / 1e3)
    return Surge(simulate(of, load / replicas, limit_ms=limit_ms).late * load * lag_s, lag_s)


def piled_up(capacity: float, load: float, lag_s: float, grown: float, limit_s: float) -> Surge:
    """A load above the capacity until that has `grown` beyond it, all in images/s, counted as a flow.

    What arrives beyond the capacity queues up and is served in order, so an image waits for as long as the queue before
    it takes at the capacity of the moment.
    """
    behind = (load - capacity) * lag_s  # images waiting when the new replicas arrive
    begins = limit_s * capacity / (load - capacity)
    late_until = lag_s
    if behind > limit_s * grown:
        late_until += (behind - limit_s * grown) / (grown - load)
    return Surge(load * (late_until - begins), late_until) if begins < late_until else Surge(0.0, 0.0)
