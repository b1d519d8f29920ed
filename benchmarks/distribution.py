"""Fréchet distance, precision and recall of a fitted schedule's pictures, beside those of 50 AB2 steps.

The same noises by four samplers: the converged one (many AB2 steps), 50 AB2 steps, fewer AB2 steps for what the fitted
schedule costs, and the fitted schedule; each against real pictures and against the converged sampler's. Differences to
the 50 steps are bootstrapped in pairs: the same real pictures and noises drawn for both. Takes the extra `fid`; what is
done is kept in `--folder`.

Usage: python benchmarks/distribution.py --data cifar10.zip [--schedule NAME] [--images N] [--folder DIR] [--out FILE]
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
from ddt_accel.evaluation.converged import converged
from ddt_accel.evaluation.costs import counted_costs
from ddt_accel.evaluation.distribution import Inception, coverage, frechet_distance
from ddt_accel.evaluation.fidelity import to_uint8
from ddt_accel.networks.ddt import latent_shape_of
from ddt_accel.networks.device import processor
from ddt_accel.sampling.noise import ImageRange
from ddt_accel.training.images import load_images

SEED = 5
RESAMPLES, CHUNK, BATCH = 100, 100, 25
FIFTY = "50 AB2 steps"
INCEPTION = cache(Inception)


def features(
    folder: Path, name: str, identity: object, drawn: Callable[[int, int], NDArray[np.uint8]], count: int
) -> torch.Tensor:
    """Inception features [M, 2048] of the pictures that `drawn(start, stop)` gives, kept a hundred at a time under a
    name that is made of `identity`: of all that they depend on."""
    parts, digest = [], hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:12]
    for start in range(0, count, CHUNK):
        stop = min(start + CHUNK, count)
        path = folder / f"{digest}-{start}-{stop}.npy"
        if not path.exists():
            made = INCEPTION().features(drawn(start, stop)).numpy()
            np.save(path.with_suffix(".part.npy"), made)
            path.with_suffix(".part.npy").rename(path)
            print(f"{name}: {stop}/{count}", file=sys.stderr, flush=True)
        parts.append(torch.from_numpy(np.load(path)))
    return torch.cat(parts)


def differences(found: dict[str, torch.Tensor], real: torch.Tensor) -> dict[str, list[float]]:
    """95 % intervals of the samplers' Fréchet distances to real pictures less that of the 50 steps, over pairs."""
    generator, drawn = np.random.default_rng(0), []
    for _ in range(RESAMPLES):
        noises, pictures = (torch.from_numpy(generator.integers(len(real), size=len(real))) for _ in range(2))
        distances = {name: frechet_distance(ours[noises], real[pictures]) for name, ours in found.items()}
        drawn.append([distance - distances[FIFTY] for distance in distances.values()])
    low, high = np.quantile(np.array(drawn), [0.025, 0.975], axis=0).tolist()
    return {name: [low[at], high[at]] for at, name in enumerate(found)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="real pictures, as `ddt-accel train` takes them")
    parser.add_argument("--model", default="cifar10")
    parser.add_argument("--schedule", default="cifar10-fitted-9of14")
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--reference-steps", type=int, default=100)
    parser.add_argument("--folder", type=Path, default=Path("ddt-accel-run/distribution"))
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()

    model, fitted, count = load_model(arguments.model), Schedule.load(arguments.schedule), arguments.images
    shape, backend = latent_shape_of(model), CompiledBackend(model)
    costs = counted_costs(model.config, shape)
    fine = dataclasses.replace(fitted.spec, num_steps=50, solver="ab2", last_step=None, timeshift=1.0)
    unit = costs.of(Schedule.full(fine))
    grids = [dataclasses.replace(fine, num_steps=steps) for steps in range(1, 50)]
    cheap = [grid for grid in grids if costs.of(Schedule.full(grid)) <= costs.of(fitted)] or grids[:1]
    samplers = {
        f"{arguments.reference_steps} AB2 steps": Schedule.full(converged(fine, arguments.reference_steps)),
        FIFTY: Schedule.full(fine),
        f"{cheap[-1].num_steps} AB2 steps": Schedule.full(cheap[-1]),
        Path(arguments.schedule).stem: fitted,
    }
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
    limit, rows = next(iter(found.values())), []
    conditions = (
        f"{count} pictures each, noises of seed {SEED}, test split of {arguments.data.name}, "
        f"{backend.name}; {processor()}"
    )
    print(conditions, end="\n\n")
    print(f"| sampler | cost | to real pictures | less that of {FIFTY} | to the limit | precision | recall |")
    print("|---|---|---|---|---|---|---|")
    intervals = differences(found, real)
    for name, ours in found.items():
        near = coverage(ours, real)
        low, high = intervals[name]
        row = {
            "sampler": name,
            "cost": costs.of(samplers[name]) / unit,
            "frechet": frechet_distance(ours, real),
            "difference_interval": [low, high],
            "frechet_to_limit": frechet_distance(ours, limit),
            "precision": near.precision,
            "recall": near.recall,
        }
        rows.append(row)
        print(
            f"| {name} | {row['cost']:.3f} | {row['frechet']:.2f} | {low:+.2f} … {high:+.2f} | "
            f"{row['frechet_to_limit']:.3f} | {near.precision:.3f} | {near.recall:.3f} |",
            flush=True,
        )
    if arguments.out:
        arguments.out.write_text(json.dumps({"conditions": conditions, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
