"""The machine's peak, what a variant asks of it, and the parts that measure beside the clock."""

from __future__ import annotations

import dataclasses
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.judging import intervals
from benchmarks.judging.bound import bound
from benchmarks.machine import others_percent, own_s, stolen_percent, ticks
from benchmarks.measuring import energy, planning, roofline, work
from benchmarks.measuring.bench_latency import worth_trying
from benchmarks.measuring.kernel import Kernel
from benchmarks.measuring.measure import Run
from benchmarks.reporting.report import render
from benchmarks.results import Detail, Results, Roofline, Settings, Work
from catalog import KilnError, Measurement, Store, Variant

PEAK = Roofline(1e11, 4e11, {"1000000": 1e11, "4000000": 1e10}, {}, 1.0)


def measured(precision: str, macs: int, weights: int, activations: int, p50_ms: float) -> tuple[Measurement, Detail]:
    row = Measurement(Variant("m", "onnx", precision), "ok", p50_ms=p50_ms, images_per_s=2e3 / p50_ms, offline_batch=4)
    detail = Detail(0, 1.0, 1, {}, 1, True, 1.0, 1.0, 1.0, 1.0, 0.1, 1, work=Work(macs, weights, activations))
    return row, detail


@pytest.mark.parametrize(
    ("precision", "macs", "weights", "activations", "by", "compute", "memory"),
    [
        ("fp32", 80_000_000, 1000, 1000, "compute", 0.8, 0.00012),
        ("int8", 80_000_000, 1000, 1000, "overhead", 0.2, 0.00003),
        ("fp32", 1_000_000, 2_000_000, 10, "memory", 0.01, 0.8),  # 8 MB: beyond the cache of 1 MB
        ("fp32", 1_000_000, 200_000, 10, "overhead", 0.01, 0.008),  # 0.8 MB, ten times as fast
        ("fp32", 1_000_000, 500_000, 10, "overhead", 0.01, 0.036),  # 2 MB: half way, by the logarithm
    ],
)
def test_one_by_one(
    precision: str, macs: int, weights: int, activations: int, by: str, compute: float, memory: float
) -> None:
    found = bound(*measured(precision, macs, weights, activations, 1.0), PEAK, offline=False)
    assert found is not None and found.by == by and found.macs_per_s == macs * 1000
    assert found.compute == pytest.approx(compute) and found.memory == pytest.approx(memory, rel=0.1)


def test_in_batches_weights_are_read_once_a_batch() -> None:
    row, detail = measured("fp32", 1_000_000, 2_000_000, 10, 1.0)
    alone, together = (bound(row, detail, PEAK, offline) for offline in (False, True))
    assert alone and together
    assert together.memory == pytest.approx(alone.memory / 4 * 2, rel=0.01)  # a fourth of it, twice as often
    assert together.compute == pytest.approx(2 * alone.compute)


def test_no_bound_without_a_peak_or_the_work() -> None:
    row, detail = measured("fp32", 10, 10, 10, 1.0)
    assert bound(row, detail, None, True) is None
    assert bound(row, dataclasses.replace(detail, work=None), PEAK, True) is None
    assert bound(dataclasses.replace(row, p50_ms=None), detail, PEAK, False) is None


def test_this_machine_has_a_peak() -> None:
    found = roofline.measure(1, 0.02)
    assert found.fp32_macs_per_s > 1e8 and found.int8_macs_per_s > 1e8
    assert list(map(int, found.copy_bytes_per_s)) == list(roofline.SETS) and min(found.copy_bytes_per_s.values()) > 1e8
    assert set(found.how) == {"fp32", "int8", "copy"}


def convolutions(quantized: bool) -> Any:
    """2 x 4 x 4 inputs through Conv(3 of 2 x 3 x 3, same), MaxPool 2, Gemm(5)."""
    from onnx import TensorProto, helper, numpy_helper

    kernel = np.ones((3, 2, 3, 3), np.int8 if quantized else np.float32)
    dense = numpy_helper.from_array(np.ones((5, 12), np.float32), "dense")
    weights = [numpy_helper.from_array(kernel, "kernel"), dense]
    nodes = [
        helper.make_node("Conv", ["x", "k" if quantized else "kernel"], ["a"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("MaxPool", ["b"], ["c"], kernel_shape=[2, 2], strides=[2, 2]),
        helper.make_node("Flatten", ["c"], ["d"]),
        helper.make_node("Gemm", ["d", "dense"], ["y"], transB=1),
    ]
    if quantized:
        nodes.insert(0, helper.make_node("DequantizeLinear", ["kernel", "scale"], ["k"]))
        weights.append(numpy_helper.from_array(np.float32(1), "scale"))
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 2, 4, 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 5])],
        weights,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


@pytest.mark.parametrize("quantized", [False, True])
def test_work_is_counted_in_the_graph(tmp_path: Path, quantized: bool) -> None:
    (tmp_path / "m.onnx").write_bytes(convolutions(quantized).SerializeToString())
    macs = 3 * 4 * 4 * (2 * 3 * 3) + 5 * 12
    assert work.counted(tmp_path / "m.onnx") == Work(macs, 3 * 2 * 9 + 60, 3 * 16 + 3 * 4 + 5)


def test_a_variant_without_a_graph_is_given_its_sibling_s(tiny_store: Store) -> None:
    cards = {card.variant.version: card for card in readable(tiny_store)}
    own = work.of(tiny_store, cards["onnx-fp32"], 1, 1)
    assert own is not None and own.exact and own.macs == 30_720 == own.weight_elements
    int8 = work.of(tiny_store, cards["onnx-int8"], 1, 1)
    assert int8 == dataclasses.replace(own, exact=False)
    garbage = work.of(tiny_store, cards["garbage-onnx-fp32"], 1, 1)
    assert garbage is None  # another transform is another network


def readable(store: Store) -> list[Any]:
    import catalog

    folders = [path for path in store.root.glob("tiny/variants/*/card.json") if path.parent.name != "keras-fp32"]
    return [catalog.read_card(catalog.VariantCard, path) for path in folders]


def test_the_kernel_takes_its_time_between_and_is_one_figure() -> None:
    kernel = Kernel()
    for _ in range(3):
        kernel.sample("SingleStream")
    assert len(kernel._times["SingleStream"]) == 1  # the others came too soon
    time.sleep(0.03)
    kernel.sample("SingleStream")
    assert len(kernel._times["SingleStream"]) == 2 and 0.001 < kernel.median_ms("SingleStream") < 100
    kernel._times = {"SingleStream": [0.001] * 5, "Offline": [0.002] * 5}
    assert (kernel.median_ms("SingleStream"), kernel.median_ms("Offline")) == (1.0, 2.0)


def test_doubling_goes_on_while_two_doublings_gain() -> None:
    assert not worth_trying({})
    assert worth_trying({1: 100.0, 2: 100.0})  # one step without a gain is no end
    assert worth_trying({1: 100.0, 2: 103.0, 4: 106.0})
    assert not worth_trying({1: 100.0, 2: 103.0, 4: 104.0})
    assert not worth_trying({1: 1.0, 2: 1.6, 4: 1.3})
    assert not worth_trying({1: 0.1, 2: 0.2, 4: 0.4})  # ten seconds a batch


def test_rapl_is_read_over_its_wrap_and_refusals_are_no_meter(tmp_path: Path) -> None:
    zone = tmp_path / "intel-rapl:0"
    zone.mkdir()
    for name, text in (("name", "package-0"), ("max_energy_range_uj", "1000000"), ("energy_uj", "900000")):
        (zone / name).write_text(text + "\n")
    (tmp_path / "intel-rapl:0:0").mkdir()
    (tmp_path / "intel-rapl:1").mkdir()  # without its files
    meters = energy.meters(tmp_path, "no-such-library.so")
    assert list(meters) == ["rapl package-0"]
    first = meters["rapl package-0"]()
    (zone / "energy_uj").write_text("100000")
    assert meters["rapl package-0"]() - first == pytest.approx(0.2)
    assert energy.meters(tmp_path / "nothing", "no-such-library.so") == {}


def test_energy_told_is_the_packages_alone(tmp_path: Path, golden: Results) -> None:
    for number, name in enumerate(("package-0", "package-1", "psys")):
        zone = tmp_path / f"intel-rapl:{number}"
        zone.mkdir()
        for file, text in (("name", name), ("max_energy_range_uj", "1000000"), ("energy_uj", "0")):
            (zone / file).write_text(text + "\n")
    meters = energy.meters(tmp_path, "no-such-library.so")
    _, detail = measured("fp32", 1, 1, 1, 1.0)
    read = {**dict(zip(meters, (2.0, 3.0, 9.0), strict=True)), "nvml board 0": 50.0}
    assert dataclasses.replace(detail, energy_mj=read).package_mj == 5.0
    assert dataclasses.replace(detail, energy_mj={"nvml board 0": 50.0}).package_mj is None

    details = {name: dataclasses.replace(one, energy_mj=read) for name, one in golden.details.items()}
    report = render(dataclasses.replace(golden, details=details), pictures=False)
    assert "mJ an image" in report.html and '<td data-value="5.0">5.00</td>' in report.html
    assert ">64.0</td>" not in report.html


def test_stolen_time() -> None:
    before, after = [10, 0, 10, 100, 0, 0, 0, 0, 0, 0], [40, 0, 20, 150, 0, 0, 0, 10, 5, 0]
    assert stolen_percent(before, after) == 10.0
    assert stolen_percent([], []) is None and stolen_percent(before, before) is None
    assert ticks(Path("/nowhere")) == []


def test_time_that_other_processes_took() -> None:
    before, after = [10, 0, 10, 100, 0, 0, 0, 0, 0, 0], [40, 5, 20, 150, 5, 3, 2, 5, 5, 0]
    tick = 1 / os.sysconf("SC_CLK_TCK")
    assert others_percent(before, after, 30 * tick) == pytest.approx(100 * (30 + 5 + 10 + 3 + 2 - 30) / 110, abs=0.01)
    assert others_percent(before, after, 60 * tick) == 0  # the kernel rounds them differently
    assert others_percent([], [], 0) is None and others_percent(before, before, 0) is None


def test_ones_own_time_is_that_of_ones_children_too() -> None:
    began = own_s()
    subprocess.run([sys.executable, "-c", "sum(range(3_000_000))"], check=True)
    assert own_s() > began


def load(variants: int, slow: int = 0) -> planning.Load:
    return planning.Load(variants, slow, planning.ANSWERS_S * variants)


def test_more_variants_get_less_time_each_and_then_fewer_passes() -> None:
    few, more, many = (planning.fitting(Settings(), load(variants)) for variants in (8, 18, 60))
    assert few == Settings() and more.passes == 3 and many.passes == 2
    assert few.single_seconds > more.single_seconds > many.single_seconds >= 0.8
    assert few.offline_seconds > more.offline_seconds > many.offline_seconds >= 0.05
    assert max(planning.seconds(one, load(variants)) for one, variants in ((few, 8), (more, 18))) <= 600
    assert planning.fitting(Settings.quick(), load(8)).passes == 1


def test_what_loads_tensorflow_is_the_first_to_be_measured_once() -> None:
    small, large = (planning.fitting(Settings(), load(variants, variants // 5)) for variants in (10, 44))
    assert small.slow_passes == 2 and (large.passes, large.slow_passes) == (2, 1)


@pytest.mark.parametrize("turn_seconds", [0.05, 0.5])
def test_however_many_variants_there_are_every_pass_has_turns_enough_for_an_interval(turn_seconds: float) -> None:
    settings = dataclasses.replace(Settings(), turn_seconds=turn_seconds, single_seconds=20.0)
    found = planning.fitting(settings, load(500))
    assert found.single_seconds >= max(0.8, 12 * turn_seconds)
    assert intervals.median(list(range(int(found.single_seconds / turn_seconds)))) is not None


def test_what_a_turn_begins_with_is_reckoned() -> None:
    long, short = (dataclasses.replace(Settings(), turn_seconds=seconds) for seconds in (0.1, 0.05))
    measured = 3 * (3.0 + planning.BATCHES_TRIED * 0.4)
    assert planning.seconds(short, load(1)) - planning.seconds(long, load(1)) == pytest.approx(0.3 * measured)


def test_the_time_a_run_takes_is_that_of_one_that_was_timed() -> None:
    """44 variants of four networks, eight of them of TensorFlow, took 525 s in process and 104 s over HTTP."""
    lean: dict[str, Any] = {"single_seconds": 0.8, "offline_seconds": 0.05, "server_seconds": 0.2, "robust_macs": 1e11}
    then = dataclasses.replace(Settings(), passes=2, slow_passes=1, http_requests=150, http_seconds=0.1, **lean)
    alone = dataclasses.replace(then, http_requests=0)
    macs = (651_720, 4_548_608, 43_758_080, 324_472_832)
    gains = [planning.INT8_GAIN] * 3 + [1.0] * 8
    all_four = planning.Load(44, 8, 0.0, tuple((of, planning.MACS_PER_S * gain) for of in macs for gain in gains))
    in_process, whole = planning.seconds(alone, all_four), planning.seconds(then, all_four)
    assert in_process == pytest.approx(525, rel=0.1) and whole - in_process == pytest.approx(104, rel=0.1)
    assert planning.seconds(planning.fitting(Settings(), all_four), all_four) <= 1.03 * planning.LIMIT_S
    for dearer in ({"server_seconds": 1.0}, {"http_requests": 200}, {"peak_seconds": 0.7}, {"turn_seconds": 0.04}):
        assert planning.seconds(dataclasses.replace(then, **dearer), all_four) > whole


def test_what_is_asked_for_is_shortened_to_the_least_and_never_lengthened() -> None:
    many = load(500, 100)
    found = planning.fitting(Settings(), many)
    assert {name: getattr(found, name) for name in planning.LEAST} == planning.LEAST
    assert isinstance(found.http_requests, int) and isinstance(found.single_rounds, int)
    nothing: dict[str, Any] = dict.fromkeys(planning.LEAST, 0)
    small = dataclasses.replace(Settings(), **nothing)
    assert planning.fitting(small, many) == dataclasses.replace(small, passes=2, slow_passes=1)


def test_the_peak_is_the_best_of_all_tries() -> None:
    one = Roofline(1.0, 5.0, {"1": 2.0, "2": 9.0}, {"fp32": "a", "int8": "a", "copy": "c"}, 1.0)
    other = Roofline(3.0, 4.0, {"1": 8.0, "2": 1.0}, {"fp32": "b", "int8": "b", "copy": "c"}, 2.0)
    best = Roofline(3.0, 5.0, {"1": 8.0, "2": 9.0}, {"fp32": "b", "int8": "a", "copy": "c"}, 3.0)
    assert roofline.better(one, other) == roofline.better(other, one) == best


def test_a_peak_that_takes_too_long_is_an_error_in_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(roofline, "LIMIT_S", 0.01)
    with pytest.raises(KilnError, match=r"peak could not be measured: not done after 0\.01 s"):
        roofline.measured(1, dict(os.environ), tmp_path)


def test_a_try_at_the_peak_that_fails_costs_no_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tries: Iterator[Roofline | KilnError] = iter([KilnError("no memory"), PEAK, KilnError("not done")])

    def measured(*_: object) -> Roofline:
        found = next(tries)
        if isinstance(found, KilnError):
            raise found
        return found

    monkeypatch.setattr(roofline, "measured", measured)
    run = Run(Store(tmp_path), 1, Settings(), 0, lambda *_: None)
    assert run._peak({}, tmp_path) is None
    assert run._peak({}, tmp_path) == run._peak({}, tmp_path, PEAK) == PEAK and run.peak_reason == "not done"


def test_a_failed_try_at_the_peak_is_told(golden: Results) -> None:
    told = dataclasses.replace(golden, roofline_reason="not done after 300 s")
    said = "A try at the peak failed and does not count: not done after 300 s."
    assert said in render(told, pictures=False).markdown and "A try at" not in render(golden, pictures=False).markdown


def test_a_share_above_the_whole_peak_says_so(golden: Results) -> None:
    assert golden.roofline is not None
    high = dataclasses.replace(golden, roofline=dataclasses.replace(golden.roofline, fp32_macs_per_s=1e13))
    assert "peak underestimated" not in render(high, pictures=False).markdown
    low = dataclasses.replace(golden, roofline=dataclasses.replace(golden.roofline, fp32_macs_per_s=1e11))
    report = render(low, pictures=False)
    assert re.search(r"peak underestimated: .*simcnn/onnx-fp32 reached 129% of it", report.markdown)
    assert "of the peak, peak underestimated" in report.html


def test_every_measured_row_of_the_golden_run_has_its_bounds(golden: Results) -> None:
    from benchmarks.judging.compare import groups

    lines = [line for group in groups(golden) for line in group.lines if line.measured]
    assert all(line.single and line.offline for line in lines)
    by = {str(line.row.variant): line.offline.by for line in lines if line.offline}
    assert by["lenet/onnx-int8"] == "overhead" and by["simcnn/onnx-fp32"] == "compute"
