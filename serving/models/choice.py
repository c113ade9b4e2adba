"""Which model and which of its variants answer where a request names none, decided by measured figures.

A model's policy (`policy.json` in its folder of the store) sets budgets and an objective; the figures are the policy's
own rows, else the newest measurements in results/ that were made from the same weights, else what the cards say of
accuracy and size. Without a policy `choose_version` decides.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from catalog import Card, KilnError, Measurement, Policy, VariantCard, from_json
from serving.errors import quoted

PREFERRED, REFERENCE = "onnx-int8", "onnx-fp32"
MAY_LOSE = 1.0  # percentage points of top-1 accuracy, int8 against float


@dataclass(frozen=True)
class Choice:
    """What was decided for a model, and why; the versions of canary and shadow are empty where there is none."""

    version: str
    why: str
    canary: str = ""
    canary_share: float = 0.0
    shadow: str = ""
    warnings: tuple[str, ...] = ()


def top1_of(card: VariantCard) -> float:
    """A variant's accuracy in percent, 0 where its card has none."""
    return card.accuracy.top1 if card.accuracy else 0.0


def choose_version(top1: Mapping[str, float]) -> str:
    """The version that answers for a model without a policy, from each version's accuracy in percent.

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


def choose(card: Card, offered: Sequence[VariantCard], policy: Policy | None, results: Path) -> Choice:
    """The version that answers for a model among those offered, at least one, and its canary and shadow."""
    top1 = {variant.variant.version: top1_of(variant) for variant in offered}
    if policy is None:
        return Choice(choose_version(top1), "no policy: int8 if it lost at most a point, else the most accurate")
    warnings = [
        f"{card.model}'s policy names {role} {quoted(version)}, which is not served; there are: {', '.join(top1)}"
        for role, version in (("version", policy.version), ("canary", policy.canary), ("shadow", policy.shadow))
        if version and version not in top1
    ]
    if policy.version in top1:
        version, why = policy.version, "named by the policy"
    else:
        version, why, missed = _by_figures(card, offered, policy, results)
        warnings += missed
    canary = policy.canary if policy.canary in top1 and policy.canary != version else ""
    shadow = policy.shadow if policy.shadow in top1 and policy.shadow != version else ""
    return Choice(version, why, canary, policy.canary_share if canary else 0.0, shadow, tuple(warnings))


def _by_figures(
    card: Card, offered: Sequence[VariantCard], policy: Policy, results: Path
) -> tuple[str, str, list[str]]:
    rows = _rows(card, offered, policy, results)
    allowed = [row for row in rows if policy.allows(row, card.accuracy.top1)]
    if not allowed:
        version = min(rows, key=lambda row: (-_top1(row), row.variant.version)).variant.version
        missed = f"no variant of {card.model} is within its policy's budgets; the most accurate answers, {version}"
        return version, "none is within the budgets: the most accurate", [missed]
    budget = f"within {policy.max_accuracy_drop:g} points of {card.accuracy.top1:.2f}%"
    if best := policy.best(allowed, card.accuracy.top1):
        return best.variant.version, f"best by {policy.objective} of those {budget}", []
    version = choose_version({row.variant.version: _top1(row) for row in allowed})
    return version, f"{policy.objective} was not measured: int8 or the most accurate of those {budget}", []


def _rows(card: Card, offered: Sequence[VariantCard], policy: Policy, results: Path) -> list[Measurement]:
    """A row for every variant that is offered: measured, or what its card knows."""
    measured = _of_these_weights(policy.rows, card) or _newest(results, card)
    found = {row.variant.version: row for row in measured}
    return [
        found.get(variant.variant.version)
        or Measurement(
            variant.variant,
            "ok",
            parent_sha256=variant.parent_sha256,
            accuracy=variant.accuracy,
            size_bytes=variant.size_bytes,
            gzip_bytes=variant.gzip_bytes,
        )
        for variant in offered
    ]


def measured(results: Path, card: Card) -> dict[str, Measurement]:
    """The newest committed measurements of a model's variants, by version; empty where these weights have none."""
    return {row.variant.version: row for row in _newest(results, card)}


def _newest(results: Path, card: Card) -> list[Measurement]:
    """The model's rows from the newest committed results that hold any for these weights."""
    newest, rows = "", []
    for path in sorted(results.glob("*.json")):
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
            found = [from_json(Measurement, row) for row in data["rows"] if row["variant"]["model"] == card.model]
            created = str(data["created"])
        except (OSError, ValueError, KeyError, TypeError):  # of another kind or schema
            continue
        found = _of_these_weights(found, card)
        if found and created >= newest:
            newest, rows = created, found
    return rows


def _of_these_weights(rows: Sequence[Measurement], card: Card) -> list[Measurement]:
    return [row for row in rows if row.variant.model == card.model and row.parent_sha256 == card.weights_sha256]


def _top1(row: Measurement) -> float:
    return row.accuracy.top1 if row.accuracy else 0.0
