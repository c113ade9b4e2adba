"""What is computed from figures: fronts, tests, verdicts, percentiles, how numbers and names are set."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import pytest

from benchmarks.judging import intervals
from benchmarks.judging.compare import Line, groups
from benchmarks.judging.fronts import front
from benchmarks.judging.pairs import float_parent
from benchmarks.measuring import process
from benchmarks.measuring.bench_latency import rounds_for, warm_up
from benchmarks.measuring.job import Outcome
from benchmarks.measuring.process import Ran, merged
from benchmarks.reporting import prose, words
from benchmarks.reporting.report import render
from benchmarks.results import Results
from catalog import Accuracy, Flips, Measurement, Variant


def test_the_front_is_what_nothing_dominates() -> None:
    points = [(1.0, 70.0), (2.0, 80.0), (3.0, 79.0), (4.0, 90.0), (4.0, 85.0), (1.0, 70.0)]
    assert front(points) == {0, 1, 3, 5}
    assert front([]) == set()


@pytest.mark.parametrize(
    ("correct", "images", "low", "high"),
    [(9038, 10_000, 89.7867, 90.9432), (0, 10, 0.0, 27.7533), (10, 10, 72.2467, 100.0), (1, 2, 9.4531, 90.5469)],
)
def test_the_interval_is_wilson_s(correct: int, images: int, low: float, high: float) -> None:
    found = Accuracy.of(correct, images)
    assert (found.low, found.high) == pytest.approx((low, high), abs=1e-3)
    stats = pytest.importorskip("scipy.stats")
    wilson = stats.binomtest(correct, images).proportion_ci(0.95, "wilson")
    assert (found.low, found.high) == pytest.approx((100 * wilson.low, 100 * wilson.high), abs=1e-3)


def test_the_parent_is_keras_where_it_was_measured() -> None:
    keras, onnx = Variant("m", "keras"), Variant("m", "onnx")
    assert float_parent([keras, onnx], "m", {"m/keras-fp32", "m/onnx-fp32"}) == keras
    assert float_parent([keras, onnx], "m", {"m/onnx-fp32"}) == onnx
    assert float_parent([keras, onnx], "m", set()) is None


def verdict(results: Results, name: str) -> str:
    lines = [line for group in groups(results) for line in group.lines]
    return next(line.verdict for line in lines if str(line.row.variant) == name)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("lenet/onnx-int8", "quantized but slower, smaller, as accurate, perhaps less robust"),
        ("mobilenetv2/onnx-int8", "smaller, faster, perhaps as accurate, less robust"),
        ("lenet/onnx-fp32", "the reference for size and speed, as accurate"),
        ("lenet/keras-fp32", "larger, slower, the reference for accuracy"),
        (
            "simcnn/prune80-onnx-fp32",
            "sparse but no faster, as large, perhaps as accurate, less robust, unstable: latency had not settled",
        ),
        ("mobilenetv2/prune80-onnx-int8", "not offered to serving, smaller, faster, less accurate, less robust"),
        ("simcnn/litert-fp32", "as large, faster one by one and slower in batches, as accurate"),
    ],
)
def test_verdicts(golden: Results, name: str, said: str) -> None:
    assert verdict(golden, name) == said


def test_a_loss_that_chance_may_explain_says_perhaps(golden: Results) -> None:
    name = "mobilenetv2/prune80-onnx-int8"
    details = {**golden.details, name: dataclasses.replace(golden.details[name], mcnemar_p=0.02, mcnemar_holm=0.2)}
    assert verdict(dataclasses.replace(golden, details=details), name).endswith("perhaps less accurate, less robust")


@pytest.mark.parametrize(
    ("correct", "lost", "won", "images", "said"),
    [
        (9_000, 20, 20, 10_000, "as accurate"),
        (8_970, 40, 10, 10_000, "as accurate"),  # −0.44 to −0.16
        (8_970, 130, 100, 10_000, "perhaps as accurate"),  # −0.30, down to −0.60
        (9_030, 100, 130, 10_000, "as accurate"),  # up to +0.60, which is no loss
        (324, 4, 4, 360, "accuracy cannot be told from 360 images"),
        (329, 0, 5, 360, "perhaps more accurate"),  # +1.39, from −0.04 on
        (321, 8, 5, 360, "accuracy cannot be told from 360 images"),  # −0.83, and the test says it may be chance
    ],
)
def test_as_accurate_knows_the_interval(
    golden: Results, correct: int, lost: int, won: int, images: int, said: str
) -> None:
    name, parent = "mobilenetv2/onnx-int8", "mobilenetv2/keras-fp32"
    right = {name: correct, parent: correct + lost - won}
    rows = [
        dataclasses.replace(row, accuracy=Accuracy.of(right[str(row.variant)], images))
        if str(row.variant) in right
        else row
        for row in golden.rows
    ]
    p = Flips.of(won, lost).p
    detail = dataclasses.replace(golden.details[name], lost=lost, won=won, mcnemar_p=p, mcnemar_holm=p)
    found = dataclasses.replace(golden, rows=rows, details={**golden.details, name: detail})
    assert verdict(found, name) == f"smaller, faster, {said}, less robust"


@pytest.mark.parametrize(("holm", "chance"), [(0.2, True), (0.01, False)])
def test_advice_says_chance_where_the_corrected_test_does(golden: Results, holm: float, chance: bool) -> None:
    """The interval is of one variant alone: of many, one in twenty does not hold 0 by chance."""
    name = "mobilenetv2/onnx-int8"
    detail = dataclasses.replace(golden.details[name], mcnemar_p=0.001, mcnemar_holm=holm)
    (group,) = groups(dataclasses.replace(golden, details={**golden.details, name: detail}))
    chosen = group.chosen("mobilenetv2")
    assert chosen and chosen.change_span and chosen.change_span[1] < 0
    told = prose.advice(group, chosen)
    assert ("0.38 points below the original network, which may be chance" in told) == chance
    assert told.endswith(", and may be more than 0.5 below.")


def with_rates(golden: Results, name: str, *rates: float) -> Results:
    """The run with other images/s of a variant, one in each pass."""
    detail = golden.details[name]
    passes = [dataclasses.replace(detail.passes[0], images_per_s_at={"128": rate}) for rate in rates]
    details = {**golden.details, name: dataclasses.replace(detail, passes=passes)}
    middle = sorted(rates)[len(rates) // 2]
    rows = [dataclasses.replace(row, images_per_s=middle) if str(row.variant) == name else row for row in golden.rows]
    return dataclasses.replace(golden, details=details, rows=rows)


def test_a_gain_that_the_spread_of_the_medians_may_explain_says_perhaps(golden: Results) -> None:
    name = "mobilenetv2/onnx-int8"
    details = {**golden.details, name: dataclasses.replace(golden.details[name], p50_high_ms=1.2)}
    even = with_rates(dataclasses.replace(golden, details=details), name, 720.0, 726.0, 730.0)
    said = "smaller, perhaps faster one by one and as fast in batches, perhaps as accurate, less robust"
    assert verdict(even, name) == said
    one = [row for row in even.rows if row.variant.model == "mobilenetv2"]
    sentence = render(dataclasses.replace(even, rows=one, models={"mobilenetv2": golden.models["mobilenetv2"]}), False)
    assert "perhaps 1.9 times (0.91 to 1.9) the speed of fp32 ONNX" in sentence.headline
    assert "perhaps 1.9× (0.91 to 1.9) the speed of onnx-fp32" in sentence.html


@pytest.mark.parametrize(
    ("rates", "said"),
    [
        ((800.0, 990.0, 995.0), "faster"),
        ((730.0, 990.0, 995.0), "perhaps faster"),
        ((500.0, 600.0, 720.0), "perhaps slower"),
        ((500.0, 600.0, 700.0), "slower"),
        ((500.0, 730.0, 990.0), "as fast"),
        ((990.0,), "faster"),  # one pass tells nothing of noise: beyond a quarter it is believed
        ((850.0,), "perhaps faster"),
    ],
)
def test_throughput_knows_the_spread_of_the_passes(golden: Results, rates: tuple[float, ...], said: str) -> None:
    found = with_rates(golden, "mobilenetv2/prune80-onnx-int8", *rates)  # onnx-fp32 has 712 to 733
    words = verdict(found, "mobilenetv2/prune80-onnx-int8")
    expected = "faster" if said == "faster" else f"faster one by one and {said} in batches"
    assert words.startswith(f"not offered to serving, smaller, {expected}, ")


def test_figures_of_the_passes() -> None:
    single = np.arange(1, 1001) / 1e6  # seconds: 0.001 to 1 ms
    first = read_pass(single, {1: [0.001, 0.002, 0.1], 32: [0.004, 0.008, 0.008], 128: [0.05]}, settled=True)
    row, detail = merged(Measurement(Variant("m", "onnx"), "ok"), [first])
    assert (row.p50_ms, row.p90_ms, row.p99_ms) == (0.5005, 0.9001, 0.99001)
    assert row.images_per_s_at == {"1": 500.0, "32": 4000.0, "128": 2560.0}
    assert (row.offline_batch, row.images_per_s) == (32, 4000.0)
    assert (detail.p50_low_ms, detail.p50_high_ms) == (0.1005, 0.9005)  # of the fifths, where there is one pass
    assert (detail.rounds, detail.overhead_us, detail.position) == (1000, 0.1, 4)
    slower = read_pass(single * 2, {1: [0.002], 32: [0.004]}, settled=True)
    unsettled = read_pass(single * 1.5, {1: [0.001], 32: [0.016]}, settled=False)
    row, detail = merged(Measurement(Variant("m", "onnx"), "ok"), [first, slower, unsettled])
    assert (row.p50_ms, detail.p50_low_ms, detail.p50_high_ms) == (0.75075, 0.5005, 1.001)
    assert row.images_per_s_at == {"1": 500.0, "32": 4000.0, "128": 2560.0} and detail.rounds == 3000
    assert not detail.settled and detail.passes[1].images_per_s == 8000.0


def read_pass(single: np.ndarray, offline: dict[int, list[float]], settled: bool) -> Ran:
    outcome = Outcome(1.0, 1.0, 10, settled, 1, 2, 0.1, 3, [0, 1])
    benches = [bench("overhead", [1e-7] * 10), bench("SingleStream", list(single), 1)]
    benches += [bench("Offline", times, batch) for batch, times in offline.items()]
    return process.read({"outcome": outcome, "benchmarks": benches}, 4, 1.0)


def bench(scenario: str, data: list[float], batch: int = 0) -> dict[str, object]:
    return {"extra_info": {"scenario": scenario, "batch": batch}, "stats": {"data": data}}


def test_warm_up_ends_when_windows_agree_and_gives_up_when_they_do_not() -> None:
    image, wait = np.zeros((1, 2, 2, 3), np.uint8), itertools.count(1)

    def slower_and_slower(_: object) -> None:
        np.linspace(0, 1, 4000 * next(wait) ** 2)

    calls, settled = warm_up(lambda _: sum(range(20_000)), image, 5.0, 0.05)
    assert settled and calls >= 9
    assert warm_up(slower_and_slower, image, 0.3, 0.001)[1] is False


def test_rounds_fill_the_time_within_bounds() -> None:
    assert rounds_for(lambda: None, 1.0, 10, 500)[0] == 500
    rounds, call_s = rounds_for(lambda: sum(range(300_000)), 1e-6, 10, 500)
    assert rounds == 10 and 1e-4 < call_s < 1


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.04021, "0.0402"),
        (0.0599, "0.0599"),
        (1.1, "1.10"),
        (14.27, "14.3"),
        (12345.6, "12,300"),
        (0, "0"),
        (None, "–"),
    ],
)
def test_three_digits(value: float | None, text: str) -> None:
    assert words.digits(value) == text


def test_signs_and_ratios() -> None:
    assert [words.chance(p) for p in (1.0, 0.0213, 0.0001, None)] == ["1.000", "0.021", "<0.001", "–"]
    assert [words.points(value) for value in (0.1, -0.35, 0.001, None)] == ["+0.10", "−0.35", "0.00", "–"]
    assert [words.times(value) for value in (1.621, 0.996, 0.0138, 12.34, None)] == [
        "1.62×",
        "1.00×",
        "0.014×",
        "12.3×",
        "–",
    ]


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_half_precision_is_not_called_quantized(golden: Results, precision: str) -> None:
    int8, half = Variant("lenet", "onnx", "int8"), Variant("lenet", "onnx", precision)
    rows = [dataclasses.replace(row, variant=half) if row.variant == int8 else row for row in golden.rows]
    details = {**golden.details, str(half): golden.details[str(int8)]}
    found = verdict(dataclasses.replace(golden, rows=rows, details=details), str(half))
    assert found.startswith("half precision but slower, smaller")


def test_the_interval_of_a_change_is_that_of_paired_proportions() -> None:
    low, high = intervals.change(80, 86, 10_000)  # by hand, with 81 and 87 of 10,002
    assert (round(low, 3), round(high, 3)) == (-0.194, 0.314)
    low, high = intervals.change(0, 0, 10_000)
    assert -0.03 < low < 0 < high < 0.03
    assert intervals.change(138, 7, 10_000)[1] < -1


def line(results: Results, name: str) -> Line:
    return next(line for group in groups(results) for line in group.lines if str(line.row.variant) == name)


def test_a_lead_that_chance_may_explain_is_a_tie_on_the_front(golden: Results) -> None:
    ahead = line(golden, "simcnn/onnx-int8")  # 0.15 points above litert-fp32, which is faster; -69 +84 images
    assert ahead.ties == ("accuracy/latency",) and set(ahead.ties) < set(ahead.pareto)
    far = line(golden, "mobilenetv2/onnx-int8")  # seven points above all that are faster
    assert "accuracy/latency" in far.pareto and not far.ties
    sure = {
        **golden.details,
        str(ahead.row.variant): dataclasses.replace(golden.details["simcnn/onnx-int8"], lost=0, won=15),
    }
    assert not line(dataclasses.replace(golden, details=sure), "simcnn/onnx-int8").ties


def test_without_flips_a_change_has_no_interval(golden: Results) -> None:
    details = {name: dataclasses.replace(one, lost=None, won=None) for name, one in golden.details.items()}
    assert all(
        line.change_span is None for g in groups(dataclasses.replace(golden, details=details)) for line in g.lines
    )


def test_less_robust_needs_more_than_two_standard_errors(golden: Results) -> None:
    name = "mobilenetv2/prune80-onnx-int8"  # 6 points fewer on 300 corrupted images
    assert "all" in line(golden, name).robust_worse and verdict(golden, name).endswith(", less robust")
    old = dataclasses.replace(golden.details[name], robust_errors={}, robust_holm=None)
    found = line(dataclasses.replace(golden, details={**golden.details, name: old}), name)  # two samples: error 4
    assert not found.robust_worse and found.verdict.endswith("perhaps less robust")
    many = {n: dataclasses.replace(one, robust_images=3000) for n, one in {**golden.details, name: old}.items()}
    assert line(dataclasses.replace(golden, details=many), name).verdict.endswith(", less robust")
    chance = dataclasses.replace(golden.details[name], robust_holm=0.06)
    assert verdict(dataclasses.replace(golden, details={**golden.details, name: chance}), name).endswith(
        "perhaps less robust"
    )
