"""The rows of `benchmarks.peers.export`, and what they say: like against like, where we lose, the best for each aim."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import rich.box
import rich.table

from benchmarks.judging.compare import BUDGET_POINTS
from benchmarks.judging.speed import FASTER
from catalog import Flips

LIKE = {"onnx": "onnx-int8", "openvino": "openvino-int8"}  # by a peer's format, what of ours was made as it was
CHANCE = 0.05
WITHIN = 0.1  # points of top-1 that count as equally accurate


@dataclass(frozen=True)
class Contender:
    """One row: a file of ours or a peer's; a failed one has a reason and no figures. Times: of the quickest round."""

    model: str
    name: str
    ours: bool
    format: str
    folder: str
    file: str
    reason: str = ""
    top1: float | None = None  # percent of the test split
    size_bytes: int | None = None
    p50_ms: float | None = None  # batch 1
    images_per_s: float | None = None  # batch 32
    validation_drop: float | None = None  # of ours: points lost on the images held out of training
    beside: dict[str, tuple[int, int]] = field(
        default_factory=dict
    )  # of ours, by peer: images right for one of the two

    @property
    def measured(self) -> bool:
        """Whether it has figures."""
        return not self.reason and None not in (self.top1, self.p50_ms, self.images_per_s)

    def __str__(self) -> str:
        assert self.top1 is not None and self.p50_ms is not None and self.images_per_s is not None
        return f"{self.name} {self.top1:.2f}%, {self.p50_ms:.4f} ms, {self.images_per_s:,.0f} images/s"


FIGURES: dict[str, Callable[[Contender], str]] = {
    "latency": lambda row: f"{row.p50_ms:.4f} ms",
    "throughput": lambda row: f"{row.images_per_s:,.0f} images/s",
}
COSTS: dict[str, Callable[[Contender], float]] = {
    "latency": lambda row: row.p50_ms or 0.0,
    "throughput": lambda row: -(row.images_per_s or 0.0),
}


def verdicts(rows: list[Contender]) -> list[str]:
    """Of one model's rows: a sentence a peer, held against what of ours was made alike, and of the best of each side.

    The best are those that an engineer would take who is after latency, and after throughput. Before them stands for
    either aim which of ours, of any format, is as accurate as each peer and as fast.
    """
    model, ours = rows[0].model, {row.name: row for row in rows if row.ours}
    told = [_against(ours.get(LIKE[row.format]), row) for row in rows if not row.ours]
    told += [f"{row.name} of ours: no figures, because {row.reason}" for row in ours.values() if row.reason]
    if any(row.measured for row in rows):
        told += [_matched(rows, objective) for objective in COSTS]
        told += [_best_of_both(rows, objective) for objective in COSTS]
    return [f"{model}: {sentence}" for sentence in told]


def best_of_ours(rows: list[Contender], objective: str) -> Contender | None:
    """The fastest of ours, of any format, that the images held out of training say is within the budget."""
    judged = [row for row in rows if row.ours and row.measured and row.validation_drop is not None]
    able = [row for row in judged if (row.validation_drop or 0.0) <= BUDGET_POINTS]
    return min(able, key=COSTS[objective], default=None)


def best_of_peers(rows: list[Contender], objective: str, top1: float) -> Contender | None:
    """The fastest peer that is as accurate as `top1`, in percent; where none is, the most accurate."""
    able = [row for row in rows if not row.ours and row.measured]
    close = [row for row in able if (row.top1 or 0.0) >= top1 - WITHIN]
    fastest = min(close, key=COSTS[objective], default=None)
    return fastest or max(able, key=lambda row: row.top1 or 0.0, default=None)


def _best_of_both(rows: list[Contender], objective: str) -> str:
    """The best of ours against the best peer, whatever their formats, in accuracy and what was asked for."""
    what = f"for {objective} the best of ours, of those within {BUDGET_POINTS:g} points on images held out of training"
    ours = best_of_ours(rows, objective)
    peer = best_of_peers(rows, objective, (ours.top1 or 0.0) if ours else 100.0)
    if ours is None:
        return f"{what}: none" + (f"; best peer: {peer}: we lose" if peer else "")
    return f"{what}: {ours}" + (
        f"; best peer: {peer}: {_judged(ours, peer, [objective])}" if peer else "; no peer has figures"
    )


def _matched(rows: list[Contender], objective: str) -> str:
    """The fastest of ours for each peer among those as accurate, if it is as fast; accuracy is of the test images."""
    found = []
    for peer in (row for row in rows if not row.ours and row.measured):
        able = [row for row in rows if row.ours and row.measured and (row.top1 or 0.0) >= (peer.top1 or 0.0) - WITHIN]
        best = min(able, key=COSTS[objective], default=None)
        matched = best is not None and objective not in _faster(best, peer)
        found.append(f"{peer.name} by {best.name if best is not None and matched else 'nothing of ours'}")
    told = ", ".join(found) or "no peer has figures"
    return f"for {objective}, as accurate within {WITHIN:g} points and as fast: {told}"


def _against(ours: Contender | None, peer: Contender) -> str:
    if not peer.measured:
        return f"{peer.name}: no figures, because {peer.reason}"
    if ours is None:
        how = f"python -m export {peer.model} --formats {peer.format} --precisions int8"
        return f"{peer}: nothing of ours to hold against it; run: {how}"
    if not ours.measured:
        return f"{peer}: we lose, ours failed"
    return f"{peer}; our {ours}: {_judged(ours, peer, list(COSTS))}"


def _judged(ours: Contender, peer: Contender, objectives: list[str]) -> str:
    """In what we lose: accuracy, and speed; where a peer is faster and less accurate, both with their figures."""
    gap = (peer.top1 or 0.0) - (ours.top1 or 0.0)
    faster = [name for name in _faster(ours, peer) if name in objectives]
    lost = ([_accuracy(ours, peer)] if gap > WITHIN else []) + (faster if gap >= -WITHIN else [])
    if lost:
        return f"we lose in {' and '.join(lost)}"
    if faster:
        told = " and ".join(f"{name} ({FIGURES[name](peer)} against {FIGURES[name](ours)})" for name in faster)
        return f"it is better in {told} and {-gap:.2f} points less accurate ({peer.top1:.2f}% against {ours.top1:.2f}%)"
    return "we lose in nothing"


def _accuracy(ours: Contender, peer: Contender) -> str:
    """In words, with how likely it is that two equally good models differ as much on so many images."""
    if peer.name not in ours.beside:
        return "accuracy"
    p = Flips.of(*ours.beside[peer.name]).p
    return f"accuracy (McNemar's p = {p:.2g}{', which may be chance' if p >= CHANCE else ''})"


def _faster(ours: Contender, peer: Contender) -> list[str]:
    """In what a peer is faster by more than what counts as the same."""
    assert ours.p50_ms and ours.images_per_s and peer.p50_ms and peer.images_per_s
    ratios = {"latency": ours.p50_ms / peer.p50_ms, "throughput": peer.images_per_s / ours.images_per_s}
    return [name for name, ratio in ratios.items() if ratio >= FASTER]


def table(rows: list[Contender]) -> rich.table.Table:
    """One row a contender, failed ones too (the verdicts say why); the best of ours once more below its model's."""
    caption = "ms: p50 at batch 1; images/s: at batch 32; in brackets: the best of ours for that aim"
    shown = rich.table.Table(box=rich.box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, caption=caption)
    shown.add_column("contender", no_wrap=True)
    for name in ("top-1", "ms", "images/s", "kB"):
        shown.add_column(name, justify="right", no_wrap=True)
    for model in dict.fromkeys(row.model for row in rows):
        of_model = [row for row in rows if row.model == model]
        best = [(objective, best_of_ours(of_model, objective)) for objective in COSTS]
        named = [(row.name, row) for row in of_model]
        for name, row in [*named, *((f"{row.name} ({what})", row) for what, row in best if row)]:
            figures = ["failed", "", "", ""]
            if row.measured:
                rate, size = f"{row.images_per_s:,.0f}", f"{(row.size_bytes or 0) / 1000:,.0f}"
                figures = [f"{row.top1:.2f}%", f"{row.p50_ms:.4f}", rate, size]
            shown.add_row(f"{model}/{name}", *figures)
    return shown


def markdown(rows: list[Contender]) -> list[str]:
    """The lines of the same table for a page; ours are bold."""
    lines = [
        "| model | contender | top-1, % | p50 ms, batch 1 | images/s, batch 32 | kB |",
        "|---|---|--:|--:|--:|--:|",
    ]
    for row in rows:
        name = f"**{row.name}**" if row.ours else row.name
        figures = ["failed", "", "", ""]
        if row.measured:
            rate, size = f"{row.images_per_s:,.0f}", f"{(row.size_bytes or 0) / 1000:,.0f}"
            figures = [f"{row.top1:.2f}", f"{row.p50_ms:.3f}", rate, size]
        lines.append(f"| {row.model} | {name} | {' | '.join(figures)} |")
    return lines
