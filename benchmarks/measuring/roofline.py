"""The machine's own peak: float32 and int8 matrix products and memory copies, with the run's threads.

`python -m benchmarks.measuring.roofline OUT THREADS` writes a `Roofline`; `measure` starts
that with the environment of the run.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.results import Roofline
from catalog import ROOT, KilnError, from_json, to_json, write_atomic

SIDE = 1024  # of the square matrices: 1.07 G multiply-accumulates
LIMIT_S = 300.0  # that all of it may take
SETS = (512 << 10, 4 << 20, 8 << 20, 16 << 20, 32 << 20, 256 << 20)  # bytes a copy touches: from caches to memory


def measured(threads: int, environment: dict[str, str], folder: Path, seconds: float = 0.4) -> Roofline:
    """The peak as a process of its own finds it, `seconds` for each figure.

    Raises:
        KilnError: The process failed or took longer than `LIMIT_S`; the message is its last line.
    """
    path = folder / "roofline.json"
    command = [sys.executable, "-m", "benchmarks.measuring.roofline", str(path), str(threads), str(seconds)]
    try:
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=LIMIT_S)
    except subprocess.TimeoutExpired as error:
        raise KilnError(f"the machine's peak could not be measured: not done after {LIMIT_S:g} s") from error
    if done.returncode != 0:
        raise KilnError(f"the machine's peak could not be measured: {(done.stderr.strip() or '?').splitlines()[-1]}")
    return from_json(Roofline, json.loads(path.read_text(encoding="utf-8")))


def better(one: Roofline, other: Roofline) -> Roofline:
    """The larger of each figure of two tries, with what reached it: what the machine can do, not its average."""
    kinds = {"fp32": one.fp32_macs_per_s < other.fp32_macs_per_s, "int8": one.int8_macs_per_s < other.int8_macs_per_s}
    return Roofline(
        fp32_macs_per_s=max(one.fp32_macs_per_s, other.fp32_macs_per_s),
        int8_macs_per_s=max(one.int8_macs_per_s, other.int8_macs_per_s),
        copy_bytes_per_s={size: max(rate, other.copy_bytes_per_s[size]) for size, rate in one.copy_bytes_per_s.items()},
        how={**one.how, **{kind: other.how[kind] for kind, larger in kinds.items() if larger}},
        seconds=round(one.seconds + other.seconds, 1),
    )


def measure(threads: int, seconds: float) -> Roofline:
    """Measures in this process; `seconds` for each figure, of which the quickest repetition counts."""
    start, macs = time.perf_counter(), SIDE**3
    fp32 = {"NumPy matmul": _numpy_product()}
    int8: dict[str, Callable[[], Any]] = {}
    if (products := _onnx_products(threads)) is not None:
        fp32["ONNX Runtime MatMul"], int8["ONNX Runtime MatMulInteger"] = products
    fp32_best, int8_best = (
        {name: macs / _quickest(call, seconds / len(calls)) for name, call in calls.items()} for calls in (fp32, int8)
    )
    with ThreadPoolExecutor(threads) as pool:
        copies = {str(size): _copy_rate(pool, threads, size, seconds / 2) for size in SETS}
    how = {
        kind: max(rates, key=lambda name: rates[name])
        for kind, rates in (("fp32", fp32_best), ("int8", int8_best))
        if rates
    }
    return Roofline(
        fp32_macs_per_s=float(f"{max(fp32_best.values()):.4g}"),
        int8_macs_per_s=float(f"{max(int8_best.values(), default=0.0):.4g}"),
        copy_bytes_per_s={size: float(f"{rate:.4g}") for size, rate in copies.items()},
        how={**how, "copy": f"NumPy copyto, {threads} threads"},
        seconds=round(time.perf_counter() - start, 1),
    )


def _quickest(call: Callable[[], Any], seconds: float) -> float:
    """Seconds of the quickest call, the first two not counted."""
    call(), call()
    best, end = float("inf"), time.perf_counter() + seconds
    while time.perf_counter() < end or best == float("inf"):
        start = time.perf_counter()
        call()
        best = min(best, time.perf_counter() - start)
    return best


def _numpy_product() -> Callable[[], Any]:
    rng = np.random.default_rng(0)
    left, right = (rng.standard_normal((SIDE, SIDE), np.float32) for _ in range(2))
    product = np.empty_like(left)
    return lambda: np.matmul(left, right, out=product)


def _onnx_products(threads: int) -> tuple[Callable[[], Any], Callable[[], Any]] | None:
    """The float32 and the uint8 by int8 product as ONNX Runtime computes it; None where it is not installed."""
    try:
        import onnxruntime as ort
        from onnx import TensorProto as Type
        from onnx import helper, numpy_helper
    except ImportError:
        return None
    rng = np.random.default_rng(0)

    def call(operator: str, left: NDArray[Any], right: NDArray[Any], kinds: tuple[int, int]) -> Callable[[], Any]:
        graph = helper.make_graph(
            [helper.make_node(operator, ["left", "right"], ["product"])],
            "peak",
            [helper.make_tensor_value_info("left", kinds[0], left.shape)],
            [helper.make_tensor_value_info("product", kinds[1], [SIDE, SIDE])],
            [numpy_helper.from_array(right, "right")],
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
        options = ort.SessionOptions()
        options.intra_op_num_threads, options.log_severity_level = threads, 3
        session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        return lambda: session.run(None, {"left": left})

    floats = [rng.standard_normal((SIDE, SIDE), np.float32) for _ in range(2)]
    small = rng.integers(0, 256, (SIDE, SIDE), np.uint8), rng.integers(-127, 128, (SIDE, SIDE), np.int8)
    return (
        call("MatMul", floats[0], floats[1], (Type.FLOAT, Type.FLOAT)),
        call("MatMulInteger", small[0], small[1], (Type.UINT8, Type.INT32)),
    )


def _copy_rate(pool: ThreadPoolExecutor, threads: int, touched: int, seconds: float) -> float:
    """Bytes read and written a second by `threads` copies at once that touch `touched` bytes together."""
    each = touched // 2 // threads
    pairs = [(np.ones(each, np.uint8), np.empty(each, np.uint8)) for _ in range(threads)]
    repeats = max(1, (64 << 20) // touched)

    def copy(pair: tuple[NDArray[np.uint8], NDArray[np.uint8]]) -> None:
        for _ in range(repeats):
            np.copyto(pair[1], pair[0])

    return 2 * each * threads * repeats / _quickest(lambda: list(pool.map(copy, pairs)), seconds)


if __name__ == "__main__":
    write_atomic(Path(sys.argv[1]), to_json(measure(int(sys.argv[2]), float(sys.argv[3]))))
