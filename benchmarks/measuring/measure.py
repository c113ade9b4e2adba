"""Measures every variant of a store, one process a variant and pass, and makes rows of what the processes leave.

A variant that failed to convert, is older than its model, is corrupt, crashes or takes too long keeps its row with the
reason; one bad variant costs the others nothing.
"""

from __future__ import annotations

import dataclasses
import itertools
import os
import random
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from benchmarks import machine
from benchmarks.judging import pairs
from benchmarks.measuring import predictions, process, roofline, work
from benchmarks.measuring.candidates import Candidate, packages
from benchmarks.measuring.job import ANSWERED, Job, Part
from benchmarks.measuring.predictions import Predictions
from benchmarks.measuring.splits import Splits
from benchmarks.results import SCHEMA, SLOW_LOAD_MS, Detail, ModelFacts, Results, Roofline, Settings
from catalog import Card, KilnError, Measurement, Store, Variant, VariantCard, commit, now
from export import answers

MOST_TOGETHER = 12  # processes side by side …
EACH_BYTES = 3 << 28  # … of the memory that one may need: Keras with its data takes about this
Loader = Callable[..., Any]
Begun = Callable[[str], None]
Done = Callable[[str, str], None]


@dataclass
class _Try:
    """A candidate on its way through the passes."""

    candidate: Candidate
    reason: str = ""  # why it cannot be measured
    runs: list[process.Ran] = field(default_factory=list)
    told: Predictions | None = None
    reused: bool = False

    def sits_out(self, turn: int, settings: Settings) -> bool:
        """Whether it takes so long to load that the passes before this one have to do."""
        slow = bool(self.runs) and self.runs[0].outcome.load_ms > SLOW_LOAD_MS
        return slow and turn >= settings.slow_passes


def _ignore(*_: str) -> None:
    """Told and not interested."""


@dataclass
class Run:
    """One run over a store. `load` reads a data set by name, as `training.data.load` does.

    `kept` is the folder where answers on the test split outlast the run; without it none are kept nor taken.
    """

    store: Store
    threads: int
    settings: Settings
    seed: int
    load: Loader
    quick: bool = False
    kept: Path | None = None
    benches: list[dict[str, Any]] = field(default_factory=list)  # filled by `measure`, as pytest-benchmark has them
    peak_reason: str = ""  # why the last try at the peak that failed did

    def measure(self, todo: list[Candidate], begun: Begun = _ignore, done: Done = _ignore) -> Results:
        """Measures candidates of the store in every pass's random order, those of a model side by side and in turns.

        `begun` is told the name of a model whose variants start to take turns, `done` when one has ended with its name
        and, where it cannot be measured, the reason.
        """
        created, start, watch = now(), time.perf_counter(), machine.Watch()
        orders = self._orders(todo)
        environment = process.thread_environment(self.threads)
        with tempfile.TemporaryDirectory(prefix="modelkiln-benchmark-") as scratch:
            splits = Splits(Path(scratch), self.load, self.settings)
            peak = self._peak(environment, Path(scratch))
            tries = {c.name: _Try(c) for c in todo}
            for turn, order in enumerate(orders):
                for number, heat in enumerate(_heats([tries[name] for name in order], turn, self.settings)):
                    begun(heat[0].candidate.variant.model)
                    for trying in self._heat(heat, turn, order, splits, Path(scratch) / f"heat{turn}-{number}"):
                        done(trying.candidate.name, trying.reason)
                for trying in tries.values():
                    if trying.sits_out(turn, self.settings):
                        done(trying.candidate.name, "")
                peak = self._peak(environment, Path(scratch), peak)
            rows, details = self._rows(tries, splits)
        others, stolen = watch.percents()
        used = {p for c in todo if c.card for p in packages(c.variant.format)}
        return Results(
            schema=SCHEMA,
            created=created,
            commit=commit(),
            quick=self.quick,
            threads=self.threads,
            environment=environment,
            seed=self.seed,
            order=orders[0],
            settings=self.settings,
            seconds=round(time.perf_counter() - start, 1),
            load_before=watch.load,
            load_after=machine.load(),
            machine=machine.read(tuple(sorted(used))),
            models={model: _facts(self.store.card(model)) for model in dict.fromkeys(c.variant.model for c in todo)},
            rows=rows,
            details=details,
            roofline=peak,
            roofline_reason=self.peak_reason,
            steal_percent=stolen,
            others_percent=others,
            orders=orders,
        )

    def _peak(self, environment: dict[str, str], scratch: Path, so_far: Roofline | None = None) -> Roofline | None:
        """The machine's peak, tried once more: another minute may be a better one; no run is lost if it fails."""
        seconds = self.settings.peak_seconds
        if not seconds:
            return None
        try:
            found = roofline.measured(self.threads, {**os.environ, **environment}, scratch, seconds)
        except KilnError as error:
            self.peak_reason = self._tidy(str(error))
            return so_far
        return found if so_far is None else roofline.better(so_far, found)

    def _orders(self, todo: list[Candidate]) -> list[list[str]]:
        """Every pass's order: models in a random one, the variants of each, which take turns, in another."""
        rng, models = random.Random(self.seed), list(dict.fromkeys(c.variant.model for c in todo))
        names = {model: [c.name for c in todo if c.variant.model == model] for model in models}
        shuffled = (rng.sample(models, len(models)) for _ in range(self.settings.passes))
        return [[name for model in one for name in rng.sample(names[model], len(names[model]))] for one in shuffled]

    def _heat(self, heat: list[_Try], turn: int, order: list[str], splits: Splits, folder: Path) -> Iterator[_Try]:
        """Measures variants that take turns; what was found, or why one failed, goes into each, told as it ends.

        The reference of a model with many variants runs in every heat, and counts as measured in the pass's first.
        """
        ready = list[tuple[_Try, Job]]()
        for trying in heat:
            if (asked := self._job(trying, turn, splits, folder)) is None:
                yield trying
            else:
                ready.append((trying, asked))
        ran: dict[int, process.Ran] = {}
        for place, raw, seconds in process.together([job for _, job in ready]):
            trying, job = ready[place]
            name = trying.candidate.name
            if isinstance(raw, KilnError):
                trying.reason = self._tidy(str(raw))
            else:
                ran[place] = process.read(raw, order.index(name), round(seconds, 2))
                if "Offline" in job.parts:
                    self.benches += process.in_plug_ins_words(name, turn, raw)
                self._keep(trying, job, splits)
            yield trying
        reference = next((ran[place] for place in sorted(ran) if _is_reference(ready[place][0])), None)
        for place, (trying, job) in enumerate(ready):
            if place in ran and "Offline" in job.parts:
                trying.runs.append(process.against(ran[place], reference) if reference else ran[place])

    def _job(self, trying: _Try, turn: int, splits: Splits, folder: Path) -> Job | None:
        """What a process of the variant is to do in this pass; None where it cannot be measured, which it then says."""
        candidate, card = trying.candidate, trying.candidate.card
        if trying.reason:
            return None
        try:
            if candidate.reason or card is None:
                raise KilnError(candidate.reason)
            data = splits.folder(self.store.card(card.variant.model))
        except KilnError as error:
            trying.reason = self._tidy(str(error))
            return None
        parts: list[Part] = ["SingleStream"]
        if len(trying.runs) <= turn:
            parts.append("Offline")
            parts += self._first_parts(trying, card, splits) if turn == 0 else []
        out = folder / candidate.variant.version
        out.mkdir(parents=True)
        model_file = (self.store.variant_dir(card.variant) / card.file).resolve()
        settings = self.settings
        if trying.runs:  # an earlier pass found the best batch; beyond the double of it none is worth trying
            most = 2 * max(run.best_batch for run in trying.runs)
            fewer = [batch for batch in settings.more_batches if batch <= most]
            settings = dataclasses.replace(settings, more_batches=fewer)
        return Job(card.variant.format, str(model_file), self.threads, str(data), str(out), settings, parts)

    def _keep(self, trying: _Try, job: Job, splits: Splits) -> None:
        """Takes what a process answered, if it was asked, and keeps it for later runs."""
        card, known = trying.candidate.card, trying.told
        if card is None or not ANSWERED.intersection(job.parts):
            return
        trying.told = predictions.load(job.predictions)
        if trying.told is not None and known is not None:
            trying.told = dataclasses.replace(known, corrupted=trying.told.corrupted)
        if trying.told is not None and (kept := self._kept(card, splits)) is not None:
            trying.told.save(kept)

    def _first_parts(self, trying: _Try, card: VariantCard, splits: Splits) -> list[Part]:
        """What only the first pass does; answers that were kept are taken instead of asked for again."""
        parts: list[Part] = ["Server"] if self.settings.server_seconds else []
        robust: list[Part] = ["robustness"] if self.settings.robust_images else []
        if (kept := self._kept(card, splits)) is None:
            return [*parts, "accuracy", *robust]
        if (told := predictions.load(kept)) is not None:
            trying.told, trying.reused = told, True
            return parts
        if (known := answers.kept(self.store, card, packages(card.variant.format), self.threads)) is not None:
            trying.told, trying.reused = Predictions.uncorrupted(known), True
            return [*parts, *robust]
        return [*parts, "accuracy", *robust]

    def _kept(self, card: VariantCard, splits: Splits) -> Path | None:
        if self.kept is None:
            return None
        images = len(splits.subset(card.variant.model))
        return self.kept / predictions.key(card, packages(card.variant.format), self.threads, images)

    def _rows(self, tries: dict[str, _Try], splits: Splits) -> tuple[list[Measurement], dict[str, Detail]]:
        rows, details, told = [], dict[str, Detail](), dict[str, Predictions]()
        for name, trying in tries.items():
            row, card = _unmeasured(trying.candidate, self.threads), trying.candidate.card
            if trying.reason or card is None or trying.told is None or not trying.runs:
                why = trying.reason or "its answers could not be read"
                rows.append(Measurement(row.variant, "failed", why, row.parent_sha256, threads=self.threads))
                continue
            row, detail = process.merged(row, trying.runs)
            model = card.variant.model
            labels, parent = splits.labels(model), self.store.card(model)
            detail = pairs.described(detail, trying.told, labels, len(parent.dataset.classes), splits.subset(model))
            counted = work.of(self.store, card, parent.macs, parent.parameters)
            details[name] = dataclasses.replace(detail, command=card.command, reused=trying.reused, work=counted)
            told[name] = trying.told
            rows.append(dataclasses.replace(row, accuracy=pairs.accuracy(trying.told, labels)))
        return rows, pairs.paired(
            details, [t.candidate.variant for t in tries.values()], told, splits.labels, splits.subset
        )

    def _tidy(self, reason: str) -> str:
        """One line, without the folders of this machine: reports travel."""
        for root in (str(self.store.root.resolve()), str(self.store.root)):
            reason = reason.replace(f"{root}/", "").replace(root, "the store")
        line = " ".join(reason.split())
        return line if len(line) <= 300 else line[:299] + "…"


def _heats(order: list[_Try], turn: int, settings: Settings) -> Iterator[list[_Try]]:
    """Who takes turns with whom: the variants of a model, as many as memory has room for, fp32 ONNX in every heat."""
    free = psutil.virtual_memory().available
    most = min(MOST_TOGETHER, max(2, free // EACH_BYTES)) if settings.turn_seconds else 1
    for _, of_model in itertools.groupby(order, lambda trying: trying.candidate.variant.model):
        racing = [t for t in of_model if not t.sits_out(turn, settings)]
        others = [t for t in racing if not _is_reference(t) or most == 1]
        shared = [t for t in racing if t not in others]
        size = most - len(shared)
        for heat in [others[i : i + size] for i in range(0, len(others), size)] or [[]]:
            if together := [t for t in racing if t in shared or t in heat]:
                yield together


def _is_reference(trying: _Try) -> bool:
    return trying.candidate.variant == Variant(trying.candidate.variant.model, "onnx")


def _unmeasured(candidate: Candidate, threads: int) -> Measurement:
    card = candidate.card
    if card is None:
        return Measurement(candidate.variant, "failed", candidate.reason, threads=threads)
    return Measurement(
        variant=candidate.variant,
        status=card.status,
        reason=card.reason,
        parent_sha256=card.parent_sha256,
        size_bytes=card.size_bytes,
        gzip_bytes=card.gzip_bytes,
        threads=threads,
    )


def _facts(card: Card) -> ModelFacts:
    data = card.dataset
    return ModelFacts(
        architecture=card.architecture,
        recipe=card.recipe_name,
        dataset=data.name,
        dataset_sha256=data.sha256,
        classes=len(data.classes),
        test_images=data.test_images,
        parameters=card.parameters,
        macs=card.macs,
        card_top1=card.accuracy.top1,
        class_names=data.classes,
        stem=str(card.recipe.get("stem", "")),
        notes=card.notes,
    )
