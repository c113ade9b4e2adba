"""What the words of a report mean, a line each, and what each of its sections is for, in a sentence."""

from __future__ import annotations

from collections.abc import Iterable

from benchmarks.judging.compare import BUDGET_POINTS
from benchmarks.results import Results

PAGE = "docs/how-to/read-the-report.md"
BRIEF = (
    "float parent",
    "servable",
    "plain ONNX",
    "change",
    "p50",
    "images/s",
    "kB",
    "speed-up",
    "perhaps",
)  # of a published table


def terms(results: Results) -> dict[str, str]:
    """The words in the order in which a reader meets them; those of what this run did not measure are left out."""
    details, s = results.details.values(), results.settings
    found = {
        "float parent": "the network as it was trained, in float: keras-fp32, or onnx-fp32 where that was not measured",
        "servable": "in a format that the service loads: ONNX, LiteRT and, where it is installed, OpenVINO; "
        "never Keras and SavedModel",
        "plain ONNX": "onnx-fp32 of the same model, against which size and speed are held",
        "choice": f"the fastest servable variant that loses no more than {BUDGET_POINTS:g} points",
        "change": "points of top-1 against the float parent (from 90% to 89.8% is \N{MINUS SIGN}0.20 points), with the "
        "95% interval of the two on the same images, of this variant alone: where it holds 0, it may be chance",
        "p50": f"half of the images, one by one, took no longer; behind it {_passes(s.passes)}",
        "p90, p99": "90 and 99 of 100 images took no longer",
        "images/s": "throughput in batches of the best size",
        "held/s": f"images a second, arriving at random, that it holds with p99 under {s.server_p99_ms:g} ms",
        "ratio": "size of plain ONNX divided by this one's, above 1 where this one is smaller",
        "speed-up": f"how many times as fast as plain ONNX, one by one: {_speed_up(results)}",
        "kB": "1,000 bytes of the model file",
        "RSS": "the most memory that the process took, Python included",
        "perhaps": "the figures of the passes overlap or lie too near for so few; of accuracy, its interval reaches "
        f"below \N{MINUS SIGN}{BUDGET_POINTS:g} points, or the test over all variants says it may be chance",
        "Pareto": "no other variant on this data set is better in one of the two figures and no worse in the other",
        "tie": "its lead in accuracy over a variant that costs less is within their intervals",
    }
    if not any(detail.server_rate is not None for detail in details):
        del found["held/s"]
    return found


def _passes(passes: int) -> str:
    return (
        "the lowest and highest of five fifths of the run"
        if passes == 1
        else f"the lowest and highest of {passes} passes"
    )


def _speed_up(results: Results) -> str:
    """What the ratio is of in this run; older ones took no turns, or noted no interval of them."""
    if results.quiet:
        return (
            "the median ratio of the quietest turns taken side by side; behind it what its 95% intervals span, if that "
            "is more than 5% from it"
        )
    passes = [one for detail in results.details.values() for one in detail.passes]
    if not any(one.speed_up for one in passes):
        return "p50 of plain ONNX divided by this one's; behind it what the spans of both allow, if that is far from it"
    ends = (
        "what the 95% intervals over the turns of every pass span"
        if any(one.speed_up_low for one in passes)
        else "the lowest and highest pass"
    )
    return f"the median ratio of turns taken side by side; behind it {ends}, if that is more than 5% from it"


def compact(results: Results, names: Iterable[str]) -> str:
    """Some of the words in one paragraph of Markdown."""
    known = terms(results)
    return "; ".join(f"*{name}*: {known[name]}" for name in names) + "."


SECTIONS = {
    "plot": "A panel is a model, a point a variant: up is more accurate, left faster. Other figures are in the lists.",
    "all": "One line a variant, failed ones with their reason; a click on a heading sorts.",
    "roof": "How much of the machine's own peak a variant reaches, and what keeps it from more: int8 is held against "
    "the int8 peak, every other precision, fp16 and bf16 too, against the fp32 peak.",
    "tax": "What one image costs over HTTP, in medians of milliseconds, and where the time goes.",
    "answers": "What accuracy does not say: which images and classes changed, whether confidence can be believed, and "
    "what is left on corrupted images.",
    "batches": "What larger batches gain; the best is marked.",
    "method": "Where every figure comes from, with the numbers of this run.",
    "machine": "Figures hold for this machine; measure on the one that will serve.",
}
