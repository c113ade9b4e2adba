"""One real worker for `python -m benchmarks.scale check`: measures its service times, then its latencies under load."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.measuring.server import latencies
from catalog import plugin, write_atomic

SIZES = (1, 2, 4, 8, 16, 32)
LOADS = (0.3, 0.6, 0.8)  # of the capacity at the best batch


def main(job: dict[str, Any]) -> None:
    """Measures and writes `job["out"]`; begins when all `job["workers"]` are ready."""
    rng = np.random.default_rng(job["seed"])
    images = rng.integers(0, 256, (256, *job["shape"]), np.uint8)
    predict = plugin("export.formats", job["format"]).load(Path(job["file"]), 1, spinning=False)

    def run(first: int, size: int) -> Any:
        return predict(images.take(range(first, first + size), axis=0, mode="wrap"))

    for size in SIZES:
        run(0, size)
    _wait_for_all(job)
    times = {size: _times(lambda size=size: run(0, size), 0.5) for size in SIZES}
    batch_s = {size: float(np.median(found)) for size, found in times.items()}
    spread = np.percentile(times[1], (0, 50, 90, 99, 99.9)) - batch_s[1]
    most = max(SIZES, key=lambda size: size / batch_s[size])
    loads = []
    for index, share in enumerate(LOADS):
        rate = share * most / batch_s[most]
        found = latencies(run, rate, int(rate * job["seconds"]), most, 100 * job["seed"] + index)
        p50, p99 = (float(np.percentile(found, q)) * 1e3 for q in (50, 99))
        loads.append({"rate": rate, "queries": len(found), "p50_ms": p50, "p99_ms": p99})
    told = {"batch_s": {s: t for s, t in batch_s.items() if s <= most}, "spread_s": spread.tolist(), "loads": loads}
    write_atomic(Path(job["out"]), json.dumps(told))


def _times(call: Any, seconds: float) -> list[float]:
    found: list[float] = []
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(found) < 50:
        start = time.perf_counter()
        call()
        found.append(time.perf_counter() - start)
    return found


def _wait_for_all(job: dict[str, Any]) -> None:
    """So that workers compete with each other from the first measured call on."""
    folder = Path(job["ready"])
    (folder / f"{job['seed']}.ready").touch()
    deadline = time.monotonic() + 120
    while len(list(folder.glob("*.ready"))) < job["workers"] and time.monotonic() < deadline:
        time.sleep(0.01)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
