"""The two plots of the report, as SVG."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

BLUE, ORANGE, GREEN, GREY = "#1f5fbf", "#d9730d", "#2e8b57", "#777777"


@dataclass(frozen=True, kw_only=True)
class Curve:
    """One line of the speed/fidelity plot: speed-up, PSNR in dB (or negative log error) and what each point is."""

    name: str
    color: str
    marker: str
    speedups: Sequence[float]
    fidelities: Sequence[float]
    labels: Sequence[str]


def similarity_heatmap(similarity: NDArray[np.float64], refresh_steps: tuple[int, ...]) -> str:
    """The similarity of the encoder's states, and the block of steps that each refresh serves."""
    figure = Figure(figsize=(5.4, 4.6), layout="constrained")
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


def speed_fidelity(curves: Sequence[Curve], fidelity: str) -> str:
    """Fidelity over measured speed-up, one line a way to be faster."""
    figure = Figure(figsize=(7.2, 4.4), layout="constrained")
    axes = figure.subplots()
    for curve in curves:
        axes.plot(curve.speedups, curve.fidelities, color=curve.color, marker=curve.marker, markersize=4.5,
                  linewidth=1.4, label=curve.name)  # fmt: skip
        for x, y, text in zip(curve.speedups, curve.fidelities, curve.labels, strict=True):
            axes.annotate(text, (x, y), textcoords="offset points", xytext=(4, 4), fontsize=7, color=curve.color)
    axes.set_xlabel("measured speed-up over the unshared trajectory")
    axes.set_ylabel(fidelity)
    axes.grid(alpha=0.25)
    axes.legend(frameon=False)
    return _svg(figure)


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


def _svg(figure: Figure) -> str:
    # Text stays text, and equal input gives equal bytes.
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "ddt-accel", "font.family": "sans-serif"}):
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    text = buffer.getvalue()
    return text[text.index("<svg") :]
