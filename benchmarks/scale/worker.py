"""One real worker for `python -m benchmarks.scale check`: its latencies under load, and what its batches took."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.measuring.server import latencies
from catalog import plugin, write_atomic

SIZES = (1, 2, 4, 8, 16, 32)
LOADS = (0.3, 0.6, 0.8)  # of the capacity at the best batch, as it was just before
SAMPLE_S = 0.25
FEW = 5
Run = Callable[[int, int], Any]
Times = dict[int, list[float]]  # seconds of every call, by batch


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
    loads = []
    for index, share in enumerate(LOADS * job["rounds"]):
        alone = {size: float(np.median(_times(lambda size=size: run(0, size), SAMPLE_S))) for size in SIZES}
        fastest, most = max((size / alone[size], size) for size in SIZES)
        rate = share * fastest
        during: Times = {}
        seed = 100 * job["seed"] + index
        found = latencies(_recorded(run, during), rate, int(rate * job["seconds"]), most, seed)
        p50, p99 = (float(np.percentile(found, q)) * 1e3 for q in (50, 99))
        load = {"share": share, "rate": rate, "queries": len(found), "p50_ms": p50, "p99_ms": p99}
        loads.append({**load, **_service({size: alone[size] for size in SIZES if size <= most}, during)})
    write_atomic(Path(job["out"]), json.dumps(loads))


def seconds(job: dict[str, Any]) -> float:
    """How long all loads of a job may take: thrice what is planned, and ten minutes for whatever disturbs."""
    return 600 + 3 * int(job["rounds"]) * len(LOADS) * (float(job["seconds"]) + len(SIZES) * SAMPLE_S)


def _recorded(run: Run, during: Times) -> Run:
    def recording(first: int, size: int) -> None:
        start = time.perf_counter()
        run(first, size)
        during.setdefault(size, []).append(time.perf_counter() - start)

    return recording


def _service(alone: dict[int, float], during: Times) -> dict[str, Any]:
    """What the simulation takes: the times of the load's own batches, and how much longer than `alone` they took.

    A size of which the load made few is taken from before, and as much slower as the others. The spread ends at the
    p99, as that of `fleet.service` does.
    """
    seen = {size: float(np.median(found)) for size, found in during.items() if len(found) >= FEW}
    weights = [len(during[size]) * alone[size] for size in seen]
    slower = float(np.average([seen[size] / alone[size] for size in seen], weights=weights)) if seen else 1.0
    batch_s = {size: seen.get(size, slower * seconds) for size, seconds in alone.items()}
    beyond = [seconds - batch_s[size] for size, found in during.items() for seconds in found]
    spread = np.percentile(beyond, (0, 50, 90, 99, 99))
    return {"batch_s": batch_s, "spread_s": spread.tolist(), "slower": slower}


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
