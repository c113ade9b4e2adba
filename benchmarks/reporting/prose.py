"""The sentences of a report: the headline, each model's choice, how it was measured and on what."""

from __future__ import annotations

import statistics

from benchmarks.judging.compare import BUDGET_POINTS, SMALLER, Group, Line
from benchmarks.judging.speed import BLIND, FASTER, Speed
from benchmarks.reporting import depth, words
from benchmarks.results import Results

MOST_NAMED = 3  # variants in a sentence
MOST_OTHERS = 5.0  # percent of the processors' time that other processes may take unmentioned
MOST_DRIFT = 1.3  # of the calibration kernel's 90th percentile over its 10th, from which the machine was not steady


def headline(results: Results, found: list[Group]) -> str:
    """The run in one sentence: which variant to take, or how many there are and what each model's choice is."""
    lines = [line for group in found for line in group.lines]
    chosen = [line for line in lines if line.chosen]
    ran = sum(line.measured for line in lines)
    if not chosen:
        told = f"{ran} of {len(lines)} variants could be measured"
        return f"{told}, no servable one within {BUDGET_POINTS} points of its parent."
    if len(results.models) == 1:
        group = next(g for g in found if g.lines)
        return choice_sentence(group, chosen[0])
    named = [f"{line.row.variant.version} for {line.row.variant.model}" for line in chosen]
    return (
        f"Within {BUDGET_POINTS} points of the float parent, the fastest servable variant is {words.listed(named)} "
        f"({ran} of {len(lines)} variants could be measured)."
    )


def choice_sentence(group: Group, line: Line) -> str:
    """Why this variant is the one to take, in one sentence."""
    row, variant = line.row, line.row.variant
    assert row.accuracy is not None
    parts = [f"{words.about(row.p50_ms)} ms an image{_speed(line)}"]
    parts.append(f"{words.kilobytes(row.size_bytes)} kB{_size(group, line)}")
    parts.append(
        f"{words.percent(row.accuracy.top1)}% right on {words.whole(row.accuracy.images)} test images{_loss(line)}"
    )
    return (
        f"{variant.version} is the fastest servable variant of {variant.model} within {BUDGET_POINTS} points of its "
        f"float parent: {'; '.join(parts)}.{_rivals(line)}"
    )


def _speed(line: Line) -> str:
    speed = line.speed
    if speed is None or line.row.variant.version == "onnx-fp32":
        return ""
    if not speed.differs:
        return ", as fast as fp32 ONNX"
    perhaps = "" if speed.sure else "perhaps "
    if speed.ratio > 1:
        return f", {perhaps}{_times(speed)} the speed of fp32 ONNX"
    return f", {perhaps}{_times(speed)} slower than fp32 ONNX"


def _times(speed: Speed) -> str:
    """`2.2 times`, with what that lies between where it is far from it; of a slower one, how many times slower."""
    ratio, low, high = speed.ratio, speed.low, speed.high
    if ratio < 1:
        ratio, low, high = 1 / ratio, 1 / high, 1 / low
    return f"{words.about(ratio)} times" + (f" ({words.span(low, high, words.about)})" if speed.wide else "")


def _rivals(line: Line) -> str:
    """That others could as well be the fastest, in a sentence."""
    near = line.rivals if len(line.rivals) <= MOST_NAMED else (*line.rivals[: MOST_NAMED - 1], "others")
    return f" In this run {words.listed(near)} may be as fast." if near else ""


def _size(group: Group, line: Line) -> str:
    reference = group.reference(line.row.variant.model)
    if reference is None or line.size_ratio is None or 1 / SMALLER < line.size_ratio < SMALLER:
        return ""
    return f" instead of {words.kilobytes(reference.row.size_bytes)}"


def _loss(line: Line) -> str:
    if line.detail is None or not line.detail.against:  # it is the parent, or there is none in this run
        return ""
    change = round(line.change_points or 0.0, 2)
    if change == 0:
        return ", the same as its parent"
    return f", {abs(change):.2f} points {'lower' if change < 0 else 'higher'} than its parent"


def advice(group: Group, line: Line) -> str:
    """The choice of a model for one who has read nothing else: what it gains over plain ONNX, and what it costs."""
    merits = [*_gain(line), *_share(group, line), _cost(line)]
    return f"Take {line.row.variant.version}: {', '.join(merits)}.{_rivals(line)}"


def _gain(line: Line) -> list[str]:
    speed = line.speed
    if speed is None or line.row.variant.version == "onnx-fp32":
        return [f"{words.about(line.row.p50_ms)} ms an image"]
    if not speed.differs:
        return ["as fast as plain ONNX"]
    perhaps = "" if speed.sure else "perhaps "
    return [f"{perhaps}{_times(speed)} as {'fast' if speed.ratio > 1 else 'slow'} as plain ONNX"]


def _share(group: Group, line: Line) -> list[str]:
    if not _size(group, line):
        return []
    return [f"{words.about(100 / (line.size_ratio or 1))}% of its size"]


def _cost(line: Line) -> str:
    change = round(line.change_points or 0.0, 2)
    if change == 0:
        return "as accurate as the original network"
    where = "below" if change < 0 else "above"
    told = f"{abs(change):.2f} points {where} the original network" + (
        ", which may be chance" if line.may_be_chance else ""
    )
    return f"{told}, and may be more than {BUDGET_POINTS} below" if line.may_lose_more else told


def warnings(results: Results) -> list[str]:
    """What a reader must know before believing the figures, a sentence or two each: a quick run, a busy machine."""
    return [long for _, long in _warnings(results)]


def quoted(results: Results) -> list[str]:
    """The same as lines of Markdown, a quotation each."""
    return [line for warning in warnings(results) for line in (f"> {warning}", "")]


def warning(results: Results) -> str:
    """The same in one short sentence, to stand above a published table; "" where there is nothing to warn of."""
    found = [short for short, _ in _warnings(results)]
    return f"Measured {' and '.join(found)}: take latencies and ratios with caution." if found else ""


def _warnings(results: Results) -> list[tuple[str, str]]:
    found = []
    if results.quick:
        long = "This was a quick run: p99 is rough, and ratios near 1 are not to be trusted."
        found.append(("in a quick run", long))
    if results.steal_percent is not None and results.steal_percent >= 2:
        long = (
            f"Other guests of the host took {results.steal_percent:.0f}% of the processor's time during the run: "
            "latencies are too high, their ratios uncertain."
        )
        found.append(("beside other guests of the host", long))
    if told := _other_work(results):
        long = (
            f"The machine was busy with other work ({told}): latencies are too high, their ratios uncertain. "
            "Measure again when it is idle."
        )
        found.append(("on a machine busy with other work", long))
    if told := _drift(results):
        long = f"The machine's own speed changed during the run ({told}): latencies and their ratios are uncertain."
        found.append(("on a machine whose own speed changed", long))
    return found


def _drift(results: Results) -> str:
    """How far the calibration kernel's times lie apart, where that is too much."""
    passes = [one for detail in results.details.values() for one in detail.passes]
    times = sorted(ms for one in passes for ms in (one.kernel_ms, one.offline_kernel_ms) if ms)
    if len(times) < 2:
        return ""
    tenths = statistics.quantiles(times, n=10, method="inclusive")
    low, high = tenths[0], tenths[-1]
    if high < MOST_DRIFT * low:
        return ""
    return (
        f"its calibration kernel took {words.digits(low)} ms at the 10th percentile and {words.digits(high)} ms at the "
        f"90th of {len(times)} samples, {words.times(high / low)}"
    )


def _other_work(results: Results) -> str:
    """How much of the machine others took, where that is too much; older runs have nothing but load averages."""
    cores = len(results.machine.affinity)
    if results.others_percent is not None:
        much = results.others_percent >= MOST_OTHERS
        return f"which took {results.others_percent:.0f}% of its {cores} cores' time during the run" if much else ""
    before, after = results.load_before[0], results.load_after[0]
    busy = before > 0.5 * cores or after > results.threads + 0.5 * cores  # the run itself makes `threads` of it
    return f"load average {before:.1f} before and {after:.1f} after the run, on {cores} cores" if busy else ""


def unsettled(results: Results, model: str) -> str:
    """Which of a model's variants were measured before their latency had settled, in a sentence; "" if none was."""
    names = [
        row.variant.version
        for row in results.rows
        if row.variant.model == model and (detail := results.details.get(str(row.variant))) and not detail.settled
    ]
    return f"The latency of {', '.join(names)} had not settled when it was measured." if names else ""


def method(results: Results) -> list[str]:
    """How the figures came about, a sentence or two a point, with the numbers of this run."""
    s, details = results.settings, list(results.details.values())
    rounds = _range([d.rounds for d in details])
    offline = _range([n for d in details for n in d.offline_rounds.values()])
    overhead = max((d.overhead_us for d in details), default=0.0)
    environment = ", ".join(f"{name}={value}" for name, value in results.environment.items())
    unsettled = sorted(name for name, d in results.details.items() if not d.settled)
    return [
        f"Every variant ran in a process of its own, {_threads(results.threads)} ({environment}), {_turns(s.passes)} "
        f"in random order (seed {results.seed}; the order is in results.json).",
        f"Its files were checked against their sha256 first. It was warmed up for at most {s.warmup_seconds:g} s, "
        "until the medians of three windows agreed within 5%"
        + (f"; {_some(unsettled)} did not settle." if unsettled else ", which all did."),
        f"SingleStream (p50, p90, p99): batch 1, {rounds} rounds of one inference, each on another real test image, "
        "timed by pytest-benchmark with time.perf_counter and the garbage collector off. Timing an empty call costs "
        f"up to {words.digits(overhead, 2)} µs here, which is not subtracted.",
        f"Offline (images/s): the best median over batches of {', '.join(map(str, s.batches))}, then "
        f"{', '.join(map(str, s.more_batches))} while that gains 5% or more; {offline} rounds each.",
        *depth.method(results),
        "Accuracy: the whole test split through the format's own loader; the interval is Wilson's for 95%. The change "
        "is in points against the float parent (Keras fp32 where it was measured, else ONNX fp32) on the same images, "
        "its interval for 95% Wald's for paired proportions after Bonett and Price, of each variant alone; "
        f"'as accurate' is within {BUDGET_POINTS} points, with 'perhaps' where that interval reaches beyond what may "
        "be lost; of more and less accurate, 'perhaps' stands where McNemar's exact test gives p of 0.05 or more"
        + (", after Holm's correction over all variants." if results.schema > 1 else "."),
        "Ratio (of size) and speed-up are against fp32 ONNX of the same model in this run, above 1 where better; "
        f"within {100 * (FASTER - 1):.0f}% of it speed is called the same, within {100 * (SMALLER - 1):.0f}% size; "
        f"'perhaps' stands where {_met(s.passes)}. "
        "kB are 1,000 bytes of the model file, gzip at level 9. RSS is the peak of the whole process, with Python and "
        "the test images.",
        f"What stands behind p50, and the bars of the picture, span the medians of {_spread(s.passes)}.",
        f"The run took {results.seconds:.0f} s; load average {_loads(results.load_before)} before, "
        f"{_loads(results.load_after)} after.",
    ]


def _some(names: list[str]) -> str:
    return ", ".join(names) if len(names) <= 3 else f"{len(names)} variants"


def _turns(passes: int) -> str:
    return "once," if passes == 1 else f"{passes} times,"


def _met(passes: int) -> str:
    if passes == 1:
        return f"the range of the ratio holds 1, in batches where the ratio is below {BLIND:g}"
    if passes == 2:
        return (
            "the figures of the 2 passes overlap, or lie no further apart than two standard errors of two passes of "
            "this model's variants; of ratios whose turns have an interval, where that holds 1"
        )
    return f"the figures of the {passes} passes overlap; of ratios whose turns have an interval, where that holds 1"


def _spread(passes: int) -> str:
    return "five consecutive fifths of the rounds" if passes == 1 else f"the {passes} passes"


def machine_rows(results: Results) -> list[tuple[str, str]]:
    """The machine, as names and values."""
    m = results.machine
    cores = f"{m.physical_cores} physical, {m.logical_cores} logical, {len(m.affinity)} allowed"
    return [
        ("CPU", m.cpu + (" (virtual machine)" if m.virtual else "")),
        ("instruction sets", ", ".join(m.flags) or "none known to matter"),
        ("cores", cores),
        ("threads", str(results.threads)),
        ("memory", f"{m.memory_bytes / 2**30:.1f} GiB"),
        ("system", m.os),
        ("Python", m.python),
        *m.versions.items(),
    ]


def _range(numbers: list[int]) -> str:
    if not numbers:
        return "no"
    low, high = min(numbers), max(numbers)
    return words.whole(low) if low == high else f"{words.whole(low)} to {words.whole(high)}"


def _threads(count: int) -> str:
    return "1 thread" if count == 1 else f"{count} threads"


def _loads(averages: list[float]) -> str:
    return "/".join(f"{average:.2f}" for average in averages)
