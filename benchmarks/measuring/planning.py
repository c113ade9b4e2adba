"""How long a run will take, and what to spend on each variant so that it does not take too long."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from benchmarks.measuring.candidates import Candidate, packages
from benchmarks.measuring.corrupt import CORRUPTIONS, SEVERITIES
from benchmarks.measuring.splits import robust_images
from benchmarks.measuring.turns import SETTLE
from benchmarks.results import Settings
from catalog import Store
from export import answers

LIMIT_S = 600.0  # of a whole run
# Seconds, as they were on two cores: a run over 44 variants that took 525 s in process and 104 s over HTTP was to take
# 542 and 102.
START_S = 1.7  # of a process: Python, the runtime, the model, the warm-up
SLOW_START_S = 10.0  # more for TensorFlow
BATCHES_TRIED = 8
TRIALS = 8  # of Server in process that last: those of a rate that is not held end early
HTTP_START_S = 10.0  # of the service
HTTP_REQUEST_S = 0.003
HTTP_TRIALS = 8
ANSWERS_S = 2.0  # for a variant's answers, at least
MACS_PER_S = 4e10  # of them, in float
INT8_GAIN = 3.0
LEAST: dict[str, float] = {  # for each variant, however many there are
    "single_seconds": 0.8,  # of a pass
    "single_rounds": 120,
    "offline_seconds": 0.05,  # of a pass
    "server_seconds": 0.15,
    "http_requests": 150,
    "http_seconds": 0.1,
    "robust_macs": 1e11,
    "peak_seconds": 0.4,
}
LEAST_TURNS = 12  # of SingleStream in a pass, whose ratios' median then has an interval worth telling


@dataclass(frozen=True)
class Load:
    """What is to be measured: so many variants, `slow` of which load TensorFlow or Keras.

    `answers_s` are the seconds that all of them take to answer the test splits, as far as nobody has asked them yet.
    """

    variants: int
    slow: int = 0
    answers_s: float = 0.0
    robust: tuple[tuple[int, float], ...] = ()  # of each variant: multiply-accumulates, and how many a second it does


def load(store: Store, found: list[Candidate], threads: int, fresh: bool = False) -> Load:
    """What measuring the candidates of a store comes to; with `fresh`, kept answers count for nothing."""
    ready = [candidate for candidate in found if not candidate.reason]
    slow = sum(packages(candidate.variant.format)[:1] in (("keras",), ("tensorflow",)) for candidate in ready)
    asking, robust = 0.0, []
    for candidate in ready:
        card, macs = candidate.card, store.card(candidate.variant.model).macs
        if card is None:
            continue
        macs_per_s = MACS_PER_S * (INT8_GAIN if card.variant.precision == "int8" else 1.0)
        robust.append((macs, macs_per_s))
        if fresh or answers.kept(store, card, packages(card.variant.format), threads) is None:
            asking += max(ANSWERS_S, card.dataset.test_images * macs / macs_per_s)
    return Load(len(ready), slow, asking, tuple(robust))


def _robust_s(settings: Settings, load: Load) -> float:
    """Of the answers on corrupted images."""
    of_one = len(CORRUPTIONS) * len(SEVERITIES)
    return sum(robust_images(settings, macs) * of_one * macs / macs_per_s for macs, macs_per_s in load.robust)


def seconds(settings: Settings, load: Load) -> float:
    """About how long a run takes."""
    turns = 1 + SETTLE / settings.turn_seconds if settings.turn_seconds else 1.0  # a turn's start is not timed
    each = START_S + turns * (settings.single_seconds + BATCHES_TRIED * settings.offline_seconds)
    server = TRIALS * settings.server_seconds * load.variants
    http = _http_s(settings) * (load.variants - load.slow) + HTTP_START_S if settings.http_requests else 0.0
    peak = (settings.passes + 1) * (1 + 5 * settings.peak_seconds) if settings.peak_seconds else 0
    slow_passes = min(settings.passes, settings.slow_passes)
    measuring = (load.variants - load.slow) * settings.passes * each + load.slow * slow_passes * (each + SLOW_START_S)
    return measuring + load.answers_s + _robust_s(settings, load) + server + http + peak


def _http_s(settings: Settings) -> float:
    """What a variant that is served takes over HTTP."""
    rounds = settings.http_requests * HTTP_REQUEST_S + settings.http_rounds * settings.http_seconds
    return rounds + (HTTP_TRIALS * settings.server_seconds if settings.http_seconds else 0.0)


def fitting(settings: Settings, load: Load, limit_s: float = LIMIT_S) -> Settings:
    """The same with less time for each, and then fewer passes, where a run would take longer than `limit_s` in all.

    There are two passes at least, since one tells nothing of noise, and the least time for each; last, what loads
    TensorFlow, which is a third of such a run, has one. A run over very many variants takes longer all the same.
    """
    found, least = settings, min(2, settings.passes)
    for passes in range(settings.passes, least - 1, -1):
        for percent in range(100, 0, -5):
            found = dataclasses.replace(_shortened(settings, percent / 100), passes=passes)
            if seconds(found, load) <= limit_s:
                return found
    return dataclasses.replace(found, slow_passes=1)


def _shortened(settings: Settings, share: float) -> Settings:
    """So large a share of everything, but no less than the least; what was less, or left out, stays as it is."""
    told: dict[str, Any] = {}
    turns_s = LEAST_TURNS * settings.turn_seconds
    for name, least in {**LEAST, "single_seconds": max(LEAST["single_seconds"], turns_s)}.items():
        asked = getattr(settings, name)
        wanted = min(asked, max(least, share * asked))
        told[name] = round(wanted) if isinstance(asked, int) else float(f"{wanted:.3g}")
    return dataclasses.replace(settings, **told)
