"""Measures every variant of a store, one process a variant and pass, and turns what the processes leave into rows.

A variant that failed to convert, is older than its model, is corrupt, crashes or takes too long keeps its row with the
reason; one bad variant costs the others nothing.
"""

from __future__ import annotations

import dataclasses
import os
import random
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks import machine
from benchmarks.judging import pairs
from benchmarks.measuring import predictions, process, roofline, work
from benchmarks.measuring.candidates import Candidate, candidates
from benchmarks.measuring.job import Job, Part
from benchmarks.measuring.predictions import Predictions
from benchmarks.measuring.splits import Splits
from benchmarks.results import SCHEMA, Detail, ModelFacts, Results, Roofline, Settings
from catalog import Card, KilnError, Measurement, Store, VariantCard, commit, now, plugin

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

    def measure(self, models: list[str], begun: Begun = _ignore, done: Done = _ignore) -> Results:
        """Measures all variants in every pass's random order.

        `begun` is told the name of a variant whose process starts, `done` when that has ended with its name and,
        where it cannot be measured, the reason.
        """
        created, start, load_before, ticks = now(), time.perf_counter(), machine.load(), machine.ticks()
        own_s = machine.own_s()
        todo = candidates(self.store, models)
        rng = random.Random(self.seed)
        orders = [rng.sample([c.name for c in todo], len(todo)) for _ in range(self.settings.passes)]
        environment = process.thread_environment(self.threads)
        with tempfile.TemporaryDirectory(prefix="modelkiln-benchmark-") as scratch:
            splits = Splits(Path(scratch), self.load, self.settings.robust_images)
            peak = self._peak(environment, Path(scratch))
            tries = {c.name: _Try(c) for c in todo}
            for turn, order in enumerate(orders):
                for position, name in enumerate(order):
                    begun(name)
                    self._process(tries[name], turn, position, splits, Path(scratch) / f"job{turn}-{position}")
                    done(name, tries[name].reason)
            rows, details = self._rows(tries, splits)
        ticks_after, own_s = machine.ticks(), machine.own_s() - own_s
        packages = {p for c in todo if c.card for p in _packages(c.variant.format)}
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
            load_before=load_before,
            load_after=machine.load(),
            machine=machine.read(tuple(sorted(packages))),
            models={model: _facts(self.store.card(model)) for model in dict.fromkeys(c.variant.model for c in todo)},
            rows=rows,
            details=details,
            roofline=peak,
            steal_percent=machine.stolen_percent(ticks, ticks_after),
            others_percent=machine.others_percent(ticks, ticks_after, own_s),
            orders=orders,
        )

    def _peak(self, environment: dict[str, str], scratch: Path) -> Roofline | None:
        seconds = self.settings.peak_seconds
        return roofline.measured(self.threads, {**os.environ, **environment}, scratch, seconds) if seconds else None

    def _process(self, trying: _Try, turn: int, position: int, splits: Splits, folder: Path) -> None:
        """One process of one variant; what it found, or why it failed, goes into `trying`."""
        candidate, card, start = trying.candidate, trying.candidate.card, time.perf_counter()
        if trying.reason:
            return
        try:
            if candidate.reason or card is None:
                raise KilnError(candidate.reason)
            data = splits.folder(self.store.card(card.variant.model))
            parts: list[Part] = ["SingleStream", "Offline"]
            if turn == 0:
                parts += self._first_parts(trying, card)
            folder.mkdir()
            model_file = (self.store.variant_dir(card.variant) / card.file).resolve()
            job = Job(card.variant.format, str(model_file), self.threads, str(data), str(folder), self.settings, parts)
            raw = process.run(job)
        except KilnError as error:
            trying.reason = self._tidy(str(error))
            return
        self.benches += process.in_plug_ins_words(candidate.name, turn, raw)
        trying.runs.append(process.read(raw, position, round(time.perf_counter() - start, 2)))
        if "accuracy" in parts:
            trying.told = predictions.load(job.predictions)
            if trying.told is not None and (kept := self._kept(card)) is not None:
                trying.told.save(kept)

    def _first_parts(self, trying: _Try, card: VariantCard) -> list[Part]:
        """What only the first pass does; answers that were kept are taken instead of asked for again."""
        parts: list[Part] = ["Server"] if self.settings.server_seconds else []
        kept = self._kept(card)
        if kept is not None and (told := predictions.load(kept)) is not None:
            trying.told, trying.reused = told, True
            return parts
        return [*parts, "accuracy", *(["robustness"] if self.settings.robust_images else [])]  # type: ignore[list-item]

    def _kept(self, card: VariantCard) -> Path | None:
        if self.kept is None:
            return None
        package = next(iter(_packages(card.variant.format)), "")
        return self.kept / predictions.key(card, package, self.threads, self.settings.robust_images)

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
            details[name] = dataclasses.replace(detail, reused=trying.reused, work=counted)
            told[name] = trying.told
            rows.append(dataclasses.replace(row, accuracy=pairs.accuracy(trying.told, labels)))
        return rows, pairs.paired(details, [t.candidate.variant for t in tries.values()], told, splits.labels)

    def _tidy(self, reason: str) -> str:
        """One line, without the folders of this machine: reports travel."""
        for root in (str(self.store.root.resolve()), str(self.store.root)):
            reason = reason.replace(f"{root}/", "").replace(root, "the store")
        line = " ".join(reason.split())
        return line if len(line) <= 300 else line[:299] + "…"


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


def _packages(format: str) -> tuple[str, ...]:
    try:
        return tuple(plugin("export.formats", format).PACKAGES)
    except (KilnError, AttributeError):
        return ()


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
    )
