"""The plots of the report, as SVG."""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from ddt_accel.report.labels import Label, place

BLUE, ORANGE, GREEN, GREY = "#1f5fbf", "#d9730d", "#2e8b57", "#777777"
BLACK, PURPLE = "#1c2330", "#7b3fa0"
SIZE = 9.5  # of letters, in points


@dataclass(frozen=True, kw_only=True)
class Curve:
    """One way of being faster: speed-up, dB, and what each point is. A single point may have its name beside it."""

    name: str
    color: str
    marker: str
    speedups: Sequence[float]
    decibels: Sequence[float]
    labels: Sequence[str]
    important: bool = False


def similarity_heatmap(similarity: NDArray[np.float64], refresh_steps: tuple[int, ...]) -> str:
    """The similarity of the encoder's states, and the block of steps that each refresh serves."""
    figure = Figure(figsize=(5.0, 4.2), layout="constrained")
    axes = figure.subplots()
    picture = axes.imshow(similarity, cmap="viridis", origin="lower", interpolation="nearest")
    figure.colorbar(picture, ax=axes, label="cosine similarity of the encoder's states", shrink=0.9)
    ends = (*refresh_steps[1:], len(similarity))
    for start, end in zip(refresh_steps, ends, strict=True):
        box = np.array([start, start, end, end, start]) - 0.5
        axes.plot(box, np.roll(box, -1)[[0, 1, 2, 3, 0]], color="white", linewidth=1.1)
        axes.plot(
            start,
            start,
            marker="o",
            markersize=5.5,
            color=ORANGE,
            markeredgecolor="white",
            markeredgewidth=0.7,
            clip_on=False,
        )
    axes.set_xlabel("step")
    axes.set_ylabel("step")
    return _svg(figure)


def speed_nearness(curves: Sequence[Curve], nearness: str, *, front: bool) -> str:
    """Decibels over measured speed-up, one line a way to be faster; what matters most comes first.

    With a `front` what nothing beats in both is underlaid. Made to be read at the width of a phone.
    """
    lines_of_names = (len(curves) + front + 1) // 2
    figure = Figure(figsize=(5.0, 4.7 + 0.2 * max(0, lines_of_names - 4)), layout="constrained")
    axes = figure.subplots()
    axes.set_xscale("log")
    for order, curve in enumerate(curves):
        axes.plot(curve.speedups, curve.decibels, color=curve.color, marker=curve.marker, label=curve.name,
                  markersize=11 if curve.important else 5, linewidth=1.4, zorder=10 - order / 10,
                  markeredgecolor="white", markeredgewidth=0.6)  # fmt: skip
    if front:
        best = np.array(pareto_front([xy for c in curves for xy in zip(c.speedups, c.decibels, strict=True)]))
        axes.plot(
            *best.T, color=ORANGE, alpha=0.22, linewidth=9, solid_capstyle="round", zorder=1, label="Pareto front"
        )
    axes.set_xlabel("speed-up over the unshared baseline", fontsize=SIZE)
    axes.set_ylabel(nearness, fontsize=SIZE)
    axes.tick_params(labelsize=SIZE)
    low, high = axes.get_xlim()
    ticks = [tick for tick in (1, 1.5, 2, 3, 4, 6, 8, 12, 16, 24, 32) if low <= tick <= high]
    axes.set_xticks(ticks, [f"{tick:g}×" for tick in ticks])
    axes.minorticks_off()
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.margins(y=0.08)
    figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize=SIZE)
    labels = [
        Label(x=x, y=y, text=text, color=curve.color, bold=curve.important, needed=curve.important)
        for curve in curves
        for x, y, text in zip(curve.speedups, curve.decibels, curve.labels, strict=True)
        if text
    ]
    lines = [np.column_stack([curve.speedups, curve.decibels]) for curve in curves]
    place(figure, axes, labels, lines, SIZE - 1)
    return _svg(figure)


def pareto_front(points: Iterable[tuple[float, float]]) -> list[tuple[float, float]]:
    """Those that no other beats in both numbers, from the largest first number down."""
    front: list[tuple[float, float]] = []
    for x, y in sorted(points, reverse=True):
        if not front or y > front[-1][1]:
            front.append((x, y))
    return front


def loss_curve(images: Sequence[int], losses: Sequence[float]) -> str:
    """Training loss over images seen."""
    figure = Figure(figsize=(6.4, 3.4), layout="constrained")
    axes = figure.subplots()
    axes.plot(np.array(images) / 1e6, losses, color=BLUE, linewidth=1)
    axes.set_xlabel("million images seen")
    axes.set_ylabel("flow-matching loss")
    axes.set_ylim(min(losses) * 0.97, float(np.quantile(losses, 0.97)) * 1.02)
    axes.grid(alpha=0.25)
    return _svg(figure)


def routed_shares(shares: dict[str, NDArray[np.float64]]) -> str:
    """What routers leave on over t, from noise (0) to data (1): a line for each kind of part, values at times evenly
    spread."""
    figure = Figure(figsize=(6.4, 3.8), layout="constrained")
    axes = figure.subplots()
    looks = ((BLUE, "-"), (ORANGE, "-"), (GREEN, "-"), (PURPLE, "--"))  # the last two often lie on each other
    for (name, values), (color, style) in zip(shares.items(), looks, strict=False):
        times = (np.arange(len(values)) + 0.5) / len(values)
        axes.plot(times, values, style, color=color, linewidth=1.3, label=name)
    axes.set_xlabel("t, from noise to picture")
    axes.set_ylabel("share that runs")
    axes.set_ylim(0, 1.05)
    axes.grid(alpha=0.25)
    figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize=SIZE)
    return _svg(figure)


def _svg(figure: Figure) -> str:
    # Text stays text, and equal input gives equal bytes.
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "ddt-accel", "font.family": "sans-serif"}):
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    text = buffer.getvalue()
    return text[text.index("<svg") :]
