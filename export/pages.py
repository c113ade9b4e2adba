"""Variants on a terminal: a table of many, a page of one."""

from __future__ import annotations

import rich.box
import rich.console
import rich.table
import rich.text

from catalog import VariantCard

_COLOURS = {"ok": "green", "below-floor": "yellow", "failed": "red"}


def bytes_in_words(count: int) -> str:
    """`248.1 kB`: decimal units, as file managers and networks count."""
    for size, unit in ((10**9, "GB"), (10**6, "MB"), (10**3, "kB")):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count} B"


def table(cards: list[VariantCard]) -> rich.table.Table:
    """One row a variant, failed ones too."""
    shown = rich.table.Table(box=rich.box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    shown.add_column("variant", no_wrap=True, min_width=max((len(str(card.variant)) for card in cards), default=0))
    shown.add_column("status", no_wrap=True)
    for name in ("size", "gzip", "top-1", "agreement", "max diff"):
        shown.add_column(name, justify="right", no_wrap=True)
    for card in cards:
        row = [str(card.variant), f"[{_COLOURS[card.status]}]{card.status}[/]"]
        if card.parity and card.accuracy:
            row += [bytes_in_words(card.size_bytes), bytes_in_words(card.gzip_bytes), f"{card.accuracy.top1:.2f}%"]
            row += [f"{100 * card.parity.top1_agreement:.2f}%", f"{card.parity.max_abs_diff:.1e}"]
        shown.add_row(*row)
    return shown


def page(card: VariantCard) -> rich.console.Group:
    """A card as a person reads it: what it is, what it cost, how it was made."""
    facts = rich.table.Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    facts.add_column(style="dim")
    facts.add_column(overflow="fold")
    facts.add_row("status", f"[{_COLOURS[card.status]}]{card.status}[/]")
    for name, text in _facts(card).items():
        if text:
            facts.add_row(name, rich.text.Text(text))
    return rich.console.Group(f"[bold]{card.variant}[/]", facts)


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
        "operators": ", ".join(f"{count} {name}" for name, count in card.operators.items()),
        "settings": ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in card.settings.items()),
        "versions": ", ".join(f"{name} {version}" for name, version in card.versions.items()),
        "parent": f"weights {card.parent_sha256[:16]}",
        "files": ", ".join(f"{name} sha256 {digest[:16]}" for name, digest in card.files.items()),
        "made": f"{card.created} in {card.seconds:.1f} s at commit {card.commit}",
        "by": card.command,
    }
