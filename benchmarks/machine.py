"""What has to be known of a machine to read a latency measured on it."""

from __future__ import annotations

import os
import platform
from pathlib import Path

import catalog
from benchmarks.results import Machine

TELLING_FLAGS = (
    *("sse4_2", "avx", "avx2", "fma", "f16c", "avx512f", "avx512bw", "avx512vl", "avx512_vnni", "avx_vnni"),
    *("avx512_bf16", "avx512_fp16", "amx_tile", "amx_int8", "amx_bf16"),
    *("asimd", "asimddp", "asimdhp", "bf16", "i8mm", "sve", "sve2"),
)
PACKAGES = ("numpy", "onnxruntime", "onnxruntime-gpu", "ai-edge-litert", "keras", "tensorflow", "pytest-benchmark")


def read(packages: tuple[str, ...] = ()) -> Machine:
    """The machine, now; `packages` are distributions to tell the versions of beside the usual ones."""
    import psutil

    cpu, flags = catalog.processor()
    logical = psutil.cpu_count() or 1
    return Machine(
        cpu=cpu,
        flags=[flag for flag in TELLING_FLAGS if flag in flags],
        physical_cores=psutil.cpu_count(logical=False) or logical,
        logical_cores=logical,
        affinity=cores(),
        virtual="hypervisor" in flags,
        memory_bytes=psutil.virtual_memory().total,
        os=f"{_distribution()}, {platform.system()} {platform.release()} {platform.machine()}",
        python=platform.python_version(),
        versions=catalog.versions(*dict.fromkeys((*PACKAGES, *packages))),
    )


def cores() -> list[int]:
    """The logical cores this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def load() -> list[float]:
    """Load averages over 1, 5 and 15 minutes."""
    return [round(average, 2) for average in os.getloadavg()]


def ticks(path: Path = Path("/proc/stat")) -> list[int]:
    """The kernel's counters of processor time since the start, by kind; empty where it keeps none."""
    try:
        return [int(value) for value in path.read_text().splitlines()[0].split()[1:]]
    except (OSError, ValueError, IndexError):
        return []


def stolen_percent(before: list[int], after: list[int]) -> float | None:
    """Share of the time between two readings that the host gave to others; None where that is not told."""
    spent = _spent(before, after)
    return round(100 * spent[7] / sum(spent), 2) if spent else None


def others_percent(before: list[int], after: list[int], own_s: float) -> float | None:
    """Share of the processors' time between two readings that other processes took; None where that is not told.

    `own_s` are the seconds of processor time that this process and those it has waited for took in between.
    """
    spent = _spent(before, after)
    if not spent:
        return None
    user, nice, system, _, _, irq, softirq, _ = spent
    others = user + nice + system + irq + softirq - own_s * os.sysconf("SC_CLK_TCK")
    return round(max(0.0, 100 * others / sum(spent)), 2)


def _spent(before: list[int], after: list[int]) -> list[int]:
    """The eight kinds of time between two readings; none where they are not told, or no time has passed."""
    spent = [late - early for early, late in zip(before, after, strict=False)][:8]  # guests' time is in user's
    return spent if len(spent) == 8 and sum(spent) > 0 else []


def own_s() -> float:
    """Seconds of processor time of this process and of those it has waited for."""
    return sum(os.times()[:4])


class Watch:
    """The machine from now on: its load before, and what others take of its processors' time."""

    def __init__(self) -> None:
        self.load, self._ticks, self._own_s = load(), ticks(), own_s()

    def percents(self, own_s_beside: float = 0.0) -> tuple[float | None, float | None]:
        """Shares of the time until now that other processes took, and other guests of the host.

        `own_s_beside` are seconds of processor time of this run's own processes that have not ended yet.
        """
        after, used = ticks(), own_s() - self._own_s + own_s_beside
        return others_percent(self._ticks, after, used), stolen_percent(self._ticks, after)


def peak_rss_bytes() -> int:
    """Largest resident memory of this process.

    Not `ru_maxrss` where it can be helped: Linux hands that figure down from the parent through exec.
    """
    status = Path("/proc/self/status")
    if status.exists():
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if platform.system() == "Darwin" else peak * 1024


def _distribution() -> str:
    try:
        return platform.freedesktop_os_release()["PRETTY_NAME"]
    except (OSError, KeyError):
        return platform.system()
