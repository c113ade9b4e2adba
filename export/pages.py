"""Variants on a terminal: a table of many, a page of one."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import rich.box
import rich.console
import rich.markup
import rich.table
import rich.text

from catalog import Variant, VariantCard, WeightCount

if TYPE_CHECKING:
    from export.budget import Race

_COLOURS = {"ok": "green", "below-floor": "yellow", "failed": "red"}


def bytes_in_words(count: int) -> str:
    """`248.1 kB`: decimal units, as file managers and networks count."""
    for size, unit in ((10**9, "GB"), (10**6, "MB"), (10**3, "kB")):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count} B"


def status(card: VariantCard) -> str:
    """A card's status in words: one that only lost more than it may is `over budget`."""
    over = card.allowed_drop is not None and (card.validation_drop is None or card.validation_drop > card.allowed_drop)
    fits = card.parity is None or card.parity.holds
    return "over budget" if card.status == "below-floor" and over and fits else card.status


def table(cards: list[VariantCard], missing: Iterable[Variant] = ()) -> rich.table.Table:
    """One row a variant, failed ones and those `missing` whose model could not be begun; figures are never cut off."""
    shown = rich.table.Table(box=rich.box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    shown.add_column("variant", overflow="fold")
    shown.add_column("status", no_wrap=True)
    for name in ("size", "gzip", "top-1", "agreement", "max diff"):
        shown.add_column(name, justify="right", no_wrap=True)
    for card in cards:
        row = [str(card.variant), f"[{_COLOURS[card.status]}]{status(card)}[/]"]
        if card.parity and card.accuracy:
            row += [bytes_in_words(card.size_bytes), bytes_in_words(card.gzip_bytes), f"{card.accuracy.top1:.2f}%"]
            row += [f"{100 * card.parity.top1_agreement:.2f}%", f"{card.parity.max_abs_diff:.1e}"]
        shown.add_row(*row)
    for variant in missing:
        shown.add_row(str(variant), "[red]failed[/]")
    return shown


def race(raced: Race) -> rich.console.Group:
    """What was tried for an objective, the best first, and the winner in a sentence."""
    unit = {"latency": "ms, batch 1", "throughput": "images/s, batch 32", "size": "size"}[raced.objective]
    shown = rich.table.Table(box=rich.box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    shown.add_column("variant", no_wrap=True)
    for name in (unit, "drop", "top-1"):
        shown.add_column(name, justify="right", no_wrap=True)
    shown.add_column("", overflow="fold")
    for entry in raced.entries:
        card, figure = entry.card, entry.figure
        told = "" if figure is None else bytes_in_words(int(figure)) if raced.objective == "size" else f"{figure:,.5g}"
        drop = "" if card.validation_drop is None else f"{card.validation_drop:.2f}"
        top1 = f"{card.accuracy.top1:.2f}%" if card.accuracy else ""
        shown.add_row(str(card.variant), told, drop, top1, rich.markup.escape(entry.verdict))
    won = raced.winner
    within, images = sum(not entry.verdict for entry in raced.entries), won.validation.images if won.validation else 0
    words = (
        f"{won.variant} is the best by {raced.objective} of {within} variants that "
        f"lose {won.allowed_drop:g} points at most on {images:,} validation images."
    )
    aside = [f"{version} took no part: {why}" for version, why in raced.aside.items()]
    return rich.console.Group(shown, words, *(rich.text.Text(line, style="yellow") for line in aside))


def page(card: VariantCard) -> rich.console.Group:
    """A card as a person reads it: what it is, what it cost, how it was made."""
    facts = rich.table.Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    facts.add_column(style="dim")
    facts.add_column(overflow="fold")
    facts.add_row("status", f"[{_COLOURS[card.status]}]{status(card)}[/]")
    for name, text in _facts(card).items():
        if text:
            facts.add_row(name, rich.text.Text(text))
    parts: list[rich.console.RenderableType] = [f"[bold]{card.variant}[/]", facts]
    if card.search:
        parts += ["", "[dim]tried before this was chosen[/]", _tried(card.search)]
    return rich.console.Group(*parts)


def _tried(search: list[dict[str, Any]]) -> rich.table.Table:
    """A card's search log, a line a step."""
    shown = rich.table.Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    shown.add_column(style="dim", no_wrap=True)
    shown.add_column(overflow="fold")
    for number, step in enumerate(search, 1):
        told = {key: value for key, value in step.items() if value not in (None, [], "")}
        words = ", ".join(f"{name.replace('_', ' ')} {_value(value)}" for name, value in told.items())
        shown.add_row(str(number), rich.text.Text(words))
    return shown


def _value(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    return " and ".join(map(str, value)) if isinstance(value, list) else str(value)


def _facts(card: VariantCard) -> dict[str, str]:
    accuracy, parity, data = card.accuracy, card.parity, card.dataset
    sizes = f"{bytes_in_words(card.size_bytes)}, {bytes_in_words(card.gzip_bytes)} after gzip"
    return {
        "reason": card.reason,
        "data set": f"{data.name}, {len(data.classes)} classes, {data.test_images:,} test images",
        "size": sizes if card.files else "",
        "top-1": f"{accuracy.top1:.2f}%, {accuracy.correct:,} of {accuracy.images:,} "
        f"(95% interval {accuracy.low:.2f} to {accuracy.high:.2f})"
        if accuracy
        else "",
        "top class agrees": f"{100 * parity.top1_agreement:.2f}% with Keras, floor "
        f"{100 * parity.floor_top1_agreement:.2f}%, batches of {' and '.join(map(str, parity.batch_sizes))}"
        if parity
        else "",
        "probabilities": f"differ by {parity.max_abs_diff:.2e} at most, {parity.mean_abs_diff:.2e} on average, "
        + ("no floor" if parity.floor_max_abs_diff is None else f"floor {parity.floor_max_abs_diff:.0e}")
        if parity
        else "",
        "flips": f"{card.flips.gained:,} images gained, {card.flips.lost:,} lost against the parent, McNemar's exact "
        f"p {card.flips.p:.3g}"
        if card.flips
        else "",
        "held out": _held_out(card),
        "weights in the file": _weights(card.weights, _layout(card)) if card.weights else "",
        "multiply-accumulates": _macs(card.macs, _layout(card)) if card.macs else "",
        "operators": ", ".join(f"{count} {name}" for name, count in card.operators.items()),
        "settings": ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in card.settings.items()),
        "versions": ", ".join(f"{name} {version}" for name, version in card.versions.items()),
        "parent": f"weights {card.parent_sha256[:16]}",
        "files": ", ".join(f"{name} sha256 {digest[:16]}" for name, digest in card.files.items()),
        "made": f"{card.created} in {card.seconds:.1f} s at commit {card.commit}",
        "by": card.command,
    }


def _held_out(card: VariantCard) -> str:
    if card.validation is None or card.validation_drop is None:
        return ""
    allowed = "" if card.allowed_drop is None else f", allowed are {card.allowed_drop:g}"
    return (
        f"{card.validation.top1:.2f}% of {card.validation.images:,} validation images, "
        f"{card.validation_drop:.2f} points below the parent{allowed}"
    )


def _layout(card: VariantCard) -> dict[str, int]:
    """What the layout of the first kernel adds to what is counted in the file (`export.onnx.stem`)."""
    told = card.settings.get("first_kernel_layout")
    return told if isinstance(told, dict) else {}


def _weights(count: WeightCount, layout: dict[str, int]) -> str:
    types = " and ".join(f"{values:,} {name}" for name, values in count.types.items())
    zeros, values = count.zeros - layout.get("zeros", 0), count.values - layout.get("values", 0)
    sparse = f"{100 * zeros / max(values, 1):.2f}%"
    share = f"{sparse} of them zero"
    if layout:
        share = f"{layout['values']:,} of them only lay out the first kernel, {sparse} of the others are zero"
    return f"{types} in {count.tensors} tensors, {share}, {count.distinct:,} different values at most in one"


def _macs(count: int, layout: dict[str, int]) -> str:
    told = f"{count:,} for one image, counted in the exported graph"
    return f"{told}, {layout['macs']:,} of them by the layout of the first kernel" if layout else told
