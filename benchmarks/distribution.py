"""Fréchet distance, precision and recall of fitted schedules' pictures, beside those of 50 AB2 steps.

The same noises by several samplers: the converged one (many AB2 steps), 50 AB2 steps, fewer AB2 steps for what the
first schedule costs, and the fitted schedules; each against real pictures and against the converged sampler's. Where a
schedule ends in a final step of its own, so do 50 steps beside it. Differences to the 50 steps are bootstrapped in
pairs: the same real pictures and noises drawn for both (`ddt_accel.distribution.bootstrap`). Takes the extra `fid`;
what is done is kept in `--folder`.

Usage: python benchmarks/distribution.py --data cifar10.zip [--schedules NAME,NAME] [--images N] [--folder DIR]
       [--out FILE]
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from ddt_accel import Schedule, load_model
from ddt_accel.backends.compiled import CompiledBackend
from ddt_accel.backends.sample import sample_images
from ddt_accel.distribution.bootstrap import influences, paired_difference
from ddt_accel.distribution.frechet import frechet_distance, gaussian_of
from ddt_accel.distribution.inception_weights import load_inception
from ddt_accel.distribution.neighbours import coverage
from ddt_accel.evaluation.costs import Costs, counted_costs
from ddt_accel.evaluation.fidelity import to_uint8
from ddt_accel.networks.device import processor
from ddt_accel.networks.split import latent_shape_of
from ddt_accel.sampling.noise import ImageRange
from ddt_accel.sampling.reference import converged
from ddt_accel.training.images import load_images

SEED = 5
CHUNK, BATCH = 100, 25
FIFTY = "50 AB2 steps"
INCEPTION = cache(load_inception)


def features(
    folder: Path, name: str, identity: object, drawn: Callable[[int, int], NDArray[np.uint8]], count: int
) -> torch.Tensor:
    """Inception features [M, 2048] of the pictures that `drawn(start, stop)` gives, kept a hundred at a time under a
    name that is made of `identity`: of all that they depend on."""
    parts = []
    digest = hashlib.sha256(json.dumps([identity, INCEPTION().sha256]).encode()).hexdigest()[:12]
    for start in range(0, count, CHUNK):
        stop = min(start + CHUNK, count)
        path = folder / f"{digest}-{start}-{stop}.npy"
        if not path.exists():
            made = INCEPTION().features(drawn(start, stop)).pool.numpy()
            np.save(path.with_suffix(".part.npy"), made)
            path.with_suffix(".part.npy").rename(path)
            print(f"{name}: {stop}/{count}", file=sys.stderr, flush=True)
        parts.append(torch.from_numpy(np.load(path)))
    return torch.cat(parts)


def differences(found: dict[str, torch.Tensor], real: torch.Tensor) -> dict[str, tuple[float, float]]:
    """95 % intervals of the samplers' Fréchet distances to real pictures less that of the 50 steps, over pairs."""
    pulls = {name: influences(ours, gaussian_of(real), real) for name, ours in found.items()}
    beside = {name: paired_difference(pull, pulls[FIFTY]) for name, pull in pulls.items()}
    return {name: (one.low, one.high) for name, one in beside.items()}


def samplers_beside(schedules: list[Schedule], names: list[str], steps: int, costs: Costs) -> dict[str, Schedule]:
    """The limit of as many `steps`, 50 steps, fewer, and the schedules, by name; 50 steps with each final step."""
    spec = dataclasses.replace(schedules[0].spec, last_step=None)
    grids = [Schedule.full(spec.on_grid(count, timeshift=1.0, solver="ab2")) for count in range(1, 50)]
    cheap = [grid for grid in grids if costs.of(grid) <= costs.of(schedules[0])] or grids[:1]
    found = {}
    for final in sorted({schedule.spec.final_step or 0.0 for schedule in schedules} | {0.0}):
        ended = dataclasses.replace(spec, timeshift=1.0, last_step=final or None)
        told = f", the last of {final:g}" if final else ""
        for count in (50,) if final else (steps, 50):
            found[f"{count} AB2 steps{told}"] = converged(ended, count)
        if not final:
            found[f"{cheap[-1].spec.num_steps} AB2 steps"] = cheap[-1]
        for name, schedule in zip(names, schedules, strict=True):
            if (schedule.spec.final_step or 0.0) == final:
                found[name] = schedule
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="real pictures, as `ddt-accel train` takes them")
    parser.add_argument("--model", default="cifar10")
    parser.add_argument("--schedules", default="cifar10-fitted-9of14", help="names or files, separated by commas")
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--reference-steps", type=int, default=100)
    parser.add_argument("--folder", type=Path, default=Path("ddt-accel-run/distribution"))
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()

    model, count = load_model(arguments.model), arguments.images
    schedules = [Schedule.load(name) for name in arguments.schedules.split(",")]
    shape, backend = latent_shape_of(model), CompiledBackend(model)
    costs = counted_costs(model.config, shape)
    names = [Path(name).stem for name in arguments.schedules.split(",")]
    samplers = samplers_beside(schedules, names, arguments.reference_steps, costs)
    unit = costs.of(samplers[FIFTY])
    arguments.folder.mkdir(parents=True, exist_ok=True)
    pictures = load_images(arguments.data, size=shape[1], split="test")
    chosen = np.random.default_rng(0).permutation(len(pictures.images))[:count]
    if len(chosen) < count or arguments.reference_steps <= 50:
        parser.error(f"--images is at most {len(chosen)} there, and --reference-steps above 50")
    real = features(
        arguments.folder, "real", pictures.sha256, lambda start, stop: pictures.images[chosen[start:stop]], count
    )

    def drawn(name: str, schedule: Schedule) -> torch.Tensor:
        def part(start: int, stop: int) -> NDArray[np.uint8]:
            images = ImageRange(seed=SEED, first=start, stop=stop)
            return to_uint8(sample_images(backend, schedule, images, shape, BATCH))

        return features(
            arguments.folder, name, [backend.checkpoint_sha256, backend.name, schedule.document(), SEED], part, count
        )

    found = {name: drawn(name, schedule) for name, schedule in samplers.items()}
    rows, limit = [], next(iter(found.values()))
    conditions = (
        f"{count} pictures each, noises of seed {SEED}, test split of {arguments.data.name}, "
        f"{backend.name}; {processor()}"
    )
    print(conditions, end="\n\n")
    print(f"| sampler | cost | to real pictures | less that of {FIFTY} | to the limit | precision | recall |")
    print("|---|---|---|---|---|---|---|")
    intervals = differences(found, real)
    for name, ours in found.items():
        # A sampler with a final step has another limit.
        distance = None if samplers[name].spec.final_step else frechet_distance(gaussian_of(ours), gaussian_of(limit))
        near = coverage(ours, real)
        low, high = intervals[name]
        row = {
            "sampler": name,
            "cost": costs.of(samplers[name]) / unit,
            "frechet": frechet_distance(gaussian_of(ours), gaussian_of(real)),
            "difference_interval": [low, high],
            "frechet_to_limit": distance,
            "precision": near.precision,
            "recall": near.recall,
        }
        rows.append(row)
        print(
            f"| {name} | {row['cost']:.3f} | {row['frechet']:.2f} | {low:+.2f} … {high:+.2f} | "
            f"{'–' if distance is None else f'{distance:.3f}'} | {near.precision:.3f} | {near.recall:.3f} |",
            flush=True,
        )
    if arguments.out:
        arguments.out.write_text(json.dumps({"conditions": conditions, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
