"""What the report's deeper tables need of a run beside its lines: by corruption, by class, the peak in words."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

from benchmarks.judging import intervals
from benchmarks.judging.compare import Group, Line
from benchmarks.measuring.corrupt import CORRUPTIONS
from benchmarks.measuring.server import RULE
from benchmarks.measuring.turns import SETTLE
from benchmarks.reporting import legend, over_http, words
from benchmarks.results import Results


def context(results: Results, groups: list[Group]) -> dict[str, Any]:
    """The names the templates use."""
    details = results.details.values()
    return {
        "energy": any(detail.package_mj is not None for detail in details),
        "taxed": any(detail.tax for detail in details),
        "over_http": over_http.columns(results),
        "roof": peak_sentence(results, groups),
        "corruptions": [name for name in CORRUPTIONS if any(name in detail.robust_top1 for detail in details)],
        "mean": mean,
        "terms": legend.terms(results),
        "sections": legend.SECTIONS,
        "guide": legend.PAGE,
        "pareto": pareto,
        "robust_change": lambda line, name: robust_change(results, line, name),
        "class_name": lambda line: class_name(results, line),
        "class_names": lambda group: class_names(results, group),
    }


def mean(values: Sequence[float]) -> float:
    """The arithmetic mean."""
    return statistics.fmean(values)


def peak_sentence(results: Results, groups: list[Group]) -> str:
    """The machine's peak in words; empty where the run measured none."""
    peak = results.roofline
    if peak is None:
        return ""
    copies = sorted((int(size), rate) for size, rate in peak.copy_bytes_per_s.items())
    int8 = f", int8 {words.digits(peak.int8_macs_per_s / 1e9)}" if peak.int8_macs_per_s else ""
    return (
        f"this machine's own peak: fp32 {words.digits(peak.fp32_macs_per_s / 1e9)} GMAC/s{int8}, copying "
        f"{words.digits(copies[0][1] / 1e9)} GB/s in the cache and {words.digits(copies[-1][1] / 1e9)} in memory"
        + _beyond(groups)
    )


def _beyond(groups: list[Group]) -> str:
    """That the peak is underestimated, where a variant reached more than all of it."""
    lines = [line for group in groups for line in group.lines]
    shares = {
        str(line.row.variant): max(bound.compute for bound in (line.single, line.offline) if bound)
        for line in lines
        if line.single or line.offline
    }
    beyond = [f"{name} reached {100 * share:.0f}% of it" for name, share in shares.items() if share >= 1.005]
    return f"; peak underestimated: {', '.join(beyond)}" if beyond else ""


def robust_change(results: Results, line: Line, corruption: str) -> float | None:
    """Points on one corruption's images against the float parent; None for the parent itself."""
    detail = line.detail
    parent = results.details.get(f"{line.row.variant.model}/{detail.against}") if detail and detail.against else None
    if detail is None or parent is None or corruption not in parent.robust_top1:
        return None
    return round(intervals.mean_robust(detail, corruption) - intervals.mean_robust(parent, corruption), 2)


def pareto(line: Line) -> list[str]:
    """The fronts that a line is on, with a word at those it is on by a tie."""
    return [f"{pair} (tie)" if pair in line.ties else pair for pair in line.pareto]


def class_names(results: Results, group: Group) -> list[str]:
    """The names of a data set's classes, numbers where the run noted none."""
    names = results.models[group.models[0]].class_names
    return names if len(names) == group.classes else [str(i) for i in range(group.classes)]


def _slowdown(results: Results) -> float:
    """How many times as long as in process computing takes in the service, of the variant where that is most."""
    taxes = [(row.p50_ms, results.details[str(row.variant)].tax) for row in results.rows if row.p50_ms]
    return max((tax.compute_ms / p50 for p50, tax in taxes if tax), default=1.0)


def _robust_rule(results: Results) -> str:
    if any(detail.robust_holm is not None for detail in results.details.values()):
        return "a paired test over the images gives p below 0.05 after Holm's correction over all variants"
    return (
        f"more than {intervals.SURE_ERRORS} standard errors of two independent samples (this run noted no paired ones)"
    )


def class_name(results: Results, line: Line) -> str:
    """The name of the class that lost most."""
    if line.worst_class is None:
        return ""
    names = results.models[line.row.variant.model].class_names
    return names[line.worst_class[0]] if line.worst_class[0] < len(names) else f"class {line.worst_class[0]}"


def method(results: Results) -> list[str]:
    """How what only schema 2 holds came about, a sentence or two a point."""
    s, details, said = results.settings, list(results.details.values()), []
    if any(detail.server_rate is not None for detail in details):
        said.append(
            f"Server (held/s): the highest rate of Poisson arrivals, found by bisection, whose p99 stays under "
            f"{s.server_p99_ms:g} ms, waiting included, in {_trials(results)}; what has arrived is taken together, up "
            "to the best batch. In process: HTTP comes on top."
        )
    said += over_http.method(results)
    if any(detail.tax for detail in details):
        said.append(
            f"Over HTTP, computing takes up to {words.about(_slowdown(results))} times as long as in process, most of "
            "all in small networks: there one inference follows the other, while between two requests caches and "
            "threads go cold, and the service does not let ONNX Runtime's threads spin until the next one."
        )
    if results.http_reason:
        said.append(f"The serving tax could not be measured: {results.http_reason}.")
    said += [f"No serving tax of {name}: {d.tax_reason}." for name, d in results.details.items() if d.tax_reason]
    said += _peak(results)
    if any(detail.robust_top1 for detail in details):
        said.append(
            f"Corrupted images: {_robust_images(results)} test images drawn by a seed, each in six ways at severities "
            "1, 3 and 5 of Hendrycks and Dietterich (2019). 'Less robust' stands where "
            f"{intervals.LESS_ROBUST:g} point or more is lost on all of them and {_robust_rule(results)}; "
            f"red is a loss as large on a single one beyond {intervals.SURE_ERRORS} standard errors, not corrected for "
            "their number. Calibration error: expected, 15 bins."
        )
    if any(detail.passes for detail in details):
        said.append(
            "A calibration kernel, 16 products of 64 x 64 float32 matrices on one core, was timed between the rounds"
            f"{' of either scenario' if s.turn_seconds else ' of SingleStream'}; runs are compared in its time "
            "(python -m benchmarks compare)."
        )
    if s.turn_seconds:
        said.append(
            f"The variants of a model ran side by side and computed in turns of {s.turn_seconds:g} s, so that all saw "
            f"the same machine; speed-up one by one is the median{_of_passes(results)} ratio of the turns that fp32 "
            f"ONNX and the variant took after each other, each turn's first {1e3 * SETTLE:.0f} ms left out"
            f"{_interval(results)}."
        )
    if fewer := sorted(name for name, detail in results.details.items() if 0 < len(detail.passes) < s.passes):
        said.append(f"Slow to load and therefore measured in fewer passes ({s.slow_passes}): {', '.join(fewer)}.")
    if reused := sum(detail.reused for detail in details):
        said.append(
            f"{reused} of {len(details)} variants' answers reused, of their export or an earlier run: the same file, "
            "images, runtime and processor."
        )
    return said


def _peak(results: Results) -> list[str]:
    """How the machine's peak was measured, and what became of a try that failed."""
    said = []
    if results.roofline is not None:
        how, s = results.roofline.how, results.settings
        kinds = ", ".join(f"{kind} by {how[kind]}" for kind in ("fp32", "int8") if kind in how)
        said.append(
            f"The peak was measured in the run with its threads ({kinds}; copies of several sizes"
            f"{'; the best of tries before and after every pass' if s.turn_seconds else ''}). A variant is bound "
            "by compute or memory where its arithmetic or its traffic (weights once a batch, activations written and "
            "read once) would take half of its time at that peak; else by overhead: calls, layout changes, operators "
            "that multiply nothing. Multiply-accumulates are those of the float graph."
        )
    if results.roofline_reason:
        said.append(f"A try at the peak failed and does not count: {results.roofline_reason}.")
    return said


def _of_passes(results: Results) -> str:
    """Older runs had a median of each pass, and one of these."""
    return "" if results.quiet else ", over the passes, of the median"


def _interval(results: Results) -> str:
    """Where the range of a speed-up comes from, if the run noted any."""
    if results.quiet:
        least, most = (end(one.taken for one in results.quiet) for end in (min, max))
        return (
            f"; of {least} to {most} turns the quietest quarter counts, in which neighbours on the same machine slowed "
            "both least, and the range spans the 95% intervals of that median by order statistics, of all passes "
            "together and of each"
        )
    passes = [one for detail in results.details.values() for one in detail.passes]
    turns = sorted(one.turns for one in passes if one.turns and one.speed_up_low)
    if not turns:
        return ""
    return (
        f"; its range spans, over the passes, the 95% intervals of those medians by order statistics of {turns[0]} to "
        f"{turns[-1]} turns"
    )


def _robust_images(results: Results) -> str:
    """300, or "300 (100 for resnet50)" where a network is so large that it got fewer."""
    counts = {name.partition("/")[0]: one.robust_images for name, one in results.details.items() if one.robust_top1}
    most = max(counts.values())
    fewer = [f"{count} for {model}" for model, count in sorted(counts.items()) if count < most]
    return f"{most} ({', '.join(fewer)})" if fewer else str(most)


def _trials(results: Results) -> str:
    """How many trials a rate had to hold in, and which of them the p99 is of; older runs believed the best."""
    if not results.settings.turn_seconds:
        return "the best of at most three trials, whose p99 is told"
    return (
        f"{RULE.held} of at most {RULE.tries} trials, of which the higher p99 is told (none where the rate is "
        "Offline's, which was not tried)"
    )
