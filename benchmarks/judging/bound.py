"""How near a variant comes to the machine's own peak, and what keeps it from coming nearer. Pure."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np

from benchmarks.results import Detail, Roofline
from catalog import Measurement

ITEM_BYTES = {"fp32": 4, "fp16": 2, "bf16": 2, "int8": 1}
HALF = 0.5  # of the time, which a peak has to explain before it is called the bound


@dataclass(frozen=True)
class Bound:
    """One scenario against the roofline.

    `compute` and `memory` are the shares of the measured time that the arithmetic and the traffic would take at the
    machine's peak, int8's for int8 and fp32's for every other precision, half ones too; `compute` is therefore also
    the share of that peak that was achieved. What neither explains is
    overhead: calls, layout changes, operators that multiply nothing, kernels that do not fit the shapes.
    """

    macs_per_s: float
    compute: float
    memory: float
    by: Literal["compute", "memory", "overhead"]


def bound(row: Measurement, detail: Detail, peak: Roofline | None, offline: bool) -> Bound | None:
    """The bound in SingleStream or Offline; None where the run measured no peak or the work is not known."""
    work, rate = detail.work, row.images_per_s if offline else (1e3 / row.p50_ms if row.p50_ms else None)
    if peak is None or work is None or not rate or not work.macs:
        return None
    top = peak.int8_macs_per_s if row.variant.precision == "int8" and peak.int8_macs_per_s else peak.fp32_macs_per_s
    batch = (row.offline_batch or 1) if offline else 1
    item = ITEM_BYTES.get(row.variant.precision, 4)
    weights, activations = work.weight_elements * item, work.activation_elements * item
    moved = weights / batch + 2 * activations  # each activation is written and read once
    memory = moved * rate / _copy_rate(peak, weights + batch * activations)
    compute = work.macs * rate / top
    larger: Literal["compute", "memory"] = "compute" if compute >= memory else "memory"
    return Bound(work.macs * rate, compute, memory, larger if max(compute, memory) >= HALF else "overhead")


def _copy_rate(peak: Roofline, working_set: float) -> float:
    """Bytes a second at a working set in bytes, between the measured ones by the logarithm of the size."""
    sizes = sorted((int(size), rate) for size, rate in peak.copy_bytes_per_s.items())
    return float(np.interp(math.log(working_set), [math.log(size) for size, _ in sizes], [rate for _, rate in sizes]))
