"""Chooses a model's variant within budgets, says why, and writes the policy that serving reads."""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass
from pathlib import Path

import catalog
from benchmarks import results
from benchmarks.judging.compare import gap, groups, margin
from benchmarks.judging.rivals import rivals
from benchmarks.reporting import words
from catalog import POLICY, Card, KilnError, Measurement, Policy, Store, servable

UNITS = {"b": 1, "kb": 1000, "mb": 10**6, "gb": 10**9, "kib": 1 << 10, "mib": 1 << 20, "gib": 1 << 30}
OBJECTIVES = ("latency", "throughput", "size", "accuracy")


@dataclass(frozen=True)
class Choice:
    """The variant to take with its policy, and for each other one why it is not that."""

    taken: Measurement
    policy: Policy
    why: str
    others: list[tuple[Measurement, str]]


def size_of(text: str) -> int:
    """Bytes of a size as people write it: `3MB`, `300 kB`, `2.5MiB`, `4096`.

    Raises:
        KilnError: It is none.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([a-zA-Z]*)\s*", text)
    unit = (match.group(2) or "b").lower() if match else ""
    if match is None or unit not in UNITS or float(match.group(1)) <= 0:
        raise KilnError(f"--max-size {text!r} is no size; write it like 3MB, 300kB or 2.5MiB")
    return int(float(match.group(1)) * UNITS[unit])


def measured(card: Card, given: Path | None, reports: Path, root: Path) -> tuple[results.Results, Path]:
    """The results to choose from, of the weights the model has now.

    That is the file given, else the last run's, else the newest committed ones.

    Raises:
        KilnError: No results hold the model, or only with other weights.
    """
    paths = [given] if given else [path for path in (reports, *(root / "results").glob("*.json")) if path.is_file()]
    looked = [(results.read(path), path) for path in paths]
    holding = [pair for pair in looked if card.model in pair[0].models]
    if not holding:
        known = sorted({name for found, _ in looked for name in found.models})
        where = f"{given} has no" if given else "there are no results of"
        raise KilnError(f"{where} {card.model!r} (there: {', '.join(known) or 'nothing'}); run: make benchmark")
    fitting = [pair for pair in holding if _of_these_weights(pair[0], card)]
    if not fitting:
        where = ", ".join(str(path) for _, path in holding)
        raise KilnError(f"{card.model} has other weights now than {where} measured; measure again: make benchmark")
    return max(fitting, key=lambda pair: (pair[1] == reports, pair[0].created))


def _of_these_weights(found: results.Results, card: Card) -> bool:
    return any(row.variant.model == card.model and row.parent_sha256 == card.weights_sha256 for row in found.rows)


def choose(found: results.Results, policy: Policy, store: Store) -> Choice:
    """The best variant by the policy's objective among those serving can take from the store.

    Raises:
        KilnError: None is within the budgets; the message says by how much the nearest ones miss them.
    """
    parent_top1, card = found.models[policy.model].card_top1, store.card(policy.model)
    rows = [row for row in found.rows if row.variant.model == policy.model]
    refused = {row.variant.version: objection(row, policy, parent_top1, store, card.weights_sha256) for row in rows}
    eligible = [row for row in rows if not refused[row.variant.version]]
    taken = policy.best(eligible, parent_top1)
    if taken is None:
        reasons = "; ".join(f"{version}: {why}" for version, why in refused.items())
        raise KilnError(f"no variant of {policy.model} is within the budgets ({reasons}); loosen one of them")
    near = _rivals(found, taken, eligible, policy.objective)
    others = [
        (row, refused[row.variant.version] or _behind(row, taken, policy, row.variant.version in near))
        for row in rows
        if row is not taken
    ]
    why = _why(taken, policy, parent_top1, len(eligible), len(rows))
    if near:
        why += f" This run cannot tell {words.listed(near)} from it in that."
    return Choice(taken, policy, why, others)


def objection(row: Measurement, policy: Policy, parent_top1: float, store: Store, weights_sha256: str) -> str:
    """Why a variant may not be taken; "" if it may."""
    version = row.variant.version
    missed = policy.misses(row, parent_top1)
    if missed == "status" or row.accuracy is None:
        return row.reason or ("not measured" if row.status == "ok" else row.status)
    if not servable(row.variant):
        return f"{row.variant.format} is not served"
    if version not in {card.variant.version for card in store.variants(policy.model)}:
        return f"not in {store.root}"
    if row.parent_sha256 != weights_sha256:
        return "measured with other weights than the model has now"
    if missed == "accuracy":
        return f"loses {parent_top1 - row.accuracy.top1:.2f} points, {policy.max_accuracy_drop:g} are allowed"
    if missed == "size":
        return f"{words.kilobytes(row.size_bytes)} kB, {words.kilobytes(policy.max_size_bytes)} are allowed"
    return "" if policy.rank(row) else f"its {policy.objective} was not measured"


def figure(row: Measurement, objective: str) -> str:
    """The objective's figure with its unit."""
    return {
        "latency": f"{words.digits(row.p50_ms)} ms an image",
        "throughput": f"{words.digits(row.images_per_s)} images/s",
        "size": f"{words.kilobytes(row.size_bytes)} kB",
        "accuracy": f"{words.percent(row.accuracy.top1 if row.accuracy else None)}%",
    }[objective]


def _rivals(found: results.Results, taken: Measurement, eligible: list[Measurement], objective: str) -> list[str]:
    """The versions that this run cannot tell from the best by the objective; files have sizes, not ranges."""
    if objective in ("latency", "throughput"):
        return rivals(found, taken, eligible, objective == "throughput")
    if objective == "accuracy":
        lines = {line.row.variant: line for group in groups(found) for line in group.lines}
        best = lines[taken.variant]
        return [
            row.variant.version
            for row in eligible
            if row is not taken and -gap(lines[row.variant], best) <= margin(lines[row.variant], best)
        ]
    return []


def _behind(row: Measurement, taken: Measurement, policy: Policy, near: bool) -> str:
    word = {"latency": "slower", "throughput": "slower in batches", "size": "larger", "accuracy": "less accurate"}
    ours, theirs = policy.rank(row), policy.rank(taken)
    same = ours is not None and theirs is not None and ours[0] == theirs[0]
    said = "no better" if same else ("perhaps " if near else "") + word[policy.objective]
    return f"{said}: {figure(row, policy.objective)}"


def _why(taken: Measurement, policy: Policy, parent_top1: float, eligible: int, rows: int) -> str:
    assert taken.accuracy is not None
    best = {"latency": "fastest", "throughput": "fastest in batches", "size": "smallest", "accuracy": "most accurate"}
    limit = f" and {words.kilobytes(policy.max_size_bytes)} kB" if policy.max_size_bytes is not None else ""
    among = (
        f"{best[policy.objective]} of the {eligible} variants (of {rows})"
        if eligible > 1
        else f"only one of {rows} variants"
    )
    return (
        f"{taken.variant.version} is the {among} that can be served within "
        f"{policy.max_accuracy_drop:g} points of accuracy{limit}: {figure(taken, 'latency')}, "
        f"{figure(taken, 'size')}, {figure(taken, 'accuracy')} right "
        f"({words.points(round(taken.accuracy.top1 - parent_top1, 2))} points)."
    )


def write(choice: Choice, store: Store) -> Path:
    """Writes the policy beside the model's card, keeping the canary and the shadow of an earlier one."""
    path, earlier = store.model_dir(choice.policy.model) / POLICY, store.policy(choice.policy.model)
    kept = {"canary": earlier.canary, "canary_share": earlier.canary_share, "shadow": earlier.shadow} if earlier else {}
    catalog.write_atomic(path, catalog.to_json(dataclasses.replace(choice.policy, **kept)))  # type: ignore[arg-type]
    return path
