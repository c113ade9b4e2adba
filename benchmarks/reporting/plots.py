"""The report's picture as a function of its lines: of every variant the latency, the size and the change of accuracy.

A row is a variant, the fastest of its model first; a block is a model, for the models lie many points of accuracy apart
and what became of each only tenths. A hollow point is fp32, a bold name the choice, a grey one what cannot be served.
Bars of the latency span the passes, those of the change are its paired 95% interval; the line at 0 is the float parent,
the dotted one what the choice may lose. Faint points strayed below their floor and may not be taken.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from benchmarks.judging.compare import BUDGET_POINTS, Group, Line
from benchmarks.reporting import words
from benchmarks.reporting.palette import CSS, LIGHT, MODELS, VARIABLES, Theme
from catalog import servable

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

NAME, TITLE = "variants", "Latency, size and accuracy of every variant"
FAR = 2.0  # points of change, beyond which the axis becomes logarithmic
TICKS = [sign * size for size in (0.5, 1, 2, 5, 10, 20, 50) for sign in (-1, 1)]
ROW, TOP, FOOT = 13.0, 22.0, 36.0  # heights in the figure's points: of a row, above and below all of them
GAP = 0.6  # of a row, above a model
Span = tuple[float, float]
Row = tuple[float, str, Line | None]  # how far down, in rows; a model, and a line of it or none for its name


@dataclass(frozen=True)
class Column:
    """One of the picture's columns; `bar` is what lies around the figure."""

    title: str
    short: str
    of: Callable[[Line], float | None]
    bar: Callable[[Line], Span | None]


COLUMNS = (
    Column(
        "ms for one image (p50)",
        "ms, p50",
        lambda line: line.row.p50_ms,
        lambda line: (line.detail.p50_low_ms, line.detail.p50_high_ms) if line.detail else None,
    ),
    Column(
        "kB on disk",
        "kB",
        lambda line: None if line.row.size_bytes is None else line.row.size_bytes / 1000,
        lambda line: None,
    ),
    Column("change of top-1, points", "points", lambda line: line.change_points, lambda line: line.change_span),
)


def png(group: Group, theme: Theme = LIGHT) -> bytes:
    """The picture as a PNG, 1,254 pixels wide."""
    file = io.BytesIO()
    draw(group, theme).savefig(file, format="png", dpi=190, metadata={"Software": None})
    return file.getvalue()


def svg(group: Group, narrow: bool = False) -> str:
    """The picture as an inline SVG element without a background, coloured by the page's CSS variables."""
    import matplotlib

    file, key = io.StringIO(), f"{NAME}-{group.slug}-{'narrow' if narrow else 'wide'}"
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": key}):
        draw(group, CSS, narrow).savefig(file, format="svg", transparent=True, metadata={"Date": None})
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
    label = f"{TITLE}: {len(_drawn(group))} variants on {group.dataset}; the same figures are in the table."
    return text.replace("<svg", f'<svg role="img" aria-label="{label}"', 1).strip()


def draw(group: Group, theme: Theme, narrow: bool = False) -> Figure:
    """The picture as a Matplotlib figure, laid out at 72 points an inch: 475 wide, or 317 for a telephone."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows = _rows(group)
    deepest = max([3.0, *(place for place, _, _ in rows)])
    width, height = 317.0 if narrow else 475.0, TOP + FOOT + ROW * (deepest + 1)
    figure = Figure(figsize=(width / 72, height / 72), dpi=72, facecolor=theme.surface)
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, len(COLUMNS), sharey=True)
    left = (96 if narrow else 122) / width
    figure.subplots_adjust(left=left, right=0.975, bottom=FOOT / height, top=1 - TOP / height, wspace=0.2)
    lines = [line for _, _, line in rows if line]
    for column, axes in zip(COLUMNS, panels, strict=True):
        _frame(axes, column.short if narrow else column.title, theme)
        if lines:
            (_scale_change if column is COLUMNS[-1] else _scale_cost)(axes, column, lines, theme)
        for place, model, line in rows:
            if line:
                _point(axes, place, line, column, theme.models[group.models.index(model) % MODELS], theme)
    panels[0].set_ylim(deepest + 0.5, -0.5)
    _names(panels[0], rows, group, theme, 8.0 if narrow else 9.0)
    told = "bold: the choice; hollow: fp32; grey: cannot be served" + ("" if narrow else "; bars: passes, 95% interval")
    figure.text(0.012, 7 / height, told, color=theme.muted, fontsize=8 if narrow else 9)
    return figure


def _drawn(group: Group) -> list[Line]:
    return [line for line in group.lines if line.change_points is not None and line.row.p50_ms]


def _rows(group: Group) -> list[Row]:
    """From top to bottom: of every model its name, then its lines, the fastest first."""
    rows, place = list[Row](), 0.0
    for model in group.models:
        lines = sorted((x for x in _drawn(group) if x.row.variant.model == model), key=lambda x: x.row.p50_ms or 0)
        if lines:
            rows += [(place + i, model, line) for i, line in enumerate([None, *lines])]
            place = rows[-1][0] + 1 + GAP
    return rows


def _frame(axes: Axes, title: str, theme: Theme) -> None:
    axes.set_facecolor("none")
    axes.grid(True, axis="x", color=theme.grid, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(colors=theme.muted, length=0, labelsize=8.5, pad=4, which="both")
    axes.tick_params(axis="y", labelleft=False)
    for side in axes.spines.values():
        side.set_visible(False)
    axes.set_title(title, color=theme.muted, fontsize=9, loc="left", pad=7)


def _scale_cost(axes: Axes, column: Column, lines: list[Line], theme: Theme) -> None:
    """Logarithmic with plain numbers."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    values = [edge for line in lines for edge in (column.bar(line) or ()) if edge > 0]
    values += [value for line in lines if (value := column.of(line))]
    low, high = min(values), max(values)
    room = max(1.3, (high / low) ** 0.06)
    axes.set_xscale("log")
    axes.set_xlim(low / room, high * room)
    subs = (1.0, 2.0, 5.0) if high / low < 15 else (1.0, 3.0) if high / low < 50 else (1.0,)
    axes.xaxis.set_major_locator(LogLocator(subs=subs))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.10g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())


def _scale_change(axes: Axes, column: Column, lines: list[Line], theme: Theme) -> None:
    """Linear as far as the changes are small, with the float parent's line and the budget's."""
    from matplotlib.ticker import FuncFormatter, NullLocator

    edges = [edge for line in lines for edge in (column.bar(line) or (column.of(line) or 0.0,))]
    low, high = min([-BUDGET_POINTS, *edges]), max([0.0, *edges])
    room = 0.08 * (high - low)
    if max(-low, high) > FAR:
        axes.set_xscale("symlog", linthresh=1, linscale=1.5)
        axes.set_xticks([tick for tick in (0, *TICKS) if low - room <= tick <= high + room])
        axes.xaxis.set_minor_locator(NullLocator())
    else:
        axes.locator_params(axis="x", nbins=4, steps=[1, 2.5, 5, 10])
    axes.set_xlim(low - room, high + room)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: _signed(value)))
    axes.axvline(0, color=theme.muted, linewidth=1.0, zorder=1.5)
    axes.axvline(-BUDGET_POINTS, color=theme.muted, linewidth=1.2, linestyle=(0, (1, 2)), zorder=1.5)


def _signed(value: float) -> str:
    text = f"{abs(value):.4g}"
    return text if text == "0" else ("+" if value > 0 else "\N{MINUS SIGN}") + text


def _point(axes: Axes, place: float, line: Line, column: Column, colour: str, theme: Theme) -> None:
    value = column.of(line)
    if value is None:
        return
    faint = 0.45 if line.row.status == "below-floor" else 1.0
    if bar := column.bar(line):
        axes.hlines(place, *bar, color=colour, linewidth=2.0, alpha=0.5 * faint, zorder=3)
    fill = theme.surface if line.row.variant.precision == "fp32" else colour
    style: dict[str, Any] = {"markersize": 6, "markeredgewidth": 1.5, "linestyle": "none", "zorder": 4, "alpha": faint}
    axes.plot([value], [place], marker="o", markerfacecolor=fill, markeredgecolor=colour, **style)


def _names(axes: Axes, rows: list[Row], group: Group, theme: Theme, size: float) -> None:
    """What stands left of the first column: models with the accuracy of their float parent, and variants."""
    edge: dict[str, Any] = {"xycoords": ("figure fraction", "data"), "va": "center_baseline", "annotation_clip": False}
    for place, model, line in rows:
        if line is None:
            told: dict[str, Any] = {"color": theme.models[group.models.index(model) % MODELS], "fontsize": size + 1}
            name = axes.annotate(model, (0.012, place), fontweight="bold", **told, **edge)
            right = group.parent_top1(model)
            after = (name.get_window_extent().x1 + 7, place)
            style = {**edge, "xycoords": ("figure points", "data"), "color": theme.muted, "fontsize": size}
            axes.annotate(f"{words.percent(right)}% in float", after, **style)
            continue
        variant = line.row.variant
        colour = theme.ink if servable(variant) and line.row.status == "ok" else theme.muted
        weight = "bold" if line.chosen else "normal"
        axes.annotate(variant.version, (0.03, place), color=colour, fontsize=size, fontweight=weight, **edge)
    if not rows:
        axes.annotate("nothing measured", (0.03, 1), color=theme.muted, fontsize=size, **edge)


def summary(group: Group) -> str:
    """What the picture shows in one sentence, for those who do not see it."""
    said = []
    for model in group.models:
        if line := group.chosen(model):
            told = f"{words.digits(line.row.p50_ms, 2)} ms, {words.kilobytes(line.row.size_bytes)} kB"
            said.append(f"{line.row.variant} ({told}, {words.points(line.change_points)} points)")
    return f"The choice of each model: {', '.join(said)}." if said else "No variant can be chosen."
