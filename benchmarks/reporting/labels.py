"""Puts names beside points so that none covers a point, an error bar or another name."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

RADII = (8.0, 13.0, 19.0, 27.0, 37.0, 50.0)
LED = 19.0  # a name further off than this gets a line to its point
# Degrees, and to which side of the arm's end the name lies: -1 left of it, 0 centred, 1 right. The most pleasing first.
ARMS = (
    *((20, 1.0), (-20, 1.0), (160, -1.0), (-160, -1.0), (60, 1.0), (-60, 1.0), (120, -1.0), (-120, -1.0)),
    *((90, 0.0), (-90, 0.0), (90, 0.5), (-90, 0.5), (90, -0.5), (-90, -0.5), (0, 1.0), (180, -1.0)),
)


@dataclass(frozen=True)
class Box:
    """A rectangle in the figure's points."""

    x0: float
    y0: float
    x1: float
    y1: float

    def overlap(self, other: Box) -> float:
        """The area that both cover."""
        width = min(self.x1, other.x1) - max(self.x0, other.x0)
        height = min(self.y1, other.y1) - max(self.y0, other.y0)
        return max(0.0, width) * max(0.0, height)

    def distance(self, point: tuple[float, float]) -> float:
        """How far a point lies from the nearest side; 0 inside."""
        dx = max(self.x0 - point[0], 0.0, point[0] - self.x1)
        dy = max(self.y0 - point[1], 0.0, point[1] - self.y1)
        return math.hypot(dx, dy)

    def within(self, other: Box) -> bool:
        """Whether it lies wholly inside the other."""
        return self.x0 >= other.x0 and self.y0 >= other.y0 and self.x1 <= other.x1 and self.y1 <= other.y1


@dataclass(frozen=True)
class Place:
    """Where a name goes: its lower left corner, and whether it is so far off that a line should lead to it."""

    box: Box
    led: bool


def place(
    anchors: Sequence[tuple[float, float]],
    sizes: Sequence[tuple[float, float]],
    obstacles: Sequence[Box],
    frame: Box,
    soft: Sequence[Box] = (),
) -> list[Place | None]:
    """A place for each name, given in the order of importance; None for one that fits nowhere.

    Args:
        anchors: The points to name.
        sizes: Width and height of each name.
        obstacles: What no name may cover.
        frame: What every name must stay inside.
        soft: What a name had better not cover, such as a line.
    """
    taken, places, named = list(obstacles), list[Place | None](), list[Box]()
    for anchor, size in zip(anchors, sizes, strict=True):
        best, best_cost = None, math.inf
        for radius in RADII:
            if radius >= best_cost:
                break
            for rank, (angle, lean) in enumerate(ARMS):
                box = _beside(anchor, size, radius, angle, lean)
                if not box.within(frame) or any(box.overlap(other) for other in taken):
                    continue
                if radius > LED and any(_crosses(anchor, box, name) for name in named):
                    continue
                own = box.distance(anchor)
                mistaken = any(other != anchor and box.distance(other) < own - 1 for other in anchors)
                if mistaken and radius <= LED:
                    continue  # without a line it would be read as another point's
                cost = radius + 0.6 * rank + 0.25 * sum(box.overlap(other) for other in soft) + 10 * mistaken
                if cost < best_cost:
                    best, best_cost = Place(box, radius > LED), cost
        if best is not None:
            taken.append(best.box)
            named.append(best.box)
        places.append(best)
    return places


def _crosses(anchor: tuple[float, float], box: Box, name: Box) -> bool:
    """Whether the line from a point to its name would run through another name."""
    x, y = (box.x0 + box.x1) / 2, (box.y0 + box.y1) / 2
    steps = [(anchor[0] + (x - anchor[0]) * i / 12, anchor[1] + (y - anchor[1]) * i / 12) for i in range(13)]
    return any(name.distance(step) == 0 for step in steps)


def _beside(anchor: tuple[float, float], size: tuple[float, float], radius: float, angle: float, lean: float) -> Box:
    """The box at the end of an arm from the anchor."""
    cos, sin = math.cos(math.radians(angle)), math.sin(math.radians(angle))
    vertical = 0.0 if abs(sin) < 0.2 else math.copysign(1.0, sin)
    x0 = anchor[0] + radius * cos - size[0] / 2 * (1 - lean)
    y0 = anchor[1] + radius * sin - size[1] / 2 * (1 - vertical)
    return Box(x0, y0, x0 + size[0], y0 + size[1])
