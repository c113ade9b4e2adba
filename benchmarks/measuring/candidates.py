"""Which folders of a store are to be measured, and why the others are not."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import console
from catalog import CARD, Card, KilnError, Store, Variant, VariantCard, plugin, read_card


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


def candidates(store: Store, models: list[str], formats: Sequence[str] = ()) -> list[Candidate]:
    """Every variant of the models, sorted; those that cannot be measured come with the reason.

    `formats` are those that are asked for; all where there are none.

    Raises:
        KilnError: A named model is not in the store, or no model has a variant in such a format.
    """
    found = [c for model in models for c in _candidates_of(store, model) if not formats or c.variant.format in formats]
    if not found:
        which = " ".join([", ".join(models) or "any model", *([f"in {' or '.join(formats)}"] if formats else [])])
        raise KilnError(
            f"no variants of {which} in {store.root}; run: python -m training lenet; python -m export lenet"
        )
    return found


def named(store: Store, models: str) -> list[str]:
    """The models of a list with commas between, each once however often it is named; all of the store's where empty."""
    return console.words(models) or store.models()


def packages(format: str) -> tuple[str, ...]:
    """The distributions that a format's plug-in names, the runtime first; none where there is no such plug-in."""
    try:
        return tuple(plugin("export.formats", format).PACKAGES)
    except (KilnError, AttributeError):
        return ()


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
    try:
        if not store.up_to_date(parent, card):
            return f"stale: made from other weights than {parent.model} has now; run: {card.command}"
        store.verify(store.variant_dir(card.variant), card.files)
    except KilnError as error:
        return str(error)
    return ""
