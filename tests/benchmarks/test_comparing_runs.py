"""Runs held against each other: regressions in calibration kernels, and whether repetitions agree."""

from __future__ import annotations

import csv
import dataclasses
import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from benchmarks import results
from benchmarks.judging import intervals, regress
from benchmarks.judging.compare import Line, groups
from benchmarks.judging.speed import Noise, Speed, in_batches, one_by_one
from benchmarks.measuring import process
from benchmarks.measuring.job import Outcome
from benchmarks.measuring.process import Ran
from benchmarks.repeat import SETTINGS, agreement, repeated
from benchmarks.reporting import prose
from benchmarks.reporting.report import render
from benchmarks.results import Detail, Pass, Results
from catalog import ROOT, KilnError, Store

NAME = "mobilenetv2/onnx-int8"


def changed(run: Results, factor: float, kernel: float = 1.0, name: str = "") -> Results:
    """The run as a machine `kernel` times slower would have it, with one variant (or all) slower by `factor` beyond."""
    details = {}
    for key, detail in run.details.items():
        by = kernel * (factor if name in ("", key) else 1.0)
        passes = [
            dataclasses.replace(
                one,
                p50_ms=one.p50_ms * by,
                images_per_s_at={batch: rate / by for batch, rate in one.images_per_s_at.items()},
                kernel_ms=one.kernel_ms * kernel,
            )
            for one in detail.passes
        ]
        low, high = detail.p50_low_ms * by, detail.p50_high_ms * by
        details[key] = dataclasses.replace(detail, passes=passes, p50_low_ms=low, p50_high_ms=high)
    rows = [
        dataclasses.replace(row, p50_ms=row.p50_ms * kernel * (factor if name in ("", str(row.variant)) else 1.0))
        if row.p50_ms
        else row
        for row in run.rows
    ]
    return dataclasses.replace(run, details=details, rows=rows)


def with_passes(run: Results, wanted: Sequence[int]) -> Results:
    """The run as if only these passes had been made."""
    details = {k: dataclasses.replace(d, passes=[d.passes[i] for i in wanted]) for k, d in run.details.items()}
    return dataclasses.replace(run, details=details)


@pytest.fixture(scope="module")
def neighboured(golden: Results) -> Results:
    """The run as on a machine with neighbours: a tenth is the standard deviation of a variant's passes."""
    rng = np.random.default_rng(0)

    def disturbed(one: Pass) -> Pass:
        by, batches = rng.lognormal(0, 0.1, 2)
        rates = {batch: rate / batches for batch, rate in one.images_per_s_at.items()}
        return dataclasses.replace(one, p50_ms=one.p50_ms * by, images_per_s_at=rates)

    details = {
        name: dataclasses.replace(detail, passes=[disturbed(one) for one in detail.passes])
        for name, detail in golden.details.items()
    }
    return dataclasses.replace(golden, details=details)


def test_a_slower_machine_is_no_regression(golden: Results) -> None:
    changes = regress.compared(golden, changed(golden, 1.0, kernel=3.0)).changes
    assert len(changes) == 2 * len(golden.details)
    assert all(change.ratio == pytest.approx(1) and not change.regressed and not change.improved for change in changes)


def test_a_slower_variant_is_one(golden: Results) -> None:
    changes = regress.compared(golden, changed(golden, 1.2, kernel=0.5, name=NAME)).changes
    assert {(change.name, change.figure) for change in changes if change.regressed} == {
        (NAME, "p50"),
        (NAME, "Offline"),
    }
    faster = regress.compared(golden, changed(golden, 1 / 1.2, name=NAME)).changes
    assert {change.name for change in faster if change.improved} == {NAME} and not any(c.regressed for c in faster)


def test_a_variant_whose_passes_lie_far_apart_has_noise_of_its_own(golden: Results) -> None:
    slower = changed(golden, 1.2)
    detail = slower.details[NAME]
    noisy = dataclasses.replace(detail, passes=[*detail.passes[:2], golden.details[NAME].passes[2]])
    found = regress.compared(golden, dataclasses.replace(slower, details={**slower.details, NAME: noisy})).changes
    own, others = ([c for c in found if (c.name == NAME) == mine] for mine in (True, False))
    assert all(change.regressed for change in others)
    assert min(c.most / c.least for c in own) > 1.1 * max(c.most / c.least for c in others)


@pytest.mark.parametrize("then", [(0, 1), (0, 2), (1, 2)])
@pytest.mark.parametrize("now", [(0, 1), (0, 2), (1, 2), (2, 0, 1)])
def test_noise_is_no_regression(neighboured: Results, then: Sequence[int], now: Sequence[int]) -> None:
    """Any two passes against any others of the same run, and the run against itself."""
    changes = regress.compared(with_passes(neighboured, then), with_passes(neighboured, now)).changes
    assert len(changes) == 2 * len(neighboured.details) and not any(c.regressed or c.improved for c in changes)


def test_in_that_noise_a_slowdown_of_half_is_found(neighboured: Results) -> None:
    """When everything is slower, and when one variant alone is."""
    everything = regress.compared(neighboured, changed(neighboured, 1.5)).changes
    assert sum(change.regressed for change in everything) > 0.85 * len(everything)
    alone = [
        regress.compared(neighboured, changed(neighboured, 1.5, name=name)).changes for name in neighboured.details
    ]
    found = [{change.name for change in changes if change.regressed} for changes in alone]
    assert all(names <= {name} for names, name in zip(found, neighboured.details, strict=True))
    assert sum(map(bool, found)) > 0.75 * len(found)


def test_an_hour_that_was_slow_in_one_scenario_alone_is_no_regression(golden: Results) -> None:
    """The kernel is timed beside each; files from before that have one for both."""

    def slowed(one: Pass) -> Pass:
        rates = {batch: rate / 2 for batch, rate in one.images_per_s_at.items()}
        return dataclasses.replace(one, images_per_s_at=rates, offline_kernel_ms=2 * one.kernel_ms)

    details = {n: dataclasses.replace(d, passes=[slowed(one) for one in d.passes]) for n, d in golden.details.items()}
    changes = regress.compared(golden, dataclasses.replace(golden, details=details)).changes
    assert all(change.ratio == pytest.approx(1) and not change.regressed for change in changes)


def test_benjamini_and_hochberg_s_own_example() -> None:
    """Their paper's 15 p values: four are found; Bonferroni finds three of them, no correction nine."""
    p = [0.0001, 0.0004, 0.0019, 0.0095, 0.0201, 0.0278, 0.0298, 0.0344, 0.0459, 0.324, 0.4262, 0.5719, 0.6528, 0.759]
    assert regress._found(dict(enumerate([*p, 1.0]))) == {0, 1, 2, 3}
    assert regress._found({0: 0.04, 1: 0.045}) == {0, 1}  # the first alone is above its own 0.025
    assert regress._found({0: 0.06}) == regress._found({}) == set()


@pytest.mark.parametrize("freedom", [10, 20, 66, 198])
@pytest.mark.parametrize("t", [-2.0, 0.0, 1.0, 1.7, 2.5, 4.0])
def test_p_is_student_s(t: float, freedom: int) -> None:
    stats = pytest.importorskip("scipy.stats")
    assert regress._p_above(t, freedom) == pytest.approx(stats.t.sf(t, freedom), abs=1e-3)


def test_one_pass_alone_is_not_judged(golden: Results) -> None:
    with pytest.raises(KilnError, match=r"measured in one pass.*measure again without --quick"):
        regress.compared(golden, with_passes(golden, [0]))


def test_a_variant_that_fails_now_is_a_regression_and_one_not_tried_is_told(golden: Results) -> None:
    details = {name: detail for name, detail in golden.details.items() if name != NAME}
    rows = [row for row in golden.rows if str(row.variant) != NAME]
    gone = dataclasses.replace(golden, details=details, rows=rows)
    assert regress.compared(golden, gone).missing == [NAME]
    row = next(row for row in golden.rows if str(row.variant) == NAME)
    crashed = dataclasses.replace(row, status="failed", reason="its process died")
    found = regress.compared(golden, dataclasses.replace(gone, rows=[*rows, crashed]))
    assert found.failed == {NAME: "its process died"} and not found.missing
    assert not regress.compared(gone, golden).failed and not regress.compared(gone, golden).missing


def test_runs_that_cannot_be_compared_say_why(golden: Results) -> None:
    with pytest.raises(KilnError, match="one run had 2 threads, the other 4"):
        regress.compared(golden, dataclasses.replace(golden, threads=4))
    with pytest.raises(KilnError, match="no measured variant in common"):
        regress.compared(golden, dataclasses.replace(golden, details={}))
    old = results.read(Path(__file__).parent / "golden" / "results.json")
    with pytest.raises(KilnError, match="without the calibration kernel"):
        regress.compared(old, golden)


def test_the_command_fails_on_a_regression_alone(golden: Results, benchmarks_command, tmp_path: Path) -> None:
    golden.write(tmp_path / "then.json")
    changed(golden, 1.3, name=NAME).write(tmp_path / "now.json")
    worse = benchmarks_command("compare", "--against", tmp_path / "then.json", "--results", tmp_path / "now.json")
    assert worse.returncode == 1 and f"{NAME} (p50, 1.30×)" in worse.stderr and "lenet/" not in worse.stderr
    assert f"{NAME}, p50" in worse.stdout
    rows = [
        dataclasses.replace(row, status="failed", reason="no memory") if str(row.variant) == NAME else row
        for row in golden.rows
    ]
    left = {name: detail for name, detail in golden.details.items() if name != NAME}
    dataclasses.replace(golden, rows=rows, details=left).write(tmp_path / "failed.json")
    failed = benchmarks_command("compare", "--against", tmp_path / "then.json", "--results", tmp_path / "failed.json")
    assert failed.returncode == 1 and f"{NAME} was measured then and failed now: no memory" in failed.stderr
    better = benchmarks_command("compare", "--against", tmp_path / "now.json", "--results", tmp_path / "then.json")
    assert better.returncode == 0 and "faster" in better.stdout


def test_agreement_is_of_ratios_and_of_order(golden: Results) -> None:
    same = agreement([golden, changed(golden, 1.0, kernel=2.0), golden])
    assert same.holds and max(same.spreads.values()) == pytest.approx(0) and not same.swapped
    assert "mobilenetv2/onnx-fp32" not in same.spreads and NAME in same.spreads
    apart = agreement([golden, changed(golden, 1.2, name=NAME)])
    assert not apart.holds and apart.spreads[NAME] == pytest.approx(0.2) and not apart.swapped
    swapped = agreement([golden, changed(golden, 2.5, name=NAME)])
    assert {left for pair in swapped.swapped for left in pair} >= {NAME} and not swapped.holds


def speeds(rng: np.random.Generator, seconds: float, step_s: float) -> np.ndarray:
    """How much slower than its best a host is, step by step: 1 or 1.8, changing after 0.7 s on average."""
    changes = rng.random(int(seconds / step_s)) < step_s / 0.7
    return np.where(np.cumsum(changes) % 2 == rng.integers(2), 1.0, 1.8)


def one_pass(rng: np.random.Generator, slow: np.ndarray, at: np.ndarray, ms: float) -> Ran:
    """A variant of `ms` on the idle host, measured in these steps of it, each a turn."""
    turns = ms * slow[at] * rng.lognormal(0, 0.02, len(at))
    p50 = float(np.median(turns))
    outcome = Outcome(1.0, 1.0, 1, True, 1, 1, 0.1, 1, [0])
    figures = Pass(0, True, len(at), p50, p50, p50, {"1": 1e3 / p50}, 0.1)
    return Ran(figures, outcome, [p50], list(turns), 0.1, {"1": 1}, 1.0)


def test_turns_agree_where_one_after_the_other_does_not() -> None:
    """Three passes of 0.8 s, of eleven variants a model, on a host that two states make 1.8 times slower or not."""
    rng, alone, turns = np.random.default_rng(0), list[float](), list[float]()
    for _ in range(200):
        apart, paired = [], []
        for _ in range(3):
            slow, eighth = speeds(rng, 20.0, 0.1), np.arange(8)
            apart.append([one_pass(rng, slow, start + eighth, ms) for start, ms in ((0, 1.0), (100, 0.5))])
            parent, variant = (one_pass(rng, slow, place + 11 * eighth, ms) for place, ms in ((2, 1.0), (7, 0.5)))
            paired.append(process.against(variant, parent).figures)
        parents, variants = ([float(one.figures.p50_ms) for one in side] for side in zip(*apart, strict=True))
        alone.append(float(np.median(parents) / np.median(variants)))
        turns.append(float(np.median([one.speed_up for one in paired])))
    before, after = (float(np.std(np.log(ratios))) for ratios in (alone, turns))
    assert before > 0.2 and after < 0.05, (before, after)
    assert float(np.median(turns)) == pytest.approx(2.0, rel=0.02)


def test_the_ratio_of_a_row_is_that_of_its_turns(golden: Results) -> None:
    """Where there were turns; p50 of a slow hour against that of a quick one decides nothing then."""
    names = "mobilenetv2/onnx-fp32", NAME
    ratios = {names[0]: (1.0, 1.0, 1.0), NAME: (1.9, 2.0, 2.2)}
    details = dict(golden.details)
    for name, of_passes in ratios.items():
        paired = zip(details[name].passes, of_passes, strict=True)
        details[name] = dataclasses.replace(
            details[name], passes=[dataclasses.replace(one, speed_up=ratio) for one, ratio in paired]
        )
    rows = {str(row.variant): row for row in golden.rows}
    parts = rows[NAME], details[NAME], rows[names[0]], details[names[0]]
    assert one_by_one(*parts) == Speed(2.0, 1.9, 2.2)
    assert one_by_one(parts[0], golden.details[NAME], parts[2], golden.details[names[0]]) != Speed(2.0, 1.9, 2.2)
    told = dataclasses.replace(golden, details=details)
    assert agreement([told, changed(told, 1.5, name=NAME)]).spreads[NAME] == pytest.approx(0)
    passes = [dataclasses.replace(details[NAME].passes[0], speed_up=ratio) for ratio in (0.9, 1.2, 1.3)]
    found = one_by_one(parts[0], dataclasses.replace(details[NAME], passes=passes), *parts[2:])
    assert found == Speed(1.2, 0.9, 1.3) and not found.sure


@pytest.mark.parametrize("count", [6, 7, 12, 20, 41, 400])
def test_the_interval_of_a_median_is_that_of_order_statistics(count: int) -> None:
    """By the binomial distribution: 95% at least, and one place further in less than that."""
    stats = pytest.importorskip("scipy.stats")
    found = intervals.median(list(np.random.default_rng(0).permutation(count)))
    assert found is not None and found[0] + found[1] == count - 1
    low = int(found[0])
    assert stats.binom.cdf(low, count, 0.5) <= 0.025 < stats.binom.cdf(low + 1, count, 0.5)


def test_five_turns_have_no_interval_and_a_pass_keeps_its_own() -> None:
    assert intervals.median([1.0, 2.0, 3.0, 4.0, 5.0]) is None and intervals.median([]) is None
    rng = np.random.default_rng(0)
    slow, turns = speeds(rng, 20.0, 0.1), np.arange(12)
    parent, variant = (one_pass(rng, slow, at + 11 * turns, ms) for at, ms in ((2, 1.0), (7, 0.5)))
    found = process.against(variant, parent).figures
    ratios = sorted(theirs / own for theirs, own in zip(parent.turns, variant.turns, strict=True))
    assert (found.speed_up_low, found.speed_up_high, found.turns) == (round(ratios[2], 4), round(ratios[-3], 4), 12)
    few = process.against(one_pass(rng, slow, turns[:5], 0.5), parent).figures
    assert few.speed_up and (few.speed_up_low, few.speed_up_high, few.turns) == (None, None, 5)


def neighbourly(rng: np.random.Generator, seconds: float) -> list[process.Ran]:
    """Six passes of a variant that is twice as fast as its parent in a machine of its own, and thrice beside another's.

    The other's stays for a share of the run that no two runs have in common.
    """
    runs = []
    for _ in range(6):
        there = rng.random(20) < seconds
        noise = rng.normal(1.0, 0.02, (2, 20))
        parent, variant = (noise[0] * np.where(there, 1.8, 1.0), 0.5 * noise[1] * np.where(there, 1.2, 1.0))
        bare = one_pass(rng, np.ones(400), np.arange(20), 1.0)
        runs.append(dataclasses.replace(bare, turns=variant.tolist(), beside=parent.tolist()))
    return runs


def test_in_quiet_turns_a_neighbour_does_not_show(golden: Results) -> None:
    rng = np.random.default_rng(0)
    found = [process.in_quiet(neighbourly(rng, share)) for share in (0.0, 0.3, 0.6)]
    assert all(one and one.speed_up == pytest.approx(2.0, rel=0.03) and one.low <= 2.0 <= one.high for one in found)
    assert found[0] and (found[0].turns, found[0].taken) == (30, 120)
    everywhere = [
        np.median(
            [there / own for ran in neighbourly(rng, share) for own, there in zip(ran.turns, ran.beside, strict=True)]
        )
        for share in (0.0, 0.6)
    ]
    assert everywhere[1] > 1.2 * everywhere[0]
    assert process.in_quiet(neighbourly(rng, 0.0)[:0]) is None
    detail = dataclasses.replace(golden.details[NAME], quiet=found[0])
    row = next(row for row in golden.rows if str(row.variant) == NAME)
    speed = one_by_one(row, detail, row, detail)
    assert speed and found[0] and (speed.ratio, speed.low) == (found[0].speed_up, found[0].low) and speed.sure


def with_turns(run: Results, name: str, *passes: tuple[float, float | None, float | None]) -> Results:
    """The run with other speed-ups of a variant, each with the ends of its interval, a pass each."""
    told = [
        dataclasses.replace(run.details[name].passes[0], speed_up=ratio, speed_up_low=low, speed_up_high=high)
        for ratio, low, high in passes
    ]
    return dataclasses.replace(run, details={**run.details, name: dataclasses.replace(run.details[name], passes=told)})


@pytest.mark.parametrize(
    ("passes", "speed", "sure"),
    [
        ([(2.0, 1.9, 2.1), (2.2, 2.0, 2.4)], (2.1, 1.9, 2.4), True),
        ([(4.8, 3.9, 5.2), (3.1, 0.9, 3.3)], (3.95, 0.9, 5.2), False),  # both passes above 1, one hardly so
        ([(1.2, 1.1, 1.3)], (1.2, 1.1, 1.3), True),  # one pass with turns enough
        ([(1.2, None, None)], (1.2, 1.2, 1.2), False),  # and with too few
        ([(1.3, None, None)], (1.3, 1.3, 1.3), True),
        ([(1.1, None, None), (1.2, None, None)], (1.15, 1.1, 1.2), False),  # two older passes: one in two is a chance
        ([(1.7, None, None), (1.8, None, None)], (1.75, 1.7, 1.8), True),
        ([(1.1, None, None), (1.2, None, None), (1.15, None, None)], (1.15, 1.1, 1.2), True),
    ],
)
def test_a_ratio_has_a_range_that_covers_every_pass(
    golden: Results, passes: list[tuple[float, float | None, float | None]], speed: tuple[float, ...], sure: bool
) -> None:
    told = with_turns(golden, NAME, *passes)
    (line,) = [x for group in groups(told) for x in group.lines if str(x.row.variant) == NAME]
    assert line.speed and (line.speed.ratio, line.speed.low, line.speed.high) == pytest.approx(speed)
    assert line.speed.sure == sure and line.speed.word == ("faster" if sure else "perhaps faster")


def test_a_wide_range_stands_wherever_the_ratio_does(golden: Results) -> None:
    told = with_turns(golden, NAME, (2.0, 1.9, 2.1), (2.4, 2.2, 2.5))
    report = render(told, pictures=False)
    (group,) = groups(told)
    assert prose.advice(group, line_of(told)).startswith("Take onnx-int8: 2.2 times (1.9 to 2.5) as fast as plain ONNX")
    assert "2.2× (1.9 to 2.5) the speed of onnx-fp32" in report.html and "2.2× (1.9 to 2.5)" in report.markdown
    row = next(row for row in csv.DictReader(io.StringIO(report.csv)) if row["model"] + "/" + row["version"] == NAME)
    assert (row["speed_up"], row["speed_up_low"], row["speed_up_high"]) == ("2.2", "1.9", "2.5")
    assert "the median ratio of turns taken side by side; behind it what the 95% intervals" in report.markdown
    narrow = with_turns(golden, NAME, (2.0, 1.96, 2.04))
    assert prose.advice(group, line_of(narrow)).startswith("Take onnx-int8: 2.0 times as fast as plain ONNX")
    slow = with_turns(golden, NAME, (0.5, 0.4, 0.55))
    assert "2.0 times (1.8 to 2.5) as slow as plain ONNX" in prose.advice(group, line_of(slow))


def line_of(run: Results) -> Line:
    return next(line for group in groups(run) for line in group.lines if str(line.row.variant) == NAME)


@pytest.mark.parametrize(("rates", "sure"), [((800.0, 810.0), False), ((1100.0, 1110.0), True)])
def test_two_passes_that_do_not_overlap_are_not_enough(golden: Results, rates: tuple[float, float], sure: bool) -> None:
    """Two of one and two of another lie apart in one case of three, were they the same."""
    two = with_passes(golden, [0, 1])
    passes = [
        dataclasses.replace(one, images_per_s_at={"128": rate})
        for one, rate in zip(two.details[NAME].passes, rates, strict=True)
    ]
    details = {**two.details, NAME: dataclasses.replace(two.details[NAME], passes=passes)}
    rows = [
        dataclasses.replace(row, images_per_s=sum(rates) / 2) if str(row.variant) == NAME else row for row in two.rows
    ]
    found = line_of(dataclasses.replace(two, details=details, rows=rows)).throughput  # onnx-fp32 has 712 to 733
    assert found and found.low > 1 and found.sure == sure


def test_the_noise_of_two_passes_is_that_of_all_variants_of_the_model(golden: Results) -> None:
    """Of eleven variants whose passes lie 1% apart, two of 10% are apart; of eleven that lie 30% apart they are not."""
    detail = golden.details[NAME]

    def passes(*rates: float) -> Detail:
        told = [dataclasses.replace(detail.passes[0], images_per_s_at={"1": rate}) for rate in rates]
        return dataclasses.replace(detail, passes=told)

    row = dataclasses.replace(golden.rows[0], images_per_s=110.5)
    before = dataclasses.replace(row, images_per_s=100.5)
    for spread, sure in ((1.01, True), (1.3, False)):
        noise = Noise.of(passes(100.0, 100.0 * spread) for _ in range(11))
        assert noise.rates[1] == 11
        found = in_batches(row, passes(110.0, 111.0), before, passes(100.0, 101.0), noise)
        assert found and found.sure == sure


def test_the_choice_names_those_that_may_be_as_fast(golden: Results) -> None:
    near = dataclasses.replace(golden.details[NAME], p50_low_ms=0.55, p50_high_ms=1.12)  # litert-fp32: 1.1, onnx 1.11
    told = dataclasses.replace(golden, details={**golden.details, NAME: near})
    assert line_of(golden).chosen and not line_of(golden).rivals
    assert line_of(told).rivals == ("litert-fp32", "onnx-fp32")
    (group,) = groups(told)
    assert prose.advice(group, line_of(told)).endswith(" In this run litert-fp32 and onnx-fp32 may be as fast.")
    assert "In this run litert-fp32 and onnx-fp32 may be as fast." in render(told, pictures=False).markdown


def test_turns_that_contradict_p50_leave_the_choice_open(golden: Results) -> None:
    turns = with_turns(golden, NAME, (1.9, 1.2, 2.2))
    turns = with_turns(turns, "mobilenetv2/litert-fp32", (1.3, 1.1, 1.5))
    assert "litert-fp32" in line_of(turns).rivals
    apart = with_turns(turns, "mobilenetv2/litert-fp32", (1.1, 1.05, 1.15))
    assert "litert-fp32" not in line_of(apart).rivals


def test_variants_that_one_run_lacks_are_left_out(golden: Results) -> None:
    details = {name: detail for name, detail in golden.details.items() if name != NAME}
    found = agreement([golden, dataclasses.replace(golden, details=details)])
    assert NAME not in found.spreads and found.holds


@pytest.mark.slow
@pytest.mark.cifar10
def test_three_runs_over_the_zoo_agree(tmp_path: Path) -> None:
    """Needs an otherwise idle machine, as every measurement does."""
    import os

    if "CIFAR10_DIR" not in os.environ:
        pytest.skip("CIFAR10_DIR names no folder")
    zoo = Store(ROOT / "zoo")
    runs = repeated(zoo, zoo.models(), 3, 2, SETTINGS, tmp_path)
    found = agreement(runs)
    assert found.spreads and found.holds, found


def test_the_range_of_a_throughput_is_that_of_the_batch_it_stands_for(golden: Results) -> None:
    """Each pass has a best batch of its own, whose rates may all lie above the median at any one."""
    row = dataclasses.replace(golden.rows[0], images_per_s=12.0, offline_batch=4)
    bare = golden.details[NAME].passes[0]
    rates: list[dict[str, float]] = [{"4": 10.0, "8": 15.0, "16": 9.0}, {"4": 14.0, "8": 8.0}, {"4": 12.0, "8": 11.0}]
    passes = [dataclasses.replace(bare, images_per_s_at=of_one) for of_one in rates]
    detail = dataclasses.replace(golden.details[NAME], passes=passes)
    assert in_batches(row, detail, row, detail) == Speed(1.0, 10 / 14, 14 / 10)
    assert [one.images_per_s_in(16) for one in passes] == [9.0, 14.0, 12.0]  # a pass that did not try it has its best
