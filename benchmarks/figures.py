"""Draws the figures of docs/ from what benchmarks/results/ holds.

Usage: python benchmarks/figures.py [calibration.safetensors of the embedded model; made where none is given]
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ddt_accel import Calibration, SamplingSpec, calibrate, load_model
from ddt_accel.report.figures import BLUE, GREEN, GREY, ORANGE

RESULTS = Path(__file__).parent / "results"
DOCS = Path(__file__).parents[1] / "docs" / "images"
METHODS = {
    "calibrated, 4 states": (BLUE, "v", ":"),
    "calibrated": (BLUE, "o", "-"),
    "linear": (GREEN, "^", "--"),
    "hold, sensitivity": (ORANGE, "D", "--"),
    "published (hold, similarity)": (ORANGE, "s", "-"),
    "uniform, hold": (GREY, "x", "-"),
}
PLANS = {
    "fitted_shared": (BLUE, "D", "-", "fitted and shared"),
    "fitted_unshared": (GREEN, "v", "--", "fitted, not shared"),
    "shared": (BLUE, "o", ":", "shared"),
    "unshared": (GREEN, "^", ":", "fewer steps, with another time shift"),
    "fewer": (GREY, "x", "-", "fewer steps"),
    "published": (ORANGE, "s", "-", "published sharing"),
}


def drawn(name: str, draw: Any, *arguments: Any) -> None:
    matplotlib.rcParams.update({"svg.hashsalt": name, "svg.fonttype": "none", "font.size": 9})
    figure = Figure(figsize=(6.2, 3.9), layout="constrained")
    axes = figure.subplots()
    draw(axes, *arguments)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(DOCS / name, metadata={"Date": None})
    print(DOCS / name)


def methods(axes: Axes, rows: list[dict[str, Any]]) -> None:
    runs = [row["encoder runs"] for row in rows]
    for name, (color, marker, line) in METHODS.items():
        values = [row[name] for row in rows]
        axes.plot(runs, [v["mean"] for v in values], line, color=color, marker=marker, markersize=4, label=name)
        axes.fill_between(runs, [v["low"] for v in values], [v["high"] for v in values], color=color, alpha=0.12, lw=0)
    axes.set_xscale("log")
    axes.set_xticks(runs, [str(k) for k in runs], minor=False)
    axes.minorticks_off()
    axes.set_xlabel("encoder runs in 50 steps")
    axes.set_ylabel("PSNR to the unshared image, dB")
    axes.legend(frameon=False, fontsize=8)


def plans(axes: Axes, rows: list[dict[str, Any]]) -> None:
    for name, (color, marker, line, label) in PLANS.items():
        found = [row[name] for row in rows if row[name]]
        points = [(plan["cost"], plan["fidelity_db"]) for plan in found]
        axes.plot(*zip(*points, strict=True), line, color=color, marker=marker, markersize=4, label=label)
    axes.set_xlabel("cost (50 steps without sharing: 1)")
    axes.set_ylabel("dB to the reference solution")
    axes.legend(frameon=False, fontsize=8)


def sensitivity(axes: Axes, calibration: Calibration) -> None:
    assert calibration.sensitivity is not None
    measured = calibration.sensitivity_sum[:, 0] > 1
    times, values = calibration.spec.times[measured], calibration.sensitivity[measured]
    spread = values * calibration.sensitivity_error
    axes.plot(times, values, color=BLUE, marker="o", markersize=3)
    axes.fill_between(times, values - spread, values + spread, color=BLUE, alpha=0.2, lw=0)
    axes.set_yscale("log")
    axes.set_xlabel("time: noise 0, picture 1")
    axes.set_ylabel("error of the picture per error of the state")


def main() -> None:
    drawn("methods.svg", methods, json.loads((RESULTS / "study.json").read_text())["tables"]["methods"])
    drawn("plans.svg", plans, json.loads((RESULTS / "plan.json").read_text())["rows"])
    given = sys.argv[1:]
    calibration = Calibration.load(Path(given[0])) if given else calibrate(load_model("cifar10"), SamplingSpec(), 8)
    drawn("sensitivity.svg", sensitivity, calibration)


if __name__ == "__main__":
    main()
