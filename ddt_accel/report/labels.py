"""Where the labels of a plot stand, so that none lies on another, on a marker or outside."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import cast

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.transforms import Bbox
from numpy.typing import NDArray

# Directions in which a label may stand from its point, the first that is free being taken.
SIDES = ((1, 1), (-1, 1), (1, -1), (-1, -1), (0, 1), (0, -1), (1, 0), (-1, 0))
DISTANCES = (3.0, 9.0)  # points


@dataclass(frozen=True, kw_only=True)
class Label:
    """A text that belongs to a point; `needed` ones stand even where something is in the way."""

    x: float
    y: float
    text: str
    color: str
    bold: bool = False
    needed: bool = False


def place(
    figure: Figure, axes: Axes, labels: Sequence[Label], lines: Sequence[NDArray[np.float64]], size: float
) -> None:
    """Draws labels greedily, the first ones first; what finds no room is left out.

    `lines` [n, 2] are the curves in data coordinates: their points are kept clear, the lines between them where that is
    possible. The layout of the figure must be final.
    """
    figure.draw_without_rendering()
    scale, inside = figure.dpi / 72, axes.get_window_extent()
    pixels = [axes.transData.transform(line) for line in lines]
    places = np.array([(label.x, label.y) for label in labels]).reshape(-1, 2)
    points = np.concatenate([*pixels, axes.transData.transform(places)])
    along = np.concatenate([_between(line) for line in pixels])
    taken: list[Bbox] = []
    for label in labels:
        weight = "bold" if label.bold else "normal"
        text = axes.text(label.x, label.y, label.text, fontsize=size, color=label.color, weight=weight)
        own = text.get_window_extent()
        x, y = axes.transData.transform((label.x, label.y))
        best: tuple[float, Bbox] | None = None
        for distance in DISTANCES:
            for across, up in SIDES:
                left = x + across * distance * scale - (1 - across) / 2 * own.width
                bottom = y + up * distance * scale - (1 - up) / 2 * own.height
                box = Bbox.from_bounds(left, bottom, own.width, own.height)
                hidden = any(box.overlaps(other) for other in taken) or _within(box, points) > 0
                fits = inside.x0 <= box.x0 and box.x1 <= inside.x1 and inside.y0 <= box.y0 and box.y1 <= inside.y1
                cost = 1e6 * (not fits) + 1e3 * hidden + _within(box, along) + distance / 100
                if best is None or cost < best[0]:
                    best = cost, box
        cost, box = cast(tuple[float, Bbox], best)
        if cost >= 1e3 and not label.needed:
            text.remove()
            continue
        taken.append(box)
        corner = axes.transData.inverted().transform((x + box.x0 - own.x0, y + box.y0 - own.y0))
        text.set_position((float(corner[0]), float(corner[1])))


def _between(line: NDArray[np.float64]) -> NDArray[np.float64]:
    """Points along a polyline, some pixels apart."""
    share = np.linspace(0, 1, 40)[:, None]
    parts = [start + share * (end - start) for start, end in pairwise(line)]
    return np.concatenate([line, *parts])


def _within(box: Bbox, points: NDArray[np.float64]) -> int:
    return int(
        np.count_nonzero(
            (points[:, 0] > box.x0 - 2)
            & (points[:, 0] < box.x1 + 2)
            & (points[:, 1] > box.y0 - 2)
            & (points[:, 1] < box.y1 + 2)
        )
    )
