"""The models that are served: which variants are offered, each verified, loaded and tried once, and which one answers.

Stores are looked through in order, and the first that holds a model wins. A variant is offered if its card says `ok`,
its format runs without the training frameworks, and it was made from the very weights its model's card names. Which
one answers is `serving.models.choice`'s to say. What is returned here never changes; the library swaps it for
another.
"""

from __future__ import annotations

import contextlib
import functools
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

import catalog
from catalog import Card, KilnError, Store, VariantCard
from export.formats import Predict
from serving.batching import Lane
from serving.batching.records import Limits
from serving.errors import RequestError, quoted
from serving.models import choice
from serving.models.choice import Choice, choose_model
from serving.models.traffic import Split
from serving.settings import Settings

_WARM_RUNS = 3


@dataclass(frozen=True)
class Served:
    """A variant that is loaded and answers, through its lane where requests are many."""

    card: VariantCard
    predict: Predict
    warm_ms: float  # for one image, once warm; the least of a few runs
    lane: Lane = field(compare=False)

    @functools.cached_property
    def version(self) -> str:
        """Its name within the model."""
        return self.card.variant.version


@dataclass(frozen=True)
class Model:
    """A network and its variants by version; `default` is the one that answers where a request names none.

    A canary takes its share of those requests from it, which `pick` knows and `variant` does not.
    """

    card: Card
    variants: Mapping[str, Served]
    choice: Choice
    split: Split[Served] = field(compare=False)

    @property
    def default(self) -> str:
        """The version that answers where a request names none."""
        return self.choice.version

    def pick(self, version: str = "") -> Served:
        """The variant to answer a request: the one it names, else the default one or its canary.

        Raises:
            RequestError: 404 `version_unknown`, with those there are.
        """
        return self.variant(version) if version else self.split.pick()

    def variant(self, version: str = "") -> Served:
        """A variant by version, or the default one.

        Raises:
            RequestError: 404 `version_unknown`, with those there are.
        """
        found = self.variants.get(version or self.default)
        if found is None:
            known = ", ".join(self.variants)
            raise RequestError(
                404, "version_unknown", f"{self.card.model} has no version {quoted(version)}; there are: {known}"
            )
        return found


@dataclass(frozen=True)
class Repository:
    """All models by name; `default` answers where a request names none, `stale` tells what is left out though `ok`."""

    models: Mapping[str, Model]
    default: str
    stale: tuple[str, ...] = ()

    def model(self, name: str = "") -> Model:
        """A model by name, or the default one. The name is only ever compared, never made a path.

        Raises:
            RequestError: 404 `model_unknown`, with those there are.
        """
        found = self.models.get(name or self.default)
        if found is None:
            raise RequestError(
                404, "model_unknown", f"there is no model {quoted(name)}; there are: {', '.join(self.models)}"
            )
        return found


@dataclass(frozen=True)
class Candidate:
    """A variant on disk; `skipped` says why it is not offered, or is empty."""

    folder: Path
    card: VariantCard
    skipped: str


def stores(settings: Settings) -> list[Store]:
    """Where models are looked for, the first to have one winning."""
    return [Store(settings.store), Store(settings.zoo)]


def owners(searched: Sequence[Store]) -> dict[str, Store]:
    """Every model's name, sorted, with the store that has it."""
    found = {name: store for store in reversed(searched) for name in store.models()}
    return dict(sorted(found.items()))


def candidates_of(store: Store, model: str) -> tuple[Card, list[Candidate]]:
    """A model's card and all its variants, offered or not.

    Raises:
        KilnError: A card cannot be read.
    """
    card = store.card(model)
    return card, [Candidate(store.variant_dir(v.variant), v, _reason(store, card, v)) for v in store.variants(model)]


def candidates(searched: Sequence[Store]) -> Iterator[tuple[Card, Store, list[Candidate]]]:
    """Every model once, by name, with the store that has it and all its variants, offered or not.

    Raises:
        KilnError: A card cannot be read.
    """
    for name, store in owners(searched).items():
        card, found = candidates_of(store, name)
        yield card, store, found


def _reason(store: Store, card: Card, variant: VariantCard) -> str:
    if variant.status != "ok":
        return variant.status
    if not catalog.plugin("export.formats", variant.variant.format).SERVABLE:
        return "reference only"
    if not store.up_to_date(card, variant):
        return "stale: made from other weights; export it again"
    return ""


def fitting_threads(settings: Settings, groups: Path = Path("/sys/fs/cgroup")) -> int:
    """Threads of a runtime such that all workers' together are no more than the cores this process may use.

    These are the cores that it may run on, or fewer where a container's processor time is limited: threads beyond that
    would only be stopped for the rest of each period.
    """
    return min(settings.threads, max(1, int(min(catalog.usable_cores(), _quota(groups)) / settings.workers)))


def _quota(groups: Path) -> float:
    """Cores' worth of time that the control group may take, of version 2 or 1; infinite where there is no limit."""
    with contextlib.suppress(OSError, ValueError, ZeroDivisionError):
        limit, period = (groups / "cpu.max").read_text().split()
        return int(limit) / int(period)
    with contextlib.suppress(OSError, ValueError, ZeroDivisionError):
        limit, period = ((groups / "cpu" / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period"))
        return int(limit) / int(period) if int(limit) > 0 else math.inf
    return math.inf


def limits(settings: Settings) -> Limits:
    """What the settings say about batches."""
    return Limits(
        max_batch=settings.batch_images,
        max_queue=settings.queue_images,
        deadline_s=settings.deadline_s,
        compute_timeout_s=settings.compute_timeout_s,
        alone_ms=settings.inline_ms,
        inline_ms=min(Limits.inline_ms, settings.inline_ms),
    )


def _opened(store: Store, settings: Settings, candidate: Candidate) -> Predict:
    """Verifies a variant's files against its card, and loads it.

    Raises:
        KilnError: A file is missing, altered or unknown, or what it holds breaks the tensor contract; names the file.
    """
    card, folder = candidate.card, candidate.folder
    store.verify(folder, card.files)
    path = folder / card.file
    if card.file not in card.files:
        raise KilnError(f"{path} is not among the files its card vouches for. Export it again with --force")
    form = catalog.plugin("export.formats", card.variant.format)
    device = {"provider": settings.provider} if hasattr(form, "PROVIDERS") else {}
    loaded: Predict = form.load(path, fitting_threads(settings), spinning=False, **device)
    return loaded


def _tried(candidate: Candidate, predict: Predict, settings: Settings) -> Served:
    """The variant, once it has answered for a black image and its time for one is known.

    Raises:
        KilnError: It fails, or its answer is none; names the file.
    """
    card, info = candidate.card, candidate.card.dataset
    path = candidate.folder / card.file
    image = np.zeros((1, info.height, info.width, 3), np.uint8)
    times = []
    for _ in range(_WARM_RUNS):
        begun = time.perf_counter()
        try:
            answer = predict(image)
        except Exception as error:  # each runtime has its own exceptions
            raise KilnError(
                f"{path} fails on an image of {info.height} x {info.width}: {_first_line(error)}"
            ) from error
        times.append(1000 * (time.perf_counter() - begun))
    if answer.shape != (1, len(info.classes)) or not np.isfinite(answer).all():
        finite = "" if np.isfinite(answer).all() else ", not all of them finite"
        raise KilnError(
            f"{path} gives {answer.shape}{finite}; its card has {len(info.classes)} classes. Export it again"
        )
    return Served(card, predict, min(times), Lane(predict, min(times), limits(settings)))


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:300]


def load_model(
    store: Store, name: str, settings: Settings, before: Model | None = None, abreast: int = 1
) -> Model | None:
    """A model with all variants that are offered, or None if none is; unchanged ones are taken over from `before`.

    So many files are verified and loaded `abreast`; the variants are tried one after the other, since that is timed.

    Raises:
        KilnError: A file, a card or the policy is wrong; one sentence that names it.
    """
    card, found = candidates_of(store, name)
    kept = {served.card.variant.version: served for served in before.variants.values()} if before else {}
    offered = {c.card.variant.version: c for c in found if not c.skipped}
    fresh = {v: c for v, c in offered.items() if v not in kept or kept[v].card != c.card}
    with ThreadPoolExecutor(abreast, thread_name_prefix="load") as pool:
        opened = dict(zip(fresh, pool.map(functools.partial(_opened, store, settings), fresh.values()), strict=True))
    variants = {v: _tried(c, opened[v], settings) if v in fresh else kept[v] for v, c in offered.items()}
    if not variants:
        return None
    chosen = choice.choose(card, [s.card for s in variants.values()], store.policy(name), settings.results)
    canary, shadow = variants.get(chosen.canary), variants.get(chosen.shadow)
    return Model(card, variants, chosen, Split(variants[chosen.version], canary, chosen.canary_share, shadow))


def stale(store: Store, name: str) -> list[str]:
    """What is left out of a model though its card says `ok`, a sentence each."""
    _, found = candidates_of(store, name)
    return [f"{c.card.variant} is not served, being {c.skipped}" for c in found if c.skipped.startswith("stale")]


def load(settings: Settings) -> Repository:
    """Verifies and loads everything that is offered.

    Raises:
        KilnError: A file or card is wrong, or there is nothing to serve; one sentence that names it.
    """
    searched, models, left_out = stores(settings), {}, []
    for name, store in owners(searched).items():
        left_out += stale(store, name)
        if model := load_model(store, name, settings, abreast=catalog.usable_cores()):
            models[name] = model
            left_out += model.choice.warnings
        else:
            left_out.append(_nothing_of(name, store, searched))
    if not models:
        raise KilnError(
            f"there is no model to serve in {searched[0].root}; "
            "make one: python -m training lenet --dataset digits && python -m export lenet"
        )
    return assemble(models, settings.model, tuple(left_out))


def _nothing_of(name: str, store: Store, searched: Sequence[Store]) -> str:
    """That a model has no variant to serve, and which store's it hides."""
    hidden = [str(other.root) for other in searched if other is not store and name in other.models()]
    told = f", and hides that of {' and '.join(hidden)}" if hidden else ""
    return f"{name} of {store.root} is not served: it has no variant to serve{told}; run: python -m export {name}"


def assemble(models: Mapping[str, Model], wanted: str, stale: tuple[str, ...] = ()) -> Repository:
    """A repository of models that are loaded.

    Raises:
        KilnError: The wanted default is not among them.
    """
    accuracies = {name: choice.top1_of(model.variant().card) for name, model in models.items()}
    return Repository(models, choose_model(accuracies, wanted) if models else "", stale)
