"""What becomes of a variant that was made: its floor of parity, and the accuracy budget of an export if it has one."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

import catalog
from catalog import VariantCard, plugin
from export.parity import shortfall


def budgeted(form: Any) -> tuple[str, ...]:
    """Precisions of a format that are made only for an accuracy budget."""
    names: tuple[str, ...] = getattr(form, "BUDGETED", ())
    return names


def within(card: VariantCard, allowed: float | None, folder: Path) -> VariantCard | None:
    """A variant's card held against a budget, and filed so in `folder`; None where that needs another file.

    Without a budget the card stays as it is: what is over an earlier one remains so. With another one, what a race
    under the earlier tried is no longer told.
    """
    if allowed is None or card.allowed_drop == allowed:
        return card
    if card.validation_drop is None or card.variant.precision in budgeted(
        plugin("export.formats", card.variant.format)
    ):
        return None
    judged = dataclasses.replace(
        judged_by(card, allowed), command=asked(card.command, allowed), search=without_race(card.search)
    )
    catalog.write_atomic(folder / catalog.CARD, catalog.to_json(judged))
    return judged


def judged_by(card: VariantCard, allowed: float | None) -> VariantCard:
    """The card of a variant that was made, its status by parity and, where there is one, by the accuracy budget."""
    reasons = [shortfall(card.parity)] if card.parity else []
    if allowed is not None and card.validation_drop is None:
        reasons.append("no images were held out of training to hold the accuracy budget against")
    elif allowed is not None and card.validation_drop is not None and card.validation_drop > allowed:
        reasons.append(
            f"over budget: top-1 on {card.validation.images if card.validation else 0:,} validation images drops by "
            f"{card.validation_drop:.2f} points, allowed are {allowed:g}"
        )
    reason = "; ".join(filter(None, reasons))
    return dataclasses.replace(card, status="below-floor" if reason else "ok", reason=reason, allowed_drop=allowed)


def without_race(search: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A card's search log but for what took part in a race for an objective."""
    return [step for step in search if "candidate" not in step]


def asked(command: str, allowed: float, objective: str = "") -> str:
    """A card's command with this budget and, where it won a race, its objective, in place of earlier ones."""
    plain, force = re.subn(r" --force$", "", re.sub(r" --(max-accuracy-drop|objective) \S+", "", command))
    race = f" --objective {objective}" if objective else ""
    return f"{plain} --max-accuracy-drop {allowed}{race}{' --force' if force else ''}"
