"""Where in the spectrum a fitted schedule's error lies, and what of it a Fréchet distance sees.

The same noises by the converged sampler and by a fitted schedule: the error's power and the pictures', as parts of the
limit's own, by spatial frequency; and the Fréchet distances of pictures that differ from the limit's in one band only.
Takes the extra `fid`.

Usage: python benchmarks/spectrum.py --data cifar10.zip [--schedule NAME] [--images N] [--out FILE]
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ddt_accel import Schedule, load_model
from ddt_accel.backends.compiled import CompiledBackend
from ddt_accel.backends.sample import sample_images
from ddt_accel.distribution.frechet import frechet_distance, gaussian_of
from ddt_accel.distribution.inception_weights import load_inception
from ddt_accel.evaluation.fidelity import latent_decibels, to_uint8
from ddt_accel.networks.device import processor
from ddt_accel.networks.split import latent_shape_of
from ddt_accel.sampling.noise import ImageRange
from ddt_accel.sampling.reference import converged
from ddt_accel.training.images import load_images

SEED, BATCH = 5, 25
CYCLES = (0, 2, 6, 12, 16, 18)  # a picture, at which the error is printed
BANDS = ((0, 6), (6, 11), (11, 16), (16, 99))


def frequency(side: int) -> Tensor:
    """Radial frequencies in cycles a picture, [side, side], in the order of `torch.fft.fft2`."""
    cycles = torch.fft.fftfreq(side) * side
    return (cycles[:, None] ** 2 + cycles[None] ** 2).sqrt()


def power(latents: Tensor) -> Tensor:
    """Mean power [H, W] over images and channels."""
    return torch.fft.fft2(latents).abs().square().mean((0, 1))


def in_band(latents: Tensor, limit: Tensor, low: float, high: float) -> Tensor:
    """The limit, but for frequencies from `low` to `high`, which are as in `latents`."""
    radius = frequency(limit.shape[-1])
    taken = (radius >= low) & (radius < high)
    mixed: Tensor = torch.fft.ifft2(torch.where(taken, torch.fft.fft2(latents), torch.fft.fft2(limit))).real
    return mixed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="real pictures, as `ddt-accel train` takes them")
    parser.add_argument("--model", default="cifar10")
    parser.add_argument("--schedule", default="cifar10-fitted-9of14")
    parser.add_argument("--images", type=int, default=500)
    parser.add_argument("--reference-steps", type=int, default=200)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()

    model, fitted = load_model(arguments.model), Schedule.load(arguments.schedule)
    shape, backend = latent_shape_of(model), CompiledBackend(model)
    if shape[2] <= 2 * max(CYCLES[:-1]) - 1:
        parser.error(f"pictures of {shape[2]} pixels do not have the {CYCLES[-2]} cycles that the table is for")
    images = ImageRange(seed=SEED, first=0, stop=arguments.images)
    fine, fine_50 = (converged(fitted.spec, steps) for steps in (arguments.reference_steps, 50))
    limit, fifty, ends = (sample_images(backend, s, images, shape, BATCH) for s in (fine, fine_50, fitted))
    conditions = (
        f"{arguments.schedule} and {arguments.reference_steps} AB2 steps, {arguments.images} pictures of seed {SEED}, "
        f"{backend.name}; {processor()}"
    )
    print(conditions, end="\n\n")

    rings, rows = frequency(shape[2]).round(), []
    print("| cycles a picture | error of 50 AB2 steps | their power | error of the fitted | its power |")
    print("|---|---|---|---|---|")
    for cycles in CYCLES:
        own = power(limit)[rings == cycles].mean()
        parts = [
            float(power(value)[rings == cycles].mean() / own) for value in (fifty - limit, fifty, ends - limit, ends)
        ]
        rows.append({"cycles": cycles, "fifty": parts[:2], "fitted": parts[2:]})
        print(f"| {cycles} | {' | '.join(f'{100 * part:.2f} %' for part in parts)} |")

    pictures, inception = load_images(arguments.data, size=shape[1], split="test").images, load_inception()
    chosen = np.random.default_rng(0).permutation(len(pictures))[:2000]
    real = gaussian_of(inception.features(pictures[chosen]).pool)
    converged_features = gaussian_of(inception.features(to_uint8(limit)).pool)
    print("\n| differs from the limit in | dB | to real pictures | to the limit |\n|---|---|---|---|")
    distances = []
    named = {"nothing": limit, **{f"{a} to {b} cycles": in_band(ends, limit, a, b) for a, b in BANDS}, "all": ends}
    for name, latents in named.items():
        found = gaussian_of(inception.features(to_uint8(latents)).pool)
        row = {
            "differs": name,
            "decibels": float(latent_decibels(latents, limit).mean()),
            "frechet": frechet_distance(found, real),
            "frechet_to_limit": frechet_distance(found, converged_features),
        }
        distances.append(row)
        decibels, *distance = list(row.values())[1:]
        cells = [name, f"{decibels:.1f}", *(f"{value:.2f}" for value in distance)]
        if latents is limit:
            cells[1] = cells[3] = "–"
        print(f"| {' | '.join(cells)} |", flush=True)
    if arguments.out:
        results = {"conditions": conditions, "spectrum": rows, "distances": distances}
        arguments.out.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
