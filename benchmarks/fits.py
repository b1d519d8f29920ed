"""What fitted numbers carry over to: other classes, other guidance; how a fit descends, and how many noises it needs.

One schedule, searched for `--steps` and `--budget`, is fitted under different conditions; every figure is the mean dB
to the converged trajectory of held-out images, ± half a 95 % bootstrap interval. Prints its conditions and Markdown
tables; writes JSON.

Usage: python benchmarks/fits.py --calibration FILE [--tables descent,classes,guidance,noises] [--steps N] [--out FILE]
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import json
import sys
import time
from functools import cached_property
from pathlib import Path

import torch

from ddt_accel import Schedule, draw_labels, draw_noise, load_model, sample
from ddt_accel.backends.pytorch import TorchBackend
from ddt_accel.calibration.statistics import Calibration
from ddt_accel.evaluation.converged import converged_course
from ddt_accel.evaluation.costs import counted_costs
from ddt_accel.evaluation.fidelity import interval, latent_decibels
from ddt_accel.fitting.closed_form import closed_form
from ddt_accel.fitting.coordinates import Coordinates
from ddt_accel.fitting.descent import Descent
from ddt_accel.fitting.fit import Fitter
from ddt_accel.fitting.fit_spec import FitSpec
from ddt_accel.fitting.joint import JointFit
from ddt_accel.networks.ddt.network import DDT
from ddt_accel.networks.device import processor
from ddt_accel.networks.split import latent_shape_of
from ddt_accel.sampling.reference import converged

HELD_OUT = 7
NOISES = (4, 16, 64, 256)
RATES = (1e-2, 2e-2, 5e-2, 1e-1)
GUIDANCE = (1.5, 3.0)
BATCH = 16


class Bench:
    """A schedule to start from, fits of it, and what they give on held-out images."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.model = load_model(arguments.model)
        self.shape, self.images = latent_shape_of(self.model), arguments.images
        self.calibration, self.folder = Calibration.load(arguments.calibration), arguments.folder
        self.spec = FitSpec(iterations=arguments.iterations, reference_steps=arguments.reference_steps)
        costs = counted_costs(self.model.config, self.shape)
        joint = JointFit(self.model, self.calibration, costs, self.spec, steps=arguments.steps, folder=self.folder)
        found = joint.find(budget=arguments.budget)
        assert found is not None
        self.start = found
        self.ends: dict[float, torch.Tensor] = {}

    @cached_property
    def fitted(self) -> Schedule:
        return self.fit()

    def fit(self, model: DDT | None = None, fitter: type[Fitter] = Fitter, **changes: object) -> Schedule:
        """What `fit` returns: the schedule that it started from, where it gained nothing significant."""
        spec = dataclasses.replace(self.spec, **changes)  # type: ignore[arg-type]
        cache = self.folder if model is None else None  # other weights, the same checksum
        began = time.monotonic()
        schedule = fitter(model or self.model, self.start, spec, cache=cache).run().schedule
        print(f"fitted in {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)
        return schedule

    def decibels(self, schedule: Schedule, labels: range | None = None) -> dict[str, float]:
        """Of held-out images, those of some labels if given, to the converged trajectory of the same guidance."""
        spec = schedule.spec
        noise = draw_noise(self.shape, seed=HELD_OUT, indices=range(self.images))
        drawn = draw_labels(self.model.config.num_classes, seed=HELD_OUT, indices=range(self.images))

        def ends(one: Schedule) -> torch.Tensor:
            parts = zip(noise.split(BATCH), drawn.split(BATCH), strict=True)
            return torch.cat([sample(self.model, one, *part) for part in parts])

        if spec.guidance not in self.ends:
            assert self.spec.reference_steps is not None
            self.ends[spec.guidance] = ends(converged(spec, self.spec.reference_steps))
        chosen = [k for k, label in enumerate(drawn.tolist()) if labels is None or label in labels]
        known = interval(latent_decibels(ends(schedule), self.ends[spec.guidance])[chosen])
        assert known is not None
        return dataclasses.asdict(known)


def classes(bench: Bench) -> list[dict[str, object]]:
    """Fitted on one half of the classes, tested on either: the label table of the model shows them twice."""
    half = bench.model.config.num_classes // 2
    only = copy.deepcopy(bench.model)
    with torch.no_grad():
        table = only.y_embedder.embedding_table.weight
        table[half : 2 * half] = table[:half]
    fitted = {"not fitted": bench.start, "all classes": bench.fitted, f"classes 0 to {half - 1}": bench.fit(only)}
    tested = {f"classes 0 to {half - 1}": range(half), f"classes {half} to {2 * half - 1}": range(half, 2 * half)}
    return [
        {"fitted on": name, **{on: bench.decibels(schedule, labels) for on, labels in tested.items()}}
        for name, schedule in fitted.items()
    ]


def guidance(bench: Bench) -> list[dict[str, object]]:
    """Fitted at the calibrated guidance, used at another; beside it a closed form for that one."""
    fitted, rows = bench.fitted, []
    for weight in (*GUIDANCE, bench.start.spec.guidance):
        spec_at = dataclasses.replace(bench.start.spec, guidance=weight)
        start, used = (dataclasses.replace(one, spec=spec_at) for one in (bench.start, fitted))
        backend, spec = TorchBackend(bench.model), bench.spec
        assert spec.reference_steps is not None
        path = converged_course(backend, start.spec, spec.reference_steps, spec.closed_form_images, bench.shape, BATCH)
        rows.append(
            {
                "guidance": weight,
                "not fitted": bench.decibels(start),
                f"fitted at {bench.start.spec.guidance:g}": bench.decibels(used),
                "closed form for it": bench.decibels(closed_form(backend, start, path, BATCH)),
            }
        )
    return rows


def noises(bench: Bench) -> list[dict[str, object]]:
    """How far fits to so many noises get on others; the start was searched, and the iterate chosen, on 32 more each."""
    return [
        {"noises": count, "fitted": bench.decibels(bench.fit(images=count, batch_size=min(12, count)))}
        for count in NOISES
    ]


class InWeights(Fitter):
    """Descends in the weights themselves."""

    def descent(self, coordinates: Coordinates) -> Descent:
        return super().descent(Coordinates({}))


def descent(bench: Bench) -> list[dict[str, object]]:
    """In the weights and along orthogonal inputs, at several learning rates: the same start, the same batches."""
    rows = []
    for name, fitter, rates in (("in the weights", InWeights, RATES[:3]), ("along their inputs", Fitter, RATES[1:])):
        for rate in rates:
            fitted = bench.fit(fitter=fitter, learning_rate=rate)
            rows.append({"descent": name, "learning rate": rate, "fitted": bench.decibels(fitted)})
    return rows


TABLES = {"descent": descent, "classes": classes, "guidance": guidance, "noises": noises}


def markdown(rows: list[dict[str, object]]) -> str:
    def cell(value: object) -> str:
        if isinstance(value, dict):
            return f"{value['mean']:.1f} ± {(value['high'] - value['low']) / 2:.1f}"
        return f"{value:g}" if isinstance(value, float) else str(value)

    lines = [list(rows[0]), ["---"] * len(rows[0]), *([cell(value) for value in row.values()] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--calibration", type=Path, required=True)
    parser.add_argument("--model", default="cifar10")
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--budget", type=int, default=8)
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--iterations", type=int, default=40)
    parser.add_argument("--reference-steps", type=int, default=120)
    parser.add_argument("--tables", default=",".join(TABLES))
    parser.add_argument("--folder", type=Path, default=Path("ddt-accel-run/fit"))
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    bench = Bench(arguments)
    conditions = (
        f"{arguments.model}, {arguments.steps} steps, {arguments.budget} encoder runs, {arguments.iterations} "
        f"iterations, dB to {arguments.reference_steps} AB2 steps on {arguments.images} images of seed {HELD_OUT}; "
        f"{processor()}"
    )
    print(conditions)
    results: dict[str, object] = {}
    for name in arguments.tables.split(","):
        rows = TABLES[name](bench)
        results[name] = {"conditions": conditions, "rows": rows}
        print(f"\n{name}\n\n{markdown(rows)}", flush=True)
        if arguments.out:
            arguments.out.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
