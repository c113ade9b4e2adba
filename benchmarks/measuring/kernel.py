"""The calibration kernel: a fixed product of small float32 matrices on one core, timed between a variant's own rounds.

A latency in milliseconds holds for one machine in one hour. Divided by this kernel's time in the same process and the
same second it can be compared with another run's, which is what `python -m benchmarks compare` does.
"""

from __future__ import annotations

import statistics
import time

import numpy as np

STACK, SIDE = 16, 64  # 4.2 M multiply-accumulates: about 0.1 ms. A larger side would wake OpenBLAS's threads, whose
# waiting for a core beside a runtime's own threads would then be measured instead.
EVERY = 0.02  # seconds of rounds between two samples


class Kernel:
    """Times itself when asked, at most every `EVERY` seconds; each scenario has samples of its own."""

    def __init__(self) -> None:
        rng = np.random.default_rng(0)
        self._left = rng.standard_normal((STACK, SIDE, SIDE), np.float32)
        self._right = rng.standard_normal((STACK, SIDE, SIDE), np.float32)
        self._product = np.empty((STACK, SIDE, SIDE), np.float32)
        self._times: dict[str, list[float]] = {}
        self._due = 0.0
        for _ in range(20):
            self._once()

    def _once(self) -> float:
        start = time.perf_counter()
        np.matmul(self._left, self._right, out=self._product)
        return time.perf_counter() - start

    def sample(self, scenario: str) -> None:
        """Three products, the quickest of which is kept; nothing, if the last sample is recent."""
        if time.perf_counter() < self._due:
            return
        self._times.setdefault(scenario, []).append(min(self._once() for _ in range(3)))
        self._due = time.perf_counter() + EVERY

    def median_ms(self, scenario: str) -> float:
        """Milliseconds; the median of all samples in a scenario, at least five."""
        times = self._times.setdefault(scenario, [])
        while len(times) < 5:
            times.append(self._once())
        return statistics.median(times) * 1e3
