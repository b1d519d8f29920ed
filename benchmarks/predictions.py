"""How close predicted errors come to measured ones, before and after the correction that calibration measures itself.

Every network is calibrated on images of seed 0; schedules are run on images of seed 1. A ratio is the root-mean-square
error of the final latents to the unshared end, as measured, over the predicted one; 2 dB are 0.8 to 1.25. Intervals are
95 % bootstrap ones over the held-out images. Prints its conditions and a Markdown table for each network; writes JSON.

Usage: python benchmarks/predictions.py --model cifar10 [--model NAME=PATH ...] [--images N] [--samples N] [--out FILE]
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import os
import time
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from ddt_accel import Calibration, SamplingSpec, Schedule, calibrate, load_model
from ddt_accel.backends.pytorch import TorchBackend
from ddt_accel.backends.sample import sample_images
from ddt_accel.calibration.closed_loop import no_shared_sum, shared_sum
from ddt_accel.calibration.resample import resample
from ddt_accel.networks.device import processor
from ddt_accel.networks.split import SplitNetwork
from ddt_accel.sampling.noise import ImageRange
from ddt_accel.solver.solve import Method, Statistics, solve_curve
from ddt_accel.solver.split import split

SPEC = SamplingSpec(num_steps=50, guidance=2.0, guidance_interval=(0.3, 1.0))
COARSE = dataclasses.replace(SPEC, num_steps=25)
FOLLOWED = 8  # images with sensitivities
HELD_OUT = 1
SPLIT = "branches of their own"
BUDGETS = (5, 8, 10, 15, 25)
ROWS: list[tuple[str, Method, SamplingSpec, tuple[int, ...]]] = [
    ("default", Method(), SPEC, BUDGETS),
    ("held", Method(forecast="hold"), SPEC, BUDGETS),
    (SPLIT, Method(centred=False), SPEC, BUDGETS),
    ("uncentred", Method(centred=False), SPEC, (5, 10, 25)),
    ("linear", Method(forecast="linear"), SPEC, (5, 10, 25)),
    ("4 states", Method(sources=4), SPEC, (5, 10, 25)),
    ("default, interpolated to 25 steps", Method(), COARSE, (5, 8, 10)),
]


class Measured:
    """Final errors of schedules on held-out images."""

    def __init__(self, model: SplitNetwork, images: int) -> None:
        assert model.source is not None
        assert model.source.latent_shape is not None
        self.backend, self.shape, self.images = TorchBackend(model), model.source.latent_shape, images
        self.ends: dict[SamplingSpec, torch.Tensor] = {}

    def end(self, schedule: Schedule) -> torch.Tensor:
        held_out = ImageRange(seed=HELD_OUT, first=0, stop=self.images)
        return sample_images(self.backend, schedule, held_out, self.shape, 16).double()

    def squares(self, schedule: Schedule) -> NDArray[np.float64]:
        """The mean squared error of each image, [images]."""
        if schedule.spec not in self.ends:
            self.ends[schedule.spec] = self.end(Schedule.full(schedule.spec))
        squares: NDArray[np.float64] = (
            (self.end(schedule) - self.ends[schedule.spec]).square().flatten(1).mean(1).numpy()
        )
        return squares


def solved(statistics: Statistics, method: Method, runs: int, *, own_steps: bool) -> Schedule:
    common = solve_curve(statistics, runs, method)[-1][0]
    return split(statistics, common, method) if own_steps else common


def network(path: str, images: int, samples: int) -> dict[str, object]:
    model = load_model(path)
    begun = time.process_time()
    calibration = calibrate(model, SPEC, num_samples=samples, sensitivity_samples=FOLLOWED)
    seconds = time.process_time() - begun
    bare = dataclasses.replace(calibration, shared_sum=no_shared_sum(SPEC))
    measured = Measured(model, images)
    begun = time.process_time()
    shared_sum((model,), bare, ImageRange(seed=0, first=0, stop=FOLLOWED), measured.shape)
    loop = time.process_time() - begun
    rows = [
        row(bare, calibration, measured, name, method, spec, runs)
        for name, method, spec, budgets in ROWS
        for runs in budgets
    ]
    return {
        "network": str(model.config),
        "latents": list(measured.shape),
        "checkpoint_sha256": calibration.checkpoint_sha256,
        "processor seconds of calibration": round(seconds, 1),
        "of them for shared trajectories": round(loop, 1),
        "rows": rows,
    }


def row(
    bare: Calibration, calibration: Calibration, measured: Measured, name: str, method: Method, spec: SamplingSpec,
    runs: int,
) -> dict[str, object]:  # fmt: skip
    before, now = (
        solved(one if spec == SPEC else resample(one, spec), method, runs, own_steps=name == SPLIT)
        for one in (bare, calibration)
    )
    assert (before.refresh_steps, before.forecasts) == (now.refresh_steps, now.forecasts)
    assert before.predicted_error
    assert now.predicted_error
    squares = measured.squares(now)
    drawn = np.random.default_rng(0).integers(len(squares), size=(10_000, len(squares)))
    low, high = np.sqrt(np.quantile(squares[drawn].mean(1), (0.025, 0.975)))
    error = math.sqrt(squares.mean())
    return {
        "schedule": name,
        "runs": runs,
        "predicted before": before.predicted_error,
        "predicted": now.predicted_error,
        "measured": error,
        "ratio before": error / before.predicted_error,
        "ratio": error / now.predicted_error,
        "ratio interval": [low / now.predicted_error, high / now.predicted_error],
        "mean PSNR": float(np.mean(-10 * np.log10(squares / 4))),
    }


def table(found: dict[str, object]) -> str:
    lines = [
        "| schedule | encoder runs | predicted before | predicted | measured | ratio before | ratio |",
        "|---|---|---|---|---|---|---|",
    ]
    for one in found["rows"]:  # type: ignore[attr-defined]
        errors = " | ".join(f"{one[name]:.3g}" for name in ("predicted before", "predicted", "measured"))
        low, high = one["ratio interval"]
        ratios = f"{one['ratio before']:.2f} | {one['ratio']:.2f} ({low:.2f} … {high:.2f})"
        lines.append(f"| {one['schedule']} | {one['runs']} | {errors} | {ratios} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", action="append", required=True, help="name, or name=path; again for more")
    parser.add_argument("--images", type=int, default=16)
    parser.add_argument("--samples", type=int, default=32)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    conditions = {
        "calibrated images": arguments.samples,
        "of them with sensitivities": FOLLOWED,
        "held-out images": arguments.images,
        "spec": SPEC.document(),
        "processor": processor(),
        "cpus": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }
    print(json.dumps(conditions))
    networks: dict[str, object] = {}
    for given in arguments.model:
        name, _, path = given.partition("=")
        found = networks[name] = network(path or name, arguments.images, arguments.samples)
        print(f"\n{name}\n\n{table(found)}", flush=True)
        if arguments.out:
            arguments.out.write_text(json.dumps({"conditions": conditions, "networks": networks}, indent=1) + "\n")


if __name__ == "__main__":
    main()
