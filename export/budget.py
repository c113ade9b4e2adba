"""The best variant under an accuracy budget: everything that exists, int8 that gives layers back, and a race.

Variants are held against the budget on the validation split; test images have no say. Where int8 loses more than the
budget allows, a `mixed` one is made that leaves the most harmful layers in float until it no longer does. Those within
the budget then race in rounds, each in its own process, and what was tried stands in the winner's card.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any, Literal

import catalog
from catalog import KilnError, Store, Variant, VariantCard, plugin, servable
from export import pipeline, process
from export.options import Options
from export.timing import Measure
from export.transforming import Tell
from export.verdict import asked, budgeted, judged_by, without_race

Objective = Literal["latency", "throughput", "size"]
BATCH: dict[str, int] = {"latency": 1, "throughput": 32}


@dataclass(frozen=True)
class Entry:
    """One variant in the race; `figure` is milliseconds, images per second or bytes, None for who may not start."""

    card: VariantCard
    verdict: str  # empty for those that raced
    figure: float | None = None

    def words(self, objective: Objective) -> dict[str, Any]:
        """For the winner's card."""
        unit = {"latency": "p50_ms", "throughput": "images_per_s", "size": "size_bytes"}[objective]
        drop = self.card.validation_drop
        return {"candidate": self.card.variant.version, "validation_drop": drop, unit: self.figure} | (
            {"left_out": self.verdict} if self.verdict else {}
        )


@dataclass(frozen=True)
class Race:
    """All entries, the best first, and the winner's card as it was filed.

    `aside` are variants, by version, whose card or whose transform's card cannot be read, and why.
    """

    objective: Objective
    entries: list[Entry]
    winner: VariantCard
    aside: dict[str, str] = field(default_factory=dict)


def find(
    store: Store,
    variants: list[Variant],
    options: Options,
    objective: Objective,
    begin: Callable[[Variant], None],
    done: Callable[[], None],
    tell: Tell = lambda name, progress: None,
) -> Race:
    """Exports the variants of one model that are due, gives layers back where needed, and races what keeps the budget.

    Variants of the same weights that are in the store already take part too.

    Raises:
        KilnError: The model cannot be exported, or nothing keeps the budget; says what comes nearest.
    """
    allowed = options.allowed_drop
    if allowed is None:
        raise KilnError("the best variant under which budget? Say --max-accuracy-drop, as 0.3")
    model, plain = variants[0].model, dataclasses.replace(options, allowed_drop=None)
    spending = [variant for variant in variants if variant.precision in budgeted(_form(variant))]
    made: list[VariantCard] = []
    for some, how in (([v for v in variants if v not in spending], plain), (spending, options)):
        if some:
            made += pipeline.export(store, some, how, begin, done, tell)
    due = [v for v in (_mixed(card, allowed) for card in _considered(store, model, {})) if v and v not in spending]
    if due:
        as_it_is = dataclasses.replace(options, force=False, as_it_is=True)
        made += pipeline.export(store, due, as_it_is, begin, lambda: None, tell)
    aside: dict[str, str] = {}
    cards = _considered(store, model, aside)
    there = {card.variant for card in cards}
    cards += [card for card in made if card.variant not in there and card.variant.version not in aside]
    entries = [Entry(card, _verdict(store, card, allowed)) for card in cards]
    raced = _raced(store, entries, objective, options, begin)
    if all(entry.verdict for entry in raced):
        raise KilnError(_nothing(model, raced, allowed))
    ranked = sorted(raced, key=lambda entry: (bool(entry.verdict), _merit(entry, objective), str(entry.card.variant)))
    return Race(objective, ranked, _file(store, ranked, objective, allowed), aside)


def _considered(store: Store, model: str, aside: dict[str, str]) -> list[VariantCard]:
    """Cards of all variants that were made of the weights as they are; `aside` is told of those none can tell of."""
    parent, cards = store.card(model), list[VariantCard]()
    for card in store.variants(model, aside):
        try:
            if store.up_to_date(parent, card):
                cards.append(card)
        except KilnError as error:
            aside[card.variant.version] = str(error)
    return cards


def _form(variant: Variant) -> ModuleType:
    return plugin("export.formats", variant.format)


def _mixed(card: VariantCard, allowed: float) -> Variant | None:
    """The mixed variant that belongs to an int8 one which loses more than is allowed."""
    if card.variant.precision != "int8" or "mixed" not in budgeted(_form(card.variant)) or card.status == "failed":
        return None
    if card.validation_drop is None or card.validation_drop <= allowed:
        return None
    return dataclasses.replace(card.variant, precision="mixed")


def _verdict(store: Store, card: VariantCard, allowed: float) -> str:
    """Why a variant does not race; empty if it does."""
    if card.status == "failed":
        return f"failed: {card.reason}"
    if card.parity and not card.parity.holds:
        return "strays from its parent further than its floor"
    if not servable(card.variant):
        return "reference only, it cannot be served"
    if card.validation_drop is None:
        return "made before drops on the validation split were measured; export it again with --force"
    if card.validation_drop > allowed:
        return f"over budget: drops by {card.validation_drop:.2f} points"
    try:
        store.verify(store.variant_dir(card.variant), card.files)
    except KilnError as error:
        return str(error)
    return ""


def _raced(
    store: Store,
    entries: list[Entry],
    objective: Objective,
    options: Options,
    begin: Callable[[Variant], None],
) -> list[Entry]:
    """The entries with their figures; one that cannot be timed is left out and says why."""
    if objective == "size":
        return [dataclasses.replace(e, figure=None if e.verdict else float(e.card.size_bytes)) for e in entries]
    batch = BATCH[objective]
    starters = {entry.card.variant.version: entry.card for entry in entries if not entry.verdict}
    asked = {version: [_measure(store, card, batch, options.threads)] for version, card in starters.items()}
    times, failed = process.raced(asked, options.timeout, lambda version: begin(starters[version].variant))

    def judged(entry: Entry) -> Entry:
        version = entry.card.variant.version
        if version not in times:
            return dataclasses.replace(entry, verdict=entry.verdict or failed[version])
        (taken,) = times[version]
        figure = round(taken, 4) if objective == "latency" else round(1000 * batch / taken, 1)
        return dataclasses.replace(entry, figure=figure)

    return [judged(entry) for entry in entries]


def _measure(store: Store, card: VariantCard, batch: int, threads: int) -> Measure:
    data, folder = card.dataset, str(store.variant_dir(card.variant).resolve())
    return Measure(folder, card.file, card.variant.format, data.height, data.width, batch, threads)


def _merit(entry: Entry, objective: Objective) -> float:
    """Smaller is better."""
    if entry.figure is None:
        return entry.card.validation_drop or 0.0
    return -entry.figure if objective == "throughput" else entry.figure


def _file(store: Store, ranked: list[Entry], objective: Objective, allowed: float) -> VariantCard:
    """Writes what was tried into the winner's card; an older search by another race is replaced."""
    card = ranked[0].card
    log = [*without_race(card.search), *({"objective": objective, **entry.words(objective)} for entry in ranked)]
    command = asked(card.command, allowed, objective)
    won = dataclasses.replace(judged_by(card, allowed), search=log, command=command)
    catalog.write_atomic(store.variant_dir(card.variant) / catalog.CARD, catalog.to_json(won))
    return won


def _nothing(model: str, entries: list[Entry], allowed: float) -> str:
    lost = [(e.card.validation_drop, e.card.variant.version) for e in entries if e.card.validation_drop is not None]
    nearest = f"; nearest comes {min(lost)[1]} with {min(lost)[0]:.2f}" if lost else ""
    reasons = "; ".join(f"{e.card.variant.version}: {e.verdict}" for e in entries)
    return f"no variant of {model} may drop by {allowed:g} points at most and be served{nearest}. {reasons}"
