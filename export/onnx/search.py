"""Looks for the int8 model that strays least from its float parent, on images held out of training.

`calibrate` tries every rule for ranges, with scales by channel, by tensor, and by tensor for dense layers alone, which
keeps what pruning and clustering made of them; where convolutions are clustered, also with the scales that keep these.
Weights are rounded by GPTQ, a layer together, but for clusters; the best is tried with each rounded by itself, too.
`give_back` starts from the best of these and, where it still loses more than the budget allows, leaves layers in
float: it ranks them by the damage each does when it alone is quantized, and gives the worst back until the loss is
within the budget. That loss is counted as the card will count it: on all validation images, against the network as
trained. Test images are never seen.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

import catalog
from catalog import KilnError
from export.formats import Conversion
from export.onnx import calibration, floats, gptq
from export.onnx.calibration import NEAREST, Choice, Judgement, Kept, Ranges
from export.onnx.int8 import Quantizer

MOST = 4096  # validation images at most, for the choice of a calibration
WORSE = 1.5  # times the least damage, that a pruned network may take for a file that compresses better
RANKED = 512  # of them, for the ranking of layers: it needs an order, not a figure
BATCH = 64


@dataclass
class Bench:
    """A model under trial: its quantizer, the images it is judged on and what the float model answers to them.

    `parent` is what the network as trained answers, whose accuracy a budget is counted from; without it, the float
    model's own answers stand for it.
    """

    quantizer: Quantizer
    images: NDArray[np.uint8]
    labels: NDArray[np.int64] | None
    threads: int
    parent: NDArray[np.float32] | None = None
    learned: Ranges = field(default_factory=dict)  # ranges that a quantization-aware model brings

    def __post_init__(self) -> None:
        self.reference = run(floats.finish(self.quantizer.core), self.images, self.threads)

    def parent_top1(self, count: int | None = None) -> float:
        """The accuracy of the network as trained on the first `count` images, in percent."""
        if self.labels is None:
            raise ValueError("there are no labels to judge an accuracy by")
        answers = self.reference if self.parent is None else self.parent
        return 100 * float(np.mean(answers[:count].argmax(1) == self.labels[:count]))

    def model(self, choice: Choice) -> Any:
        """What this choice makes, as it would be exported."""
        return self.quantizer.model(choice, self.learned)

    def judge(self, choice: Choice, count: int | None = None) -> Judgement:
        """How what this choice makes does on the first `count` images."""
        answers = run(self.model(choice), self.images[:count], self.threads)
        labels = None if self.labels is None else self.labels[:count]
        return calibration.judge(answers, self.reference[:count], labels)


@dataclass(frozen=True)
class Found:
    """What an int8 model is to be made with, in words for its card, and what was tried."""

    choice: Choice
    learned: Ranges
    settings: dict[str, Any]
    log: list[dict[str, Any]]


def chosen(request: Conversion, quantizer: Quantizer, give: bool = False) -> Found:
    """The best calibration, or the learned one; with `give`, layers are left in float as the budget asks.

    Raises:
        KilnError: As `give_back`.
    """
    learned, choice = learned_ranges(request, quantizer)
    log: list[dict[str, Any]] = []
    tried = None if learned and not give else bench(request, quantizer, learned)
    method = judged = "learned in training"
    if tried and not learned:
        choice, log = calibrate(request, tried)
        method = choice.method
        split = "validation split" if tried.labels is not None else "calibration images, none being held out"
        judged = f"searched on the {split}"
    if tried and give:
        choice = _affordable(request, tried, log, choice)
        choice, more = give_back(request, tried, choice)
        log, method = [*log, *more], method if learned else choice.method
    settings = {**choice.words(), "calibration": judged, "calibration_method": method}
    settings |= {"float_layers": list(choice.floats)} if give else {}
    return Found(choice, learned, settings, log)


def _affordable(request: Conversion, tried: Bench, log: list[dict[str, Any]], best: Choice) -> Choice:
    """The least harmful calibration that keeps the budget with all layers in integers; `best` where none does."""
    if tried.labels is None or request.allowed_drop is None:
        return best
    least = tried.parent_top1(MOST) - request.allowed_drop
    able = [step for step in log if step["validation_top1"] >= least]
    return _preferred(able, tried.quantizer) if able else best


def _preferred(log: list[dict[str, Any]], quantizer: Quantizer) -> Choice:
    """The choice that did least damage; in a compressed network, of those that keep what is in its kernels.

    Scales by channel make 16 clusters into 50 to 80 different bytes. Zeros they keep, but the other weights take more
    bits: the file grows by a seventh, which `WORSE` weighs against the damage.
    """

    def damage(choice: Choice) -> float:
        return tried[choice]

    plain = [dataclasses.replace(choice, rounding=NEAREST) for choice in quantizer.choices]
    words = {_words(choice.words()): choice for choice in (*quantizer.choices, *plain)}
    tried = {words[_words(step)]: float(step["damage"]) for step in log}
    best = min(tried, key=damage)
    keeping = min(filter(quantizer.keeps, tried), key=damage, default=best)
    if quantizer.clustered:
        return keeping
    if quantizer.pruned:  # the smallest file first
        by_tensor = min((choice for choice in tried if not choice.per_channel), key=damage, default=best)
        return next(choice for choice in (by_tensor, keeping, best) if damage(choice) <= WORSE * damage(best))
    return best


def _words(step: dict[str, Any]) -> tuple[Any, ...]:
    """What in a step of a log tells one choice from another."""
    names = ("calibration", "per_channel", "dense_by_tensor", "clusters_kept", "rounding")
    return tuple(step.get(name, False) for name in names)


def learned_ranges(request: Conversion, quantizer: Quantizer) -> tuple[Ranges, Choice]:
    """By tensor name, the ranges that quantization-aware training left beside the Keras model, and its weights' scales.

    Without such a training there are no ranges, and scales are by channel.
    """
    path = request.keras_path.parent / "ranges.json"
    if not path.is_file():
        return {}, Choice()
    from export.onnx import learned

    told = learned.read(path)
    found = learned.by_tensor(quantizer.prepared, quantizer.pixels, request.keras_path, told)
    return found, Choice(dense_by_tensor=told.dense_by_tensor, clusters=bool(quantizer.clusters))


def bench(request: Conversion, quantizer: Quantizer, learned: Ranges) -> Bench:
    """The bench of a conversion; without validation images it is judged on those that calibrate."""
    if request.validation is None or len(request.validation) == 0:
        return Bench(quantizer, np.asarray(request.calibration), None, request.threads, learned=learned)
    labels = None if request.validation_labels is None else np.asarray(request.validation_labels)
    parent = None if request.validation_parent is None else np.asarray(request.validation_parent)
    return Bench(quantizer, np.asarray(request.validation), labels, request.threads, parent, learned)


def calibrate(request: Conversion, tried: Bench) -> tuple[Choice, list[dict[str, Any]]]:
    """The preferred calibration, and what was tried; each is judged once for a model and its images."""
    kept = Kept(request.cache, {"search": "calibration", **_key(request, tried)})

    def step(choice: Choice) -> dict[str, Any]:
        told = Judgement.kept(kept, str(choice), functools.partial(tried.judge, choice, MOST))
        return {**choice.words(), **told.words()}

    log = [step(choice) for choice in tried.quantizer.choices]
    best = _preferred(log, tried.quantizer)
    if best.rounding != NEAREST:
        log.append(step(dataclasses.replace(best, rounding=NEAREST)))
    return _preferred(log, tried.quantizer), log


def give_back(request: Conversion, tried: Bench, start: Choice) -> tuple[Choice, list[dict[str, Any]]]:
    """The choice with few float layers that keeps the request's budget, and what was tried.

    The number of layers is doubled until the budget holds, then halved in between: one layer less than what is chosen
    was tried, and was over the budget. What was judged is kept as it comes, for whatever budget is asked for next.

    Raises:
        KilnError: There are no labelled validation images, or no budget.
    """
    if tried.labels is None or request.allowed_drop is None:
        raise KilnError("layers are given back against a budget on validation images; train with validation > 0")
    budget, before = request.allowed_drop, tried.parent_top1()
    kept = Kept(request.cache, {"search": "give back", "start": calibration.as_json(start), **_key(request, tried)})
    ranking: list[tuple[str, float]] = []
    seen: dict[int, Judgement] = {}

    def with_floats(count: int) -> Choice:
        return dataclasses.replace(start, floats=tuple(name for name, _ in ranking[:count]))

    def holds(count: int) -> bool:
        choice = with_floats(count)
        seen[count] = Judgement.kept(kept, f"{count} layers float", functools.partial(tried.judge, choice))
        return _drop(seen[count], before) <= budget

    if holds(0):
        return start, [_step(start, seen[0], before)]
    first = _step(start, seen[0], before)
    ranking = rank(tried, start, kept)
    count = _fewest(len(ranking), holds)
    order = [*(other for other in seen if other not in (0, count)), count]
    log = [first, *({"layer": name, "damage_alone": round(damage, 8)} for name, damage in ranking)]
    return with_floats(count), [*log, *(_step(with_floats(n), seen[n], before) for n in order)]


def _fewest(most: int, holds: Callable[[int], bool]) -> int:
    """A count of 1 to `most` that holds where one less does not, `most` if none is found; 0 is known not to hold."""
    short, enough = 0, 1
    while not holds(enough):
        if enough == most:
            return most
        short, enough = enough, min(2 * enough, most)
    while enough - short > 1:
        middle = (short + enough) // 2
        short, enough = (short, middle) if holds(middle) else (middle, enough)
    return enough


def rank(tried: Bench, start: Choice, kept: Kept) -> list[tuple[str, float]]:
    """Layers and the damage each does when it alone is quantized, the worst first."""
    layers = tried.quantizer.layers

    def damage(layer: str) -> float:
        alone = dataclasses.replace(start, floats=tuple(name for name in layers if name != layer))
        return tried.judge(alone, RANKED).damage

    damages = {layer: float(kept(f"{layer} alone", functools.partial(damage, layer))) for layer in layers}
    return sorted(damages.items(), key=lambda pair: -pair[1])


def _drop(judgement: Judgement, parent_top1: float) -> float:
    assert judgement.top1 is not None
    return parent_top1 - judgement.top1


def _step(choice: Choice, judgement: Judgement, parent_top1: float) -> dict[str, Any]:
    return {
        "float_layers": list(choice.floats),
        **choice.words(),
        **judgement.words(),
        "validation_drop": round(_drop(judgement, parent_top1), 4),
    }


def _key(request: Conversion, tried: Bench) -> dict[str, Any]:
    clusters = {"clusters": sorted(tried.quantizer.clusters)} if tried.quantizer.clusters else {}
    return clusters | {
        "model": catalog.sha256_of(request.keras_path),
        "calibration": calibration.digest_of(request.calibration),
        "validation": calibration.digest_of(tried.images),
        "learned": sorted(tried.learned.items()),
        "scales in an octave": gptq.OCTAVE,
        "onnxruntime": catalog.versions("onnxruntime", "onnxruntime-gpu"),
    }


def run(model: Any, images: NDArray[np.uint8], threads: int) -> NDArray[np.float32]:
    """Probabilities `[N, classes]` of an ONNX model that is not on disk yet."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level, options.intra_op_num_threads = 3, threads
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    parts = [session.run(None, {name: images[at : at + BATCH]})[0] for at in range(0, len(images), BATCH)]
    return np.concatenate(parts)
