"""Writes the names of a plot's points into it."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.reporting.labels import Box, place
from benchmarks.reporting.palette import Theme

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@dataclass(frozen=True)
class Named:
    """A drawn point and its name; positions in the figure's points, at 72 an inch."""

    text: str
    at: tuple[float, float]
    interval: tuple[float, float]  # of the error bar, vertically
    spread: tuple[float, float]  # of the other one, horizontally
    colour: str
    ahead: bool  # on the front or chosen: written bold


def name_points(axes: Axes, points: list[Named], theme: Theme) -> None:
    """Names the points, the first ones first; a name without room is left out."""
    size = 9.5 if len(points) <= 12 else 8.5
    frame = axes.bbox
    inside = Box(frame.x0, frame.y0, frame.x1 + 8, frame.y1)
    sizes = [_extent(axes, point, size) for point in points]
    places = place([point.at for point in points], sizes, _obstacles(points), inside, _soft(axes, points))
    for point, found in zip(points, places, strict=True):
        if found is None:
            continue
        box, weight = found.box, _weight(point)
        style: dict[str, Any] = {
            "color": point.colour,
            "fontsize": size,
            "fontweight": weight,
            "annotation_clip": False,
            "zorder": 3.5,  # above the error bars, below the markers
            "bbox": {"facecolor": theme.surface, "edgecolor": "none", "alpha": 0.85, "pad": 0.5},
        }
        axes.annotate(point.text, (box.x0, box.y0 + 2), xycoords="figure points", **style)
        if found.led:
            end = (min(max(point.at[0], box.x0), box.x1), min(max(point.at[1], box.y0), box.y1))
            arrow = {"arrowstyle": "-", "color": theme.muted, "linewidth": 0.7, "shrinkA": 1, "shrinkB": 6}
            axes.annotate("", point.at, end, xycoords="figure points", arrowprops=arrow, zorder=2)


def _weight(point: Named) -> str:
    return "bold" if point.ahead else "normal"


def _extent(axes: Axes, point: Named, size: float) -> tuple[float, float]:
    probe = axes.text(0, 0, point.text, fontsize=size, fontweight=_weight(point))
    extent = probe.get_window_extent()
    probe.remove()
    return extent.width, extent.height


def _obstacles(points: list[Named]) -> list[Box]:
    return [Box(x - 7, y - 7, x + 7, y + 7) for x, y in (point.at for point in points)]


def _soft(axes: Axes, points: list[Named]) -> list[Box]:
    """Error bars and the stepped front as thin boxes: a name may cross them, but had better not."""
    boxes = [Box(p.at[0] - 2, p.interval[0] - 1, p.at[0] + 2, p.interval[1] + 1) for p in points]
    boxes += [Box(p.spread[0], p.at[1] - 2, p.spread[1], p.at[1] + 2) for p in points]
    for line in axes.lines:
        if line.get_gid() == "front":
            corners = axes.transData.transform(np.asarray(line.get_xydata()))
            for (x0, y0), (x1, y1) in itertools.pairwise(corners):
                boxes.append(Box(x0, y0 - 1.5, x1, y0 + 1.5))
                boxes.append(Box(x1 - 1.5, min(y0, y1), x1 + 1.5, max(y0, y1)))
    return boxes
