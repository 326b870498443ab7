"""Names beside points that cover neither each other nor a point, and a line only where there is no other place."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgekit.reporting.style import INK, MUTED

Box = tuple[float, float, float, float]
"""left, bottom, right, top in points of the figure."""
XY = tuple[float, float]
Dots = NDArray[np.float64]
DIRECTIONS = ((1, 0), (0, 1), (0, -1), (-1, 0), (1, 1), (1, -1), (-1, 1), (-1, -1))
DISTANCES = (7.0, 13.0, 22.0, 34.0, 48.0)
CROSSED = 20.0
"""A name that lies on a line is as bad as one that is so much further away."""
RADIUS = 4.5
GAP = 1.5


@dataclass(frozen=True, kw_only=True)
class Named:
    """A point of the axes' data and the text beside it."""

    x: float
    y: float
    text: str


def place(
    figure: Any, axes: Any, named: Sequence[Named], points: Sequence[XY], lines: Sequence[Sequence[XY]] = ()
) -> int:
    """Write each text beside its point, the first ones nearest; the number of those for which there was no room.

    `points` and `lines` are all that is drawn there. A text that had to go further away has a line to its point.
    """
    renderer = figure.canvas.get_renderer()
    frame = axes.get_window_extent(renderer)
    room = (frame.x0, frame.y0, frame.x1 + 6, frame.y1 + 6)
    taken: list[Box] = [
        (x - RADIUS, y - RADIUS, x + RADIUS, y + RADIUS) for x, y in axes.transData.transform(np.array(points))
    ]
    lined = [_dots(axes.transData.transform(np.array(line))) for line in lines]
    back = axes.transData.inverted()
    left_out = 0
    for n in named:
        centre = tuple(axes.transData.transform((n.x, n.y)))
        found = _best(centre, _size(axes, renderer, n.text), room, taken, lined)
        if found is None:
            left_out += 1
            continue
        box, leader = found
        taken.append(box)
        x, y = back.transform((box[0], (box[1] + box[3]) / 2))
        axes.text(x, y, n.text, fontsize=8, color=INK, va="center_baseline", zorder=5)
        if leader:
            lined.append(_dots(leader))
            axes.plot(*back.transform(leader).T, color=MUTED, linewidth=0.6, zorder=2)
    return left_out


def _size(axes: Any, renderer: Any, text: str) -> XY:
    """Width and height of a text in points."""
    label = axes.text(0, 0, text, fontsize=8, transform=None)
    box = label.get_window_extent(renderer)
    label.remove()
    return box.width, box.height


def _dots(line: Sequence[XY] | Dots) -> Dots:
    """Places on a line, two points from each other."""
    parts = [np.array(line, dtype=float)]
    for (x0, y0), (x1, y1) in pairwise(line):
        steps = np.linspace(0, 1, max(2, math.ceil(math.hypot(x1 - x0, y1 - y0) / 2)))[:, None]
        parts.append(np.array([[x0, y0]]) + steps * np.array([[x1 - x0, y1 - y0]]))
    return np.concatenate(parts)


def _best(
    centre: XY, size: XY, room: Box, taken: Sequence[Box], lined: Sequence[Dots]
) -> tuple[Box, tuple[XY, ...]] | None:
    """The best free place for a text of that size around a point, and the line from there to the point, or ()."""
    best: tuple[Box, tuple[XY, ...]] | None = None
    least = math.inf
    for box, distance in _places(centre, size):
        inside = box[0] >= room[0] and box[1] >= room[1] and box[2] <= room[2] and box[3] <= room[3]
        if distance >= least or not inside or any(_overlap(box, other) for other in taken):
            continue
        end = (min(max(centre[0], box[0]), box[2]), min(max(centre[1], box[1]), box[3]))
        leader = (centre, end) if distance > DISTANCES[0] else ()
        crossed = any(_crossed(box, dots) for dots in lined)
        if leader:
            others = (b for b in taken if not (b[0] < centre[0] < b[2] and b[1] < centre[1] < b[3]))
            crossed = crossed or any(_crossed(b, _dots(leader)) for b in others)
        cost = distance + CROSSED * crossed
        if cost < least:
            best, least = (box, leader), cost
    return best


def _places(centre: XY, size: XY) -> Iterator[tuple[Box, float]]:
    (x, y), (width, height) = centre, size
    for distance in DISTANCES:
        for dx, dy in DIRECTIONS:
            # Above and below, near ones may begin or end at the point itself.
            away = distance if dy == 0 or distance > DISTANCES[0] else 0.0
            left = x + dx * (away + width / 2) - width / 2
            bottom = y + dy * (distance + height / 2) - height / 2
            yield (left, bottom, left + width, bottom + height), distance


def _overlap(a: Box, b: Box) -> bool:
    return a[0] < b[2] + GAP and b[0] < a[2] + GAP and a[1] < b[3] + GAP and b[1] < a[3] + GAP


def _crossed(box: Box, dots: Dots) -> bool:
    x, y = dots[:, 0], dots[:, 1]
    return bool(((x > box[0]) & (x < box[2]) & (y > box[1]) & (y < box[3])).any())
