"""One model to all its variants: what is due, each in its own process, each with its card.

A variant is made in a folder of another name that takes its place when its card is written, so there is never half a
one. What is there already, from the same weights by the same settings, is left alone.
"""

from __future__ import annotations

import dataclasses
import shutil
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TypeGuard

import catalog
from catalog import Card, KilnError, Store, Variant, VariantCard, plugin, plugin_names
from export import answers, cards, process, transforming
from export.options import Options
from export.staging import scratch_in, sweep
from export.transforming import Source, Tell
from export.transforms import chain, name_of
from export.verdict import budgeted, within
from export.worker import ANSWERS, Convert, Prepare, Reply

SEARCHES = "searches"  # in a model's folder: what searches found, kept from one export to the next


def wanted(model: str, formats: list[str], precisions: list[str], transforms: list[str] | None = None) -> list[Variant]:
    """The variants of a model that formats and precisions ask for; an empty list asks for all.

    `transforms` are chains as `prune80+cluster16`; without any, the network as trained is converted.

    Raises:
        KilnError: An unknown format or transform, or a precision that none of the formats can make.
    """
    names = [name_of(chain(text)) for text in transforms or []]
    chosen = {name: plugin("export.formats", name) for name in formats or plugin_names("export.formats")}
    can = sorted({precision for form in chosen.values() for precision in (*form.PRECISIONS, *budgeted(form))})
    if unknown := [precision for precision in precisions if precision not in can]:
        raise KilnError(f"no precision {unknown[0]!r} in {', '.join(chosen)}; there are: {', '.join(can)}")
    return [
        Variant(model, name, precision, transform)
        for transform in dict.fromkeys(names or [""])
        for name, form in chosen.items()
        for precision in (*form.PRECISIONS, *(name for name in budgeted(form) if name in precisions))
        if not precisions or precision in precisions
    ]


def export(
    store: Store,
    variants: list[Variant],
    options: Options,
    begin: Callable[[Variant], None],
    done: Callable[[], None],
    tell: Tell = lambda name, progress: None,
) -> list[VariantCard]:
    """Makes the variants of one model that are due; the cards of all of them, in order.

    `begin` is called with each before it is made, `done` after each, made or found; `tell` while a transform runs.

    What goes wrong with one of them is told in its card and costs no other; what goes wrong with a transform, or with
    what its variants share, in the cards of all of these. A card that could not be written is returned all the same.

    Raises:
        KilnError: The model is missing or altered; nothing was changed then.
        OSError: Its folder cannot be read or written; nothing was changed then.
    """
    model = variants[0].model
    card, folder = store.card(model), store.model_dir(model)
    store.verify(folder, card.files, extra_allowed=True)
    for place in ("variants", "transforms"):
        sweep(folder / place)
    filed: dict[Variant, VariantCard] = {}
    for transform in dict.fromkeys(variant.transform for variant in variants):
        group = [variant for variant in variants if variant.transform == transform]
        try:
            with scratch_in(folder / "variants") as scratch:
                making = _Group(store, card, transform, scratch, options, tell)
                for variant in group:
                    filed[variant] = making.card_of(variant, begin)
                    done()
        except OSError as error:  # there is no place to make them in
            for variant in group:
                if variant not in filed:
                    begin(variant)
                    filed[variant] = cards.failed(card, variant, error, options)
                    done()
    return [filed[variant] for variant in variants]


class _Group:
    """The variants of one transform, and what they share: the model to convert, or why there is none, and a folder."""

    def __init__(self, store: Store, parent: Card, transform: str, scratch: Path, options: Options, tell: Tell) -> None:
        self.store, self.parent, self.transform, self.scratch = store, parent, transform, scratch
        self.options, self.tell = options, tell
        self.source: Source | str | None = _source(store, parent, transform, options)
        self.prepared = False

    def card_of(self, variant: Variant, begin: Callable[[Variant], None]) -> VariantCard:
        """The card of one that is there, or that is made now."""
        try:
            source = self.source
            there = found(self.store, self.parent, variant, self.options, source) if _is_model(source) else None
            if there is None:
                begin(variant)
                there = _make(self.store, self.parent, variant, self.ready(), self.scratch, self.options)
            return there
        except (KilnError, OSError) as error:
            return cards.failed(self.parent, variant, error, self.options)

    def ready(self) -> Source | str:
        """The model to convert, made and with its answers in the scratch folder; else in one line why there is none."""
        if self.source is None or (_is_model(self.source) and not self.prepared):
            try:
                self.source = self._prepared(self.source)
                self.prepared = True
            except (KilnError, OSError) as error:
                self.source = cards.in_words(error)
        return self.source

    def _prepared(self, source: Source | None) -> Source:
        options = self.options
        if source is None:
            links = chain(self.transform)
            source = transforming.make(self.store, self.parent, links, options.finetune, options.force, self.tell)
        trained = transforming.trained(self.store, self.parent).keras_path
        _prepare(self.parent, source, trained, self.scratch, options)
        return source


def _is_model(source: Source | str | None) -> TypeGuard[Source]:
    return isinstance(source, Source)


def _source(store: Store, card: Card, transform: str, options: Options) -> Source | None:
    """The model to convert, if it need not be made first."""
    if not transform:
        return transforming.trained(store, card)
    if options.as_it_is and (there := transforming.present(store, card, transform)):
        return there
    return None if options.force else transforming.found(store, card, chain(transform), options.finetune)


def found(
    store: Store, parent: Card, variant: Variant, options: Options, source: Source | None = None
) -> VariantCard | None:
    """The card of a variant that need not be made again: same weights, same settings, files whole.

    `source` is the transformed model it would be made from, where the variant has a transform.
    """
    if options.force:
        return None
    card = _sound(store, variant)
    if card is None:
        return None
    asked = options.settings(plugin("export.formats", variant.format), variant.precision, parent.dataset)
    if source and source.card:
        asked["transform_sha256"] = source.weights_sha256
    same = card.parent_sha256 == parent.weights_sha256 and asked.items() <= card.settings.items()
    return within(card, options.allowed_drop, store.variant_dir(variant)) if same else None


def _prepare(card: Card, source: Source, parent_path: Path, scratch: Path, options: Options) -> None:
    data = card.dataset
    reply = process.ask(
        Prepare(
            keras_path=str(source.keras_path),
            folder=str(scratch),
            dataset=data.name,
            root=data.root,
            sha256=data.sha256,
            validation=float(card.recipe.get("validation", 0.1)),
            calibration_images=options.calibration_images,
            seed=options.seed,
            parent_path=str(parent_path) if source.card else "",
        ),
        options.timeout,
        scratch,
    )
    if reply.error:
        raise KilnError(f"{card.model} cannot be exported: {reply.error}")


def _make(
    store: Store, parent: Card, variant: Variant, source: Source | str, scratch: Path, options: Options
) -> VariantCard:
    """Converts, proves and files one variant; its card says `failed` where that did not work.

    `source` is a reason where its transform could not be made. A failure does not replace a sound variant of the same
    weights.
    """
    with suppress(_Kept), catalog.staged_folder(store.variant_dir(variant).resolve()) as staged:
        started = time.monotonic()
        if isinstance(source, str):
            reply = Reply(source)
        else:
            path = str(source.keras_path)
            cache = str(store.model_dir(variant.model).resolve() / SEARCHES)
            made = variant.format, variant.precision, options.threads, cache, options.allowed_drop
            asked = Convert(path, str(staged), str(scratch), *made)
            reply = process.ask(asked, options.timeout, scratch)
        if reply.error:
            shutil.rmtree(staged)
            staged.mkdir()
        made_from = None if isinstance(source, str) else source.card
        card = cards.made(parent, variant, made_from, reply, staged, options, time.monotonic() - started)
        if reply.error and (earlier := _sound(store, variant)) and earlier.parent_sha256 == parent.weights_sha256:
            card = dataclasses.replace(card, reason=f"{card.reason}; the variant of {earlier.created} stays")
            raise _Kept
        catalog.write_atomic(staged / catalog.CARD, catalog.to_json(card))
        if not reply.error:
            packages = plugin("export.formats", variant.format).PACKAGES
            answers.keep(store, card, packages, options.threads, scratch / ANSWERS)
    return card


class _Kept(Exception):
    """What was staged is not to take its place."""


def _sound(store: Store, variant: Variant) -> VariantCard | None:
    """The card of a variant that is whole and has not failed."""
    folder = store.variant_dir(variant)
    try:
        card = catalog.read_card(VariantCard, folder / catalog.CARD)
        store.verify(folder, card.files)
    except KilnError:
        return None
    return None if card.status == "failed" else card
