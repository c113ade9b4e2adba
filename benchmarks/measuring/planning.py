"""How long a run will take, and what to spend on each variant so that it does not take too long."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from benchmarks.measuring.candidates import Candidate, packages
from benchmarks.measuring.corrupt import CORRUPTIONS, SEVERITIES
from benchmarks.measuring.splits import robust_images
from benchmarks.measuring.turns import SETTLE
from benchmarks.results import Settings
from catalog import Store
from export import answers

LIMIT_S = 600.0  # of a whole run
# Seconds, as they were on two cores of 2.5 GHz; with them a run over 33 variants that took 750 s would take 765.
START_S = 1.7  # of a process: Python, the runtime, the model, the warm-up
SLOW_START_S = 10.0  # more for TensorFlow
BATCHES_TRIED = 8
TRIALS = 12  # of Server
ANSWERS_S = 2.0  # for a variant's answers, at least
MACS_PER_S = 4e10  # of them, in float
INT8_GAIN = 3.0
LEAST_SINGLE_S, LEAST_OFFLINE_S = 1.0, 0.05  # of a pass, however many variants there are …
LEAST_TURNS = 12  # … but of SingleStream no fewer, whose ratios' median then has an interval worth telling


@dataclass(frozen=True)
class Load:
    """What is to be measured: so many variants, `slow` of which load TensorFlow or Keras.

    `answers_s` are the seconds that all of them take to answer the test splits, as far as nobody has asked them yet.
    """

    variants: int
    slow: int = 0
    answers_s: float = 0.0


def load(store: Store, found: list[Candidate], settings: Settings, threads: int, fresh: bool = False) -> Load:
    """What measuring the candidates of a store comes to; with `fresh`, kept answers count for nothing."""
    ready = [candidate for candidate in found if not candidate.reason]
    slow = sum(packages(candidate.variant.format)[:1] in (("keras",), ("tensorflow",)) for candidate in ready)
    asking = sum(_answers_s(store, candidate, settings, threads, fresh) for candidate in ready)
    return Load(len(ready), slow, asking)


def _answers_s(store: Store, candidate: Candidate, settings: Settings, threads: int, fresh: bool) -> float:
    card, macs = candidate.card, store.card(candidate.variant.model).macs
    if card is None:
        return 0.0
    images = robust_images(settings.robust_images, macs) * len(CORRUPTIONS) * len(SEVERITIES)
    if fresh or answers.kept(store, card, packages(card.variant.format), threads) is None:
        images += card.dataset.test_images
    gain = INT8_GAIN if card.variant.precision == "int8" else 1.0
    return max(ANSWERS_S, images * macs / MACS_PER_S / gain)


def seconds(settings: Settings, load: Load) -> float:
    """About how long a run takes."""
    turns = 1 + SETTLE / settings.turn_seconds if settings.turn_seconds else 1.0  # a turn's start is not timed
    each = START_S + turns * (settings.single_seconds + BATCHES_TRIED * settings.offline_seconds)
    server = TRIALS * max(settings.server_seconds, 0.4) * load.variants if settings.server_seconds else 0
    http = 20 + 0.005 * settings.http_requests * load.variants if settings.http_requests else 0
    peak = (settings.passes + 1) * (1 + 5 * settings.peak_seconds) if settings.peak_seconds else 0
    slow_passes = min(settings.passes, settings.slow_passes)
    measuring = (load.variants - load.slow) * settings.passes * each + load.slow * slow_passes * (each + SLOW_START_S)
    return measuring + load.answers_s + server + http + peak


def fitting(settings: Settings, load: Load, limit_s: float = LIMIT_S) -> Settings:
    """The same with less time a pass, and then fewer passes, where a run would take longer than `limit_s` in all.

    There are two passes at least, since one tells nothing of noise, and the least time for each; last, what loads
    TensorFlow, which is a third of such a run, has one. A run over very many variants takes longer all the same.
    """
    found, least = settings, min(2, settings.passes)
    least_single_s = max(LEAST_SINGLE_S, LEAST_TURNS * settings.turn_seconds)
    for passes in range(settings.passes, least - 1, -1):
        for percent in range(100, 0, -5):
            found = dataclasses.replace(
                settings,
                passes=passes,
                single_seconds=round(max(least_single_s, settings.single_seconds * percent / 100), 2),
                offline_seconds=round(max(LEAST_OFFLINE_S, settings.offline_seconds * percent / 100), 3),
            )
            if seconds(found, load) <= limit_s:
                return found
    return dataclasses.replace(found, slow_passes=1)
