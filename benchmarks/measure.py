"""Measures every variant of a store, one process a variant, and turns what the processes leave into rows.

A variant that failed to convert, is older than its model, is corrupt, crashes or takes too long keeps its row with the
reason; one bad variant costs the others nothing.
"""

from __future__ import annotations

import random
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks import machine, process
from benchmarks.job import Job
from benchmarks.pairs import paired
from benchmarks.results import SCHEMA, Detail, ModelFacts, Results, Settings
from catalog import CARD, Card, KilnError, Measurement, Store, Variant, VariantCard, commit, now, plugin, read_card

Loader = Callable[..., Any]
Begun = Callable[[str], None]
Done = Callable[[Measurement], None]


@dataclass(frozen=True)
class Candidate:
    """A folder of the store that should be a variant: its card, or why there is none to go by."""

    variant: Variant
    card: VariantCard | None
    reason: str = ""

    @property
    def name(self) -> str:
        """The word for it in orders and keys: `lenet/onnx-int8`."""
        return str(self.variant)


def candidates(store: Store, models: list[str]) -> list[Candidate]:
    """Every variant of the models, sorted; those that cannot be measured come with the reason.

    Raises:
        KilnError: A named model is not in the store, or no model has a variant.
    """
    found = [c for model in models for c in _candidates_of(store, model)]
    if not found:
        which = ", ".join(models) or "any model"
        raise KilnError(
            f"no variants of {which} in {store.root}; run: python -m training lenet; python -m export lenet"
        )
    return found


def _candidates_of(store: Store, model: str) -> Iterator[Candidate]:
    parent = store.card(model)
    for path in sorted((store.model_dir(model) / "variants").glob(f"[!.]*/{CARD}")):
        variant = _from_version(model, path.parent.name)
        try:
            card = read_card(VariantCard, path)
        except KilnError as error:
            yield Candidate(variant, None, str(error))
            continue
        if card.variant.version != path.parent.name or card.variant.model != model:
            yield Candidate(variant, None, f"{path} is the card of {card.variant}; export it again with --force")
            continue
        yield Candidate(card.variant, card, _objection(store, parent, card))


def _from_version(model: str, version: str) -> Variant:
    """What a folder's name says, for the row of a variant whose card cannot be read."""
    transform, form, precision = ["", "", "", *version.rsplit("-", 2)][-3:]
    return Variant(model, form or version, precision if form else "", transform)


def _objection(store: Store, parent: Card, card: VariantCard) -> str:
    """Why a variant is not to be measured; "" if it is."""
    if card.status == "failed":
        return card.reason or "the conversion failed"
    if card.parent_sha256 != parent.weights_sha256:
        return f"stale: made from other weights than {parent.model} has now; run: python -m export {parent.model}"
    try:
        store.verify(store.variant_dir(card.variant), card.files)
    except KilnError as error:
        return str(error)
    return ""


@dataclass
class Run:
    """One run over a store. `load` reads a data set by name, as `training.data.load` does."""

    store: Store
    threads: int
    settings: Settings
    seed: int
    load: Loader
    quick: bool = False

    def measure(self, models: list[str], begun: Begun = lambda name: None, done: Done = lambda row: None) -> Results:
        """Measures all variants in random order; `begun` is told of each variant's name, `done` of its row."""
        created, start, load_before = now(), time.perf_counter(), machine.load()
        todo = candidates(self.store, models)
        order = [c.name for c in todo]
        random.Random(self.seed).shuffle(order)
        by_name = {c.name: c for c in todo}
        rows: dict[str, Measurement] = {}
        details: dict[str, Detail] = {}
        with tempfile.TemporaryDirectory(prefix="modelkiln-benchmark-") as scratch:
            splits = _Splits(Path(scratch), self.load)
            predictions: dict[str, NDArray[np.int64]] = {}
            for position, name in enumerate(order):
                begun(name)
                row, detail, told = self._one(by_name[name], position, splits, Path(scratch) / f"job{position}")
                rows[name] = row
                if detail is not None and told is not None:
                    details[name], predictions[name] = detail, told
                done(row)
            details = paired(details, [c.variant for c in todo], predictions, splits.labels)
        packages = {p for c in todo if c.card for p in _packages(c.variant.format)}
        return Results(
            schema=SCHEMA,
            created=created,
            commit=commit(),
            quick=self.quick,
            threads=self.threads,
            environment=process.thread_environment(self.threads),
            seed=self.seed,
            order=order,
            settings=self.settings,
            seconds=round(time.perf_counter() - start, 1),
            load_before=load_before,
            load_after=machine.load(),
            machine=machine.read(tuple(sorted(packages))),
            models={model: _facts(self.store.card(model)) for model in dict.fromkeys(c.variant.model for c in todo)},
            rows=[rows[c.name] for c in todo],
            details=details,
        )

    def _one(
        self, candidate: Candidate, position: int, splits: _Splits, folder: Path
    ) -> tuple[Measurement, Detail | None, NDArray[np.int64] | None]:
        card, start = candidate.card, time.perf_counter()
        row = _unmeasured(candidate, self.threads)
        try:
            if candidate.reason or card is None:
                raise KilnError(candidate.reason)
            data = splits.folder(self.store.card(card.variant.model))
            folder.mkdir()
            model_file = self.store.variant_dir(card.variant) / card.file
            job = Job(
                card.variant.format, str(model_file.resolve()), self.threads, str(data), str(folder), self.settings
            )
            raw = process.run(job)
        except KilnError as error:
            why = self._tidy(str(error))
            return Measurement(row.variant, "failed", why, row.parent_sha256, threads=self.threads), None, None
        row, detail = process.figures(row, raw, position, round(time.perf_counter() - start, 2))
        return row, detail, np.load(job.predictions)

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
    )


class _Splits:
    """Test splits, read once each and laid down as files that every process maps, so that none reads the whole set."""

    def __init__(self, scratch: Path, load: Loader) -> None:
        self._scratch, self._load = scratch, load
        self._folders: dict[str, Path] = {}
        self._models: dict[str, Path] = {}

    def folder(self, card: Card) -> Path:
        """Where the test split of a model's data set lies.

        Raises:
            KilnError: The data cannot be read, or is not what the model was trained on.
        """
        info = card.dataset
        if info.sha256 not in self._folders:
            data = self._load(info.name, root=info.root or None)
            if data.sha256 != info.sha256:
                raise KilnError(
                    f"the data set {info.name} is not the one {card.model} was trained on (sha256 {data.sha256[:12]}, "
                    f"its card says {info.sha256[:12]}); train again: python -m training {card.model} --force"
                )
            folder = self._scratch / f"data{len(self._folders)}"
            folder.mkdir()
            np.save(folder / "images.npy", data.x_test)
            np.save(folder / "labels.npy", data.y_test)
            self._folders[info.sha256] = folder
        self._models[card.model] = self._folders[info.sha256]
        return self._models[card.model]

    def labels(self, model: str) -> NDArray[np.int64]:
        """The test labels of a model that was measured."""
        labels: NDArray[np.int64] = np.load(self._models[model] / "labels.npy")
        return labels
