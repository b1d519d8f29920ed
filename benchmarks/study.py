"""How close shared trajectories end to the unshared ones, by method, budget, calibration and sampling.

Every figure is the mean PSNR in dB of held-out images (noise and labels of a seed that was not calibrated on) against
the unshared trajectory of the same noise, with a 95 % bootstrap interval over images; `±` is half its width. Prints its
conditions and Markdown tables; writes JSON.

Usage: python benchmarks/study.py [--model NAME] [--images N] [--tables methods,samples,...] [--out FILE]
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from ddt_accel import SamplingSpec, Schedule, calibrate, draw_labels, draw_noise, load_model, sample
from ddt_accel.calibration.resample import resample
from ddt_accel.calibration.statistics import Calibration
from ddt_accel.evaluation.fidelity import interval, psnr, to_images
from ddt_accel.networks.device import processor
from ddt_accel.solver.solve import PUBLISHED, Method, schedule_with, solve_curve
from ddt_accel.solver.split import encoder_runs, splits

SPEC = SamplingSpec(num_steps=50, guidance=2.0, guidance_interval=(0.3, 1.0))
HELD_OUT = 1
BUDGETS = (25, 16, 12, 10, 8, 6, 5)
METHODS = {
    "published (hold, similarity)": PUBLISHED,
    "hold, sensitivity": Method(forecast="hold"),
    "linear": Method(forecast="linear"),
    "calibrated": Method(),
    "calibrated, uncentred": Method(centred=False),
    "calibrated, power": Method(objective="power"),
    "calibrated, minimax": Method(objective="minimax"),
    "calibrated, 3 states": Method(sources=3),
    "calibrated, 4 states": Method(sources=4),
}


class Bench:
    """Runs schedules on held-out images and remembers the unshared ends."""

    def __init__(self, model_name: str, images: int) -> None:
        self.model = load_model(model_name)
        assert self.model.source is not None
        assert self.model.source.latent_shape is not None
        self.shape, self.images = self.model.source.latent_shape, images
        self.ends: dict[tuple[SamplingSpec, tuple[int, ...]], torch.Tensor] = {}

    def calibrate(self, spec: SamplingSpec, samples: int = 32, seed: int = 0) -> Calibration:
        return calibrate(self.model, spec, num_samples=samples, seed=seed, sensitivity_samples=max(1, samples // 8))

    def end(self, schedule: Schedule, classes: tuple[int, ...]) -> torch.Tensor:
        labels = draw_labels(self.model.config.num_classes, seed=HELD_OUT, indices=range(self.images))
        if classes:
            labels = torch.tensor([classes[k % len(classes)] for k in range(self.images)])
        noise = draw_noise(self.shape, seed=HELD_OUT, indices=range(self.images))
        return to_images(sample(self.model, schedule, noise, labels))

    def fidelity(self, schedule: Schedule, classes: tuple[int, ...] = ()) -> NDArray[np.float64]:
        """PSNR of each image, [images]."""
        key = (schedule.spec, classes)
        if key not in self.ends:
            self.ends[key] = self.end(Schedule.full(schedule.spec), classes)
        return psnr(self.end(schedule, classes), self.ends[key])

    def measure(self, schedule: Schedule, classes: tuple[int, ...] = ()) -> dict[str, float]:
        found = interval(self.fidelity(schedule, classes))
        assert found is not None
        return dataclasses.asdict(found)


def crossed(values: NDArray[np.float64]) -> dict[str, float]:
    """The mean of [calibrations, images] with an interval over both: rows and columns are drawn anew, independently."""
    random = np.random.default_rng(0)
    rows, columns = (random.integers(count, size=(4000, count)) for count in values.shape)
    means = [values[np.ix_(row, column)].mean() for row, column in zip(rows, columns, strict=True)]
    low, high = np.quantile(means, [0.025, 0.975])
    return {"mean": float(values.mean()), "low": float(low), "high": float(high)}


def methods(bench: Bench) -> list[dict[str, object]]:
    calibration = bench.calibrate(SPEC)
    rows: list[dict[str, object]] = []
    curves = {name: solve_curve(calibration, max(BUDGETS), method) for name, method in METHODS.items()}
    for budget in BUDGETS:
        row: dict[str, object] = {"encoder runs": budget}
        row["uniform, hold"] = bench.measure(Schedule.uniform(SPEC, budget))
        even = Schedule.uniform(SPEC, budget).refresh_steps
        row["uniform, linear"] = bench.measure(schedule_with(calibration, even, Method(forecast="linear")))
        row |= {name: bench.measure(curve[budget - 1][0]) for name, curve in curves.items()}
        rows.append(row)
    return rows


def samples(bench: Bench) -> list[dict[str, object]]:
    """How much calibration is enough; four calibrations of each size, on different images."""
    rows: list[dict[str, object]] = []
    calibrations: dict[int, Calibration] = {}
    for count in (1, 2, 4, 8, 16, 32, 64):
        found: dict[str, list[NDArray[np.float64]]] = {}
        for seed in (10, 11, 12, 13):
            # Each contains the one before; at most eight of the images have sensitivities, as with the command.
            calibration = calibrate(bench.model, SPEC, count, seed, resume=calibrations.get(seed))
            calibrations[seed] = calibration
            curve, published = solve_curve(calibration, 10), solve_curve(calibration, 10, PUBLISHED)
            solved = {
                "published, 10 runs": published[9],
                "calibrated, 10 runs": curve[9],
                "calibrated, 6 runs": curve[5],
            }
            for name, (schedule, _) in solved.items():
                found.setdefault(name, []).append(bench.fidelity(schedule))
        row: dict[str, object] = {"calibration samples": count}
        rows.append(row | {name: crossed(np.stack(values)) for name, values in found.items()})
    return rows


def sampling(bench: Bench) -> list[dict[str, object]]:
    """One encoder run in five, whatever the steps and the guidance."""
    rows: list[dict[str, object]] = []
    for steps, guidance in ((25, 2.0), (50, 1.0), (50, 2.0), (50, 4.0), (100, 2.0), (250, 2.0)):
        spec = dataclasses.replace(SPEC, num_steps=steps, guidance=guidance)
        calibration = bench.calibrate(spec, 16)
        budget = steps // 5
        rows.append(
            {"steps": steps, "guidance": guidance, "encoder runs": budget}
            | {
                name: bench.measure(solve_curve(calibration, budget, method)[-1][0])
                for name, method in (("published", PUBLISHED), ("calibrated", Method()))
            }
        )
    return rows


def robustness(bench: Bench) -> list[dict[str, object]]:
    """Schedules of 10 runs where they were not calibrated for, beside those that were."""
    calibration = bench.calibrate(SPEC)
    own = solve_curve(calibration, 10)[-1][0]
    rows: list[dict[str, object]] = [{"used for": "as calibrated", "as solved": bench.measure(own)}]
    other_seed = solve_curve(bench.calibrate(SPEC, seed=20), 10)[-1][0]
    rows.append({"used for": "calibrated on other noise", "as solved": bench.measure(other_seed)})
    for classes in ((0, 8), (3, 5)):
        names = bench.model.source.class_names if bench.model.source else None
        told = " and ".join(names[c] for c in classes) if names else str(classes)
        rows.append({"used for": f"only {told}", "as solved": bench.measure(own, classes)})
    for guidance in (1.5, 3.0):
        spec = dataclasses.replace(SPEC, guidance=guidance)
        fresh = solve_curve(bench.calibrate(spec), 10)[-1][0]
        rows.append(
            {
                "used for": f"guidance {guidance:g}",
                "as solved": bench.measure(dataclasses.replace(own, spec=spec)),
                "calibrated for it": bench.measure(fresh),
            }
        )
    for steps, budget in ((40, 8), (25, 5)):
        spec = dataclasses.replace(SPEC, num_steps=steps)
        rows.append(
            {
                "used for": f"{budget} runs in {steps} steps",
                "as solved": bench.measure(solve_curve(resample(calibration, spec), budget)[-1][0]),
                "calibrated for it": bench.measure(solve_curve(bench.calibrate(spec), budget)[-1][0]),
            }
        )
    return rows


def branches(bench: Bench) -> list[dict[str, object]]:
    """Whether the unconditional branch should refresh at steps of its own, at equal numbers of encoder runs."""
    calibration, method = bench.calibrate(SPEC), Method(centred=False)
    rows: list[dict[str, object]] = []
    for budget in (6, 10):
        common = solve_curve(calibration, budget, method)[-1][0]
        centred = solve_curve(calibration, budget)[-1][0]
        found = splits(calibration, common, method)
        best = min(found, key=lambda schedule: schedule.predicted_cost or 0.0)
        near = [schedule for schedule in found if abs(schedule.budget - best.budget) <= 2]
        named = [("common, centred", centred), ("common", common), *(("own steps", schedule) for schedule in near)]
        for name, schedule in named:
            told = f"{name}, predicted best" if schedule is best else name
            runs = {"conditional runs": schedule.budget, "unconditional runs": encoder_runs(schedule) - schedule.budget}
            predicted = {"predicted": -20 * math.log10((schedule.predicted_error or 0.0) / 2)}
            rows.append({"refreshes": told, **runs, **predicted, "measured": bench.measure(schedule)})
    return rows


TABLES: dict[str, Callable[[Bench], list[dict[str, object]]]] = {
    "methods": methods,
    "samples": samples,
    "sampling": sampling,
    "robustness": robustness,
    "branches": branches,
}


def shown(value: object) -> str:
    if isinstance(value, dict):
        return f"{value['mean']:.1f} ± {(value['high'] - value['low']) / 2:.1f}"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="cifar10")
    parser.add_argument("--images", type=int, default=32)
    parser.add_argument("--tables", default=",".join(TABLES))
    parser.add_argument("--out", type=Path, help="where to write the JSON")
    options = parser.parse_args()
    bench = Bench(options.model, options.images)
    source = bench.model.source
    conditions = {
        "model": f"{options.model}, checkpoint {source.sha256[:12] if source else 'unknown'}",
        "sampling": "Euler, guidance 2 for 0.3 < t < 1, where not said otherwise",
        "images": f"{options.images} of seed {HELD_OUT}; calibration on 32 of seed 0, where not said otherwise, one in "
        "eight of them with sensitivities",
        "intervals": "95 %, bootstrap over images; in the table of calibration sizes over four calibrations, too",
        "backend": f"torch {torch.__version__}, float32",
        "machine": f"{processor()}, {os.cpu_count()} CPUs",
    }
    print(*(f"{key}: {value}" for key, value in conditions.items()), sep="\n")
    results = {}
    for name in options.tables.split(","):
        rows = TABLES[name](bench)
        results[name] = rows
        columns = list(dict.fromkeys(key for row in rows for key in row))
        print(f"\n### {name}\n\n| {' | '.join(columns)} |\n|{'---|' * len(columns)}")
        for row in rows:
            print(f"| {' | '.join(shown(row.get(column, '–')) for column in columns)} |", flush=True)
        if options.out is not None:
            options.out.write_text(json.dumps({"conditions": conditions, "tables": results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
