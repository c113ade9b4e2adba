"""What compression was asked to reach, and whether the variants of one run do. Pure."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from benchmarks.judging.compare import Group, Line
from catalog import Variant

BATCH = 32  # at which throughputs are compared, or the largest below it that both were measured at
INT8_DROP, PRUNED_DROP, SMALL_DROP = 0.2, 0.5, 1.0  # points of top-1
PRUNED_SMALLER, SMALL_SMALLER = 3.0, 10.0  # times, after gzip
CHANNELS_FASTER = 1.5  # times, in batches
INT8_FASTER = {"lenet": 1.0, "simcnn": 1.2, "resnet50": 2.5}  # times, one by one, by the stem of the `cpu` recipe
CIFAR_STEM_FASTER = {"mobilenetv2": 1.8, "resnet50": 3.0}  # the same by the stem of the `reference` recipe


@dataclass(frozen=True)
class Reached:
    """One goal of one model: the variant that comes nearest, what it has, and whether that is enough."""

    version: str
    change: float  # points of top-1 against the float parent
    factor: float | None  # times as small or as fast; None where none was asked for
    enough: bool
    chance: bool = False  # it falls short by accuracy alone, and the change's 95% interval holds what was asked


@dataclass(frozen=True)
class Goal:
    """`what` in words; `of` gives what a model of a group has reached, None where nothing of it was measured."""

    what: str
    of: Callable[[Group, str], Reached | None]


def smaller(line: Line, lines: dict[tuple[str, str], Line]) -> float | None:
    """How many times as small after gzip as the float32 file with every weight, of a model's `lines`."""
    reference = _dense(lines)
    if reference is None or not reference.row.gzip_bytes or not line.row.gzip_bytes:
        return None
    return reference.row.gzip_bytes / line.row.gzip_bytes


def _dense(lines: dict[tuple[str, str], Line]) -> Line | None:
    """Of a network that was restored from int8 that is not the plain file, whose weights lie on a grid.

    gzip packs them to half: `quantize_aware` takes them off it and removes none. Of any other network the two differ
    by under 1%.
    """
    files = [lines.get((transform, "fp32")) for transform in ("", "quantize_aware")]
    return max(filter(None, files), key=lambda line: line.row.gzip_bytes or 0, default=None)


def faster_in_batches(line: Line, reference: Line | None) -> tuple[float, int] | None:
    """How many times the reference's images/s at the same batch, and which that is; medians over the passes."""
    if reference is None or line.detail is None or reference.detail is None:
        return None
    rates, others = (_rates(one) for one in (line, reference))
    shared = [size for size in rates.keys() & others.keys() if size <= BATCH]
    return (rates[max(shared)] / others[max(shared)], max(shared)) if shared else None


def _rates(line: Line) -> dict[int, float]:
    passes = line.detail.passes if line.detail else []
    sizes = set.intersection(*(set(one.images_per_s_at) for one in passes)) if passes else set()
    return {int(size): statistics.median(one.images_per_s_at[size] for one in passes) for size in sizes}


def of_model(group: Group, model: str) -> dict[tuple[str, str], Line]:
    """The measured ONNX variants of a model by transform and precision."""
    found = [line for line in group.lines if line.row.variant.model == model and line.change_points is not None]
    return {
        (one.row.variant.transform, one.row.variant.precision): one for one in found if one.row.variant.format == "onnx"
    }


def _after_training(group: Group, model: str) -> Reached | None:
    line = of_model(group, model).get(("", "int8"))
    return _judged([line], -INT8_DROP)


def _aware(group: Group, model: str) -> Reached | None:
    line = of_model(group, model).get(("quantize_aware", "int8"))
    return _judged([line], 0.0)


def _pruned(group: Group, model: str) -> Reached | None:
    lines = of_model(group, model)
    return _judged([lines.get(("prune80", "fp32"))], -PRUNED_DROP, lambda line: smaller(line, lines), PRUNED_SMALLER)


def _small(group: Group, model: str) -> Reached | None:
    lines = of_model(group, model)
    chains = [line for (transform, precision), line in lines.items() if precision == "int8" and "prune80" in transform]
    return _judged(chains, -SMALL_DROP, lambda line: smaller(line, lines), SMALL_SMALLER)


def _channels(group: Group, model: str) -> Reached | None:
    lines = of_model(group, model)
    plain = lines.get(("", "int8"))
    halved = [lines.get((transform, "int8")) for transform in ("channels50", "channels50-quantize_aware")]

    def factor(line: Line) -> float | None:
        found = faster_in_batches(line, plain)
        return found[0] if found else None

    return _judged(halved, -SMALL_DROP, factor, CHANNELS_FASTER)


def _one_by_one(group: Group, model: str) -> Reached | None:
    if model not in INT8_FASTER:
        return None  # nothing is asked of it
    line = of_model(group, model).get(("", "int8"))
    return _judged([line], None, lambda one: one.speed_up, INT8_FASTER[model])


def _judged(
    lines: Iterable[Line | None],
    least_change: float | None,
    factor: Callable[[Line], float | None] = lambda line: None,
    least_factor: float | None = None,
) -> Reached | None:
    """Of some variants the one that reaches both, or else comes nearest; None where none was measured."""
    found = [_reached(line, least_change, factor(line), least_factor) for line in lines if line is not None]
    asked = [one for one in found if least_factor is None or one.factor is not None]
    return max(
        asked, key=lambda one: (one.enough, _shortfall(one, least_change, least_factor), one.change), default=None
    )


def _reached(line: Line, least_change: float | None, factor: float | None, least_factor: float | None) -> Reached:
    change = line.change_points or 0.0
    fits = least_factor is None or (factor or 0.0) >= least_factor
    enough = fits and (least_change is None or change >= least_change - 1e-9)
    span = line.change_span
    chance = fits and not enough and span is not None and least_change is not None and span[1] >= least_change
    return Reached(line.row.variant.version, change, factor if least_factor is not None else None, enough, chance)


def _shortfall(one: Reached, least_change: float | None, least_factor: float | None) -> float:
    """How far the worse of the two figures falls short, as a share of what is asked; 0 where neither does."""
    of_factor = min(0.0, (one.factor or 0.0) / least_factor - 1) if least_factor else 0.0
    of_change = min(0.0, one.change - least_change) if least_change is not None else 0.0
    return min(of_factor, of_change)


GOALS = (
    Goal(f"int8 after training loses {INT8_DROP} points at most", _after_training),
    Goal("int8 trained as such (`quantize_aware`) loses nothing", _aware),
    Goal(f"`prune80` loses {PRUNED_DROP} points at most and is {PRUNED_SMALLER:g} times smaller after gzip", _pruned),
    Goal(
        f"`prune80` in int8 loses {SMALL_DROP:g} point at most and is {SMALL_SMALLER:g} times smaller after gzip",
        _small,
    ),
    Goal(
        f"`channels50` in int8 loses {SMALL_DROP:g} point at most and has {CHANNELS_FASTER:g} times the images/s of "
        "int8 as it was, in batches",
        _channels,
    ),
    Goal(
        "int8 is that much faster than float, one by one: "
        + ", ".join(f"{model} {factor:g} times" for model, factor in INT8_FASTER.items()),
        _one_by_one,
    ),
)


def version(variant: Variant) -> str:
    """A transform and precision as a table has them: `prune80 int8`, `fp32`."""
    return " ".join(filter(None, [variant.transform.replace("-", " + "), variant.precision]))
