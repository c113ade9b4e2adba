"""The models that are served: which variants are offered, each verified, loaded and tried once, and which one answers.

Stores are looked through in order, and the first that holds a model wins. A variant is offered if its card says `ok`,
its format runs without the training frameworks, and it was made from the very weights its model's card names.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

import catalog
from catalog import Card, KilnError, Store, VariantCard
from export.formats import Predict
from serving.errors import RequestError, quoted
from serving.settings import Settings

PREFERRED, REFERENCE = "onnx-int8", "onnx-fp32"
MAY_LOSE = 1.0  # percentage points of top-1 accuracy, int8 against float
_WARM_RUNS = 3


@dataclass(frozen=True)
class Served:
    """A variant that is loaded and answers."""

    card: VariantCard
    predict: Predict
    warm_ms: float  # for one image, once warm; the least of a few runs

    @property
    def version(self) -> str:
        """Its name within the model."""
        return self.card.variant.version


@dataclass(frozen=True)
class Model:
    """A network and its variants by version; `default` is the one that answers where a request names none."""

    card: Card
    variants: Mapping[str, Served]
    default: str

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


def choose_version(top1: Mapping[str, float]) -> str:
    """The version that answers for a model, from each version's accuracy in percent.

    It is `onnx-int8` where it lost at most one point against `onnx-fp32`, else the most accurate one; of equals the
    first by name, so that every worker chooses the same.
    """
    if PREFERRED in top1 and REFERENCE in top1 and top1[REFERENCE] - top1[PREFERRED] <= MAY_LOSE + 1e-9:
        return PREFERRED
    return min(top1, key=lambda version: (-top1[version], version))


def choose_model(top1: Mapping[str, float], wanted: str = "") -> str:
    """The model that answers where a request names none: the wanted one, else the most accurate one.

    Raises:
        KilnError: The wanted one is not there.
    """
    if wanted:
        if wanted not in top1:
            raise KilnError(f"MODELKILN_MODEL is {quoted(wanted)}, which is not served; there are: {', '.join(top1)}")
        return wanted
    return min(top1, key=lambda name: (-top1[name], name))


def stores(settings: Settings) -> list[Store]:
    """Where models are looked for, the first to have one winning."""
    return [Store(settings.store), Store(settings.zoo)]


def candidates(searched: Sequence[Store]) -> Iterator[tuple[Card, Store, list[Candidate]]]:
    """Every model once, by name, with the store that has it and all its variants, offered or not.

    Raises:
        KilnError: A card cannot be read.
    """
    owners = {name: store for store in reversed(searched) for name in store.models()}
    for name, store in sorted(owners.items()):
        card = store.card(name)
        cards = store.variants(name)
        yield card, store, [Candidate(store.variant_dir(v.variant), v, _reason(card, v)) for v in cards]


def _reason(card: Card, variant: VariantCard) -> str:
    if variant.status != "ok":
        return variant.status
    if not catalog.plugin("export.formats", variant.variant.format).SERVABLE:
        return "reference only"
    if variant.parent_sha256 != card.weights_sha256:
        return "stale: made from other weights; export it again"
    return ""


def open_variant(store: Store, candidate: Candidate, threads: int) -> Served:
    """Verifies a variant's files against its card, loads it and tries it on one black image.

    Raises:
        KilnError: A file is missing, altered or unknown, or what it holds breaks the tensor contract; names the file.
    """
    card, folder = candidate.card, candidate.folder
    store.verify(folder, card.files)
    path = folder / card.file
    if card.file not in card.files:
        raise KilnError(f"{path} is not among the files its card vouches for. Export it again with --force")
    predict: Predict = catalog.plugin("export.formats", card.variant.format).load(path, threads, spinning=False)
    info = card.dataset
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
    return Served(card, predict, min(times))


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:300]


def load(settings: Settings) -> Repository:
    """Verifies and loads everything that is offered.

    Raises:
        KilnError: A file or card is wrong, or there is nothing to serve; one sentence that names it.
    """
    searched, models, stale = stores(settings), {}, []
    for card, store, found in candidates(searched):
        stale += [f"{c.card.variant} is not served, being {c.skipped}" for c in found if c.skipped.startswith("stale")]
        variants = {c.card.variant.version: open_variant(store, c, settings.threads) for c in found if not c.skipped}
        if variants:
            models[card.model] = Model(card, variants, choose_version({v: _top1(s) for v, s in variants.items()}))
    if not models:
        raise KilnError(
            f"there is no model to serve in {searched[0].root}; "
            "make one: python -m training lenet --dataset digits && python -m export lenet"
        )
    accuracies = {name: _top1(model.variant()) for name, model in models.items()}
    return Repository(models, choose_model(accuracies, settings.model), tuple(stale))


def _top1(served: Served) -> float:
    return served.card.accuracy.top1 if served.card.accuracy else 0.0
