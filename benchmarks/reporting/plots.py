"""The report's two plots as functions of its lines: accuracy against latency, accuracy against size.

Colour is the model, marker the format, a hollow marker fp32; vertical bars are Wilson 95% intervals, horizontal ones
the spread of the median over the run. What lies under the stepped line, the Pareto front, is beaten by a point on it;
faint points strayed below their floor, may not be taken, and beat nobody.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from benchmarks.judging.compare import Group, Line
from benchmarks.judging.fronts import LATENCY_PAIR, SIZE_PAIR
from benchmarks.reporting import words
from benchmarks.reporting.naming import Named, name_points
from benchmarks.reporting.palette import CSS, LIGHT, MODELS, VARIABLES, Theme, marker

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Kind:
    """One of the plots: what its horizontal axis is."""

    name: str
    title: str
    x_label: str
    cost: Callable[[Line], float | None]
    spread: Callable[[Line], tuple[float, float] | None]
    front: Callable[[Line], bool]


def _p50_spread(line: Line) -> tuple[float, float] | None:
    return (line.detail.p50_low_ms, line.detail.p50_high_ms) if line.detail else None


LATENCY = Kind(
    "accuracy-latency",
    "Accuracy against latency",
    "milliseconds for one image (p50), less is better",
    lambda line: line.row.p50_ms,
    _p50_spread,
    lambda line: LATENCY_PAIR in line.pareto,
)
SIZE = Kind(
    "accuracy-size",
    "Accuracy against size",
    "kilobytes on disk, less is better",
    lambda line: None if line.row.size_bytes is None else line.row.size_bytes / 1000,
    lambda line: None,
    lambda line: SIZE_PAIR in line.pareto,
)
KINDS = (LATENCY, SIZE)


def png(group: Group, kind: Kind, theme: Theme = LIGHT) -> bytes:
    """The plot as a PNG, 1,254 pixels wide."""
    file = io.BytesIO()
    draw(group, kind, theme).savefig(file, format="png", dpi=190, metadata={"Software": None})
    return file.getvalue()


def svg(group: Group, kind: Kind, narrow: bool = False) -> str:
    """The plot as an inline SVG element without a background, coloured by the page's CSS variables."""
    import matplotlib

    file, key = io.StringIO(), f"{kind.name}-{group.slug}-{'narrow' if narrow else 'wide'}"
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": key}):
        draw(group, kind, CSS, narrow).savefig(file, format="svg", transparent=True, metadata={"Date": None})
    text = file.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r"<!--.*?-->\s*", "", text, flags=re.DOTALL)
    text = re.sub(r'\bid="', f'id="{key}-', text)
    text = re.sub(r'(href="|url\()#', rf"\1#{key}-", text)
    text = re.sub(r' (?:width|height)="[\d.]+pt"', "", text, count=2)
    text = re.sub(r"'DejaVu Sans'[^;\"]*", "var(--font)", text)
    for colour, variable in VARIABLES.items():
        text = text.replace(colour, variable)
    label = f"{kind.title}: {len(_points(group, kind))} variants on {group.dataset}; the same figures are in the table."
    return text.replace("<svg", f'<svg role="img" aria-label="{label}"', 1).strip()


def draw(group: Group, kind: Kind, theme: Theme, narrow: bool = False) -> Figure:
    """The plot as a Matplotlib figure, laid out at 72 points an inch: 475 wide, or 317 for a telephone."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.4, 5.0) if narrow else (6.6, 4.6), dpi=72, facecolor=theme.surface)
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    lines = _points(group, kind)
    _frame(axes, lines, kind, theme)
    _front(axes, lines, kind, theme)
    for line in lines:
        _point(axes, line, group, kind, theme)
    top = round(_legend(figure, lines, group, theme, 4 if narrow else 5) - 0.062, 2)
    figure.subplots_adjust(left=0.12 if narrow else 0.09, right=0.975, bottom=0.12, top=top)
    ranked = sorted(lines, key=lambda line: (not line.chosen, not kind.front(line), line.row.status != "ok"))
    first = {line.row.variant.model: line for line in reversed(ranked)} if len(group.models) > 1 else {}
    points = [_named(axes, line, kind, _colour(group, line, theme), line in first.values()) for line in ranked]
    name_points(axes, points, theme)
    return figure


def _points(group: Group, kind: Kind) -> list[Line]:
    return [line for line in group.lines if line.row.accuracy is not None and kind.cost(line)]


def _at(line: Line, kind: Kind) -> tuple[float, float]:
    assert line.row.accuracy is not None
    return kind.cost(line) or 0.0, line.row.accuracy.top1


def _frame(axes: Axes, lines: list[Line], kind: Kind, theme: Theme) -> None:
    axes.set_facecolor("none")
    axes.grid(True, color=theme.grid, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(colors=theme.muted, length=0, labelsize=9.5, pad=5, which="both")
    for side in axes.spines.values():
        side.set_visible(False)
    axes.set_xlabel(kind.x_label, color=theme.muted, fontsize=10, labelpad=6)
    axes.set_title("top-1 accuracy, %", color=theme.muted, fontsize=10, loc="left", pad=8)
    if not lines:
        axes.text(0.5, 0.5, "nothing measured", color=theme.muted, ha="center", transform=axes.transAxes)
        return
    _scale_x(axes, [_at(line, kind)[0] for line in lines])
    low = min(line.row.accuracy.low for line in lines if line.row.accuracy)
    high = max(line.row.accuracy.high for line in lines if line.row.accuracy)
    room = max(high - low, 1.0) * 0.12
    axes.set_ylim(low - room, high + room)
    axes.locator_params(axis="y", nbins=6)
    axes.set_yticks([tick for tick in axes.get_yticks() if low - room <= tick <= min(100, high + room)])


def _scale_x(axes: Axes, values: list[float]) -> None:
    """Logarithmic with plain numbers where the costs differ much, from zero where they do not."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    low, high = min(values), max(values)
    if high / low < 2.5:
        axes.set_xlim(0, high * 1.2)
        return
    axes.set_xscale("log")
    room = (high / low) ** 0.13
    axes.set_xlim(low / room, high * room)
    subs = (1.0, 2.0, 5.0) if high / low < 15 else (1.0, 3.0) if high / low < 150 else (1.0,)
    axes.xaxis.set_major_locator(LogLocator(subs=subs))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.10g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())


def _front(axes: Axes, lines: list[Line], kind: Kind, theme: Theme) -> None:
    ahead = sorted(_at(line, kind) for line in lines if kind.front(line))
    if ahead:
        x, y = [p[0] for p in ahead], [p[1] for p in ahead]
        right = axes.get_xlim()[1]
        axes.step(
            [*x, right],
            [*y, y[-1]],
            where="post",
            color=theme.muted,
            linewidth=1.2,
            dashes=(4, 3),
            zorder=2,
            gid="front",
        )


def _colour(group: Group, line: Line, theme: Theme) -> str:
    return theme.models[group.models.index(line.row.variant.model) % MODELS]


def _forms(lines: list[Line]) -> list[str]:
    return sorted({line.row.variant.format for line in lines})


def _point(axes: Axes, line: Line, group: Group, kind: Kind, theme: Theme) -> None:
    (x, y), colour, accuracy = _at(line, kind), _colour(group, line, theme), line.row.accuracy
    assert accuracy is not None
    axes.vlines(x, accuracy.low, accuracy.high, color=colour, linewidth=1.4, alpha=0.45, zorder=3)
    if spread := kind.spread(line):
        axes.hlines(y, *spread, color=colour, linewidth=1.4, alpha=0.45, zorder=3)
    fill = theme.surface if line.row.variant.precision == "fp32" else colour
    shape = marker(line.row.variant.format, _forms(_points(group, kind)))
    faint = 0.45 if line.row.status == "below-floor" else 1.0
    style: dict[str, Any] = {"markersize": 8, "markeredgewidth": 1.8, "linestyle": "none", "zorder": 4, "alpha": faint}
    axes.plot([x], [y], marker=shape, markerfacecolor=fill, markeredgecolor=colour, **style)


def _named(axes: Axes, line: Line, kind: Kind, colour: str, with_model: bool) -> Named:
    """What naming has to know of a point, in the figure's points."""
    at, accuracy, variant = _at(line, kind), line.row.accuracy, line.row.variant
    assert accuracy is not None
    x, y = axes.transData.transform(at)
    low, high = (axes.transData.transform((at[0], edge))[1] for edge in (accuracy.low, accuracy.high))
    left, right = (axes.transData.transform((edge, at[1]))[0] for edge in kind.spread(line) or (at[0], at[0]))
    text = f"{variant.model} {variant.version}" if with_model else variant.version
    return Named(text, (x, y), (low, high), (left, right), colour, line.chosen or kind.front(line))


def _legend(figure: Figure, lines: list[Line], group: Group, theme: Theme, columns: int) -> float:
    """Above the plot: models by colour; below them formats by marker, precision by filling, and the front.

    Gives where it ends, as a share of the figure's height.
    """
    from matplotlib.lines import Line2D

    def key(label: str, **style: Any) -> Line2D:
        shown = {"linestyle": "none", "markersize": 7, "markeredgewidth": 1.6, "color": theme.muted, **style}
        return Line2D([], [], label=label, **shown)

    models = []
    if len(group.models) > 1:
        present = [model for model in group.models if any(line.row.variant.model == model for line in lines)]
        colours = {model: theme.models[group.models.index(model) % MODELS] for model in present}
        models = [key(m, marker="o", markeredgecolor=c, markerfacecolor=c) for m, c in colours.items()]
    forms = _forms(lines)
    kinds = [key(form, marker=marker(form, forms), markerfacecolor=theme.surface) for form in forms]
    if filled := sorted({line.row.variant.precision for line in lines} - {"fp32"}):
        kinds.append(key(", ".join(filled), marker="o"))
    if lines:
        kinds.append(key("Pareto front", linestyle=(0, (4, 3)), linewidth=1.2))
    style: dict[str, Any] = {"loc": "upper left", "frameon": False, "labelcolor": theme.ink, "fontsize": 9.5}
    style |= {"handletextpad": 0.3, "columnspacing": 1.1, "borderaxespad": 0.2}
    top = 1.0
    for row in (models, kinds):
        if row:
            deep = math.ceil(len(row) / columns)
            figure.legend(handles=row, bbox_to_anchor=(0.0, top), ncols=math.ceil(len(row) / deep), **style)
            top -= 0.058 * deep
    return top


def summary(group: Group, kind: Kind) -> str:
    """What the plot shows in one sentence, for those who do not see it."""
    ahead = sorted((line for line in _points(group, kind) if kind.front(line)), key=lambda line: _at(line, kind))
    named = ", ".join(
        f"{x.row.variant} ({words.percent(x.row.accuracy.top1 if x.row.accuracy else None)}%)" for x in ahead
    )
    return f"On the Pareto front: {named}." if ahead else "Nothing was measured."
