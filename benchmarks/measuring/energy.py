"""Energy meters that this machine lets be read: RAPL's zones, NVML's boards. Most virtual machines show neither.

They are kept apart: `psys` holds the packages already, and boards are idle while a variant runs on the CPU.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from pathlib import Path

RAPL = Path("/sys/class/powercap")
Meter = Callable[[], float]  # joules since some moment


def meters(rapl: Path = RAPL, nvml: str = "libnvidia-ml.so.1") -> dict[str, Meter]:
    """The meters by name, in joules; empty where there are none."""
    return {**_zones(rapl), **_boards(nvml)}


def _zones(folder: Path) -> dict[str, Meter]:
    found: dict[str, Meter] = {}
    for zone in sorted(folder.glob("intel-rapl:*")):
        if zone.name.count(":") != 1:
            continue  # part of another zone
        try:
            name = (zone / "name").read_text().strip()
            found[f"rapl {name}"] = _rapl_meter(zone)
        except (OSError, ValueError):
            continue  # readable by root alone, on most kernels
    return found


def _rapl_meter(zone: Path) -> Meter:
    """Joules of one zone; its counter starts again at `max_energy_range_uj`."""
    span = int((zone / "max_energy_range_uj").read_text())
    last, turns = int((zone / "energy_uj").read_text()), 0

    def read() -> float:
        nonlocal last, turns
        now = int((zone / "energy_uj").read_text())
        turns += now < last
        last = now
        return (now + turns * span) / 1e6

    return read


def _boards(library: str) -> dict[str, Meter]:
    try:
        nvml = ctypes.CDLL(library)
    except OSError:
        return {}
    count = ctypes.c_uint()
    if nvml.nvmlInit_v2() != 0 or nvml.nvmlDeviceGetCount_v2(ctypes.byref(count)) != 0:
        return {}
    found: dict[str, Meter] = {}
    for index in range(count.value):
        handle, energy = ctypes.c_void_p(), ctypes.c_ulonglong()
        if nvml.nvmlDeviceGetHandleByIndex_v2(index, ctypes.byref(handle)) != 0:
            continue
        if nvml.nvmlDeviceGetTotalEnergyConsumption(handle, ctypes.byref(energy)) == 0:
            found[f"nvml board {index}"] = _nvml_meter(nvml, handle)
    return found


def _nvml_meter(nvml: ctypes.CDLL, handle: ctypes.c_void_p) -> Meter:
    def read() -> float:
        energy = ctypes.c_ulonglong()
        nvml.nvmlDeviceGetTotalEnergyConsumption(handle, ctypes.byref(energy))
        return energy.value / 1e3

    return read
