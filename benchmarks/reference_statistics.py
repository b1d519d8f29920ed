"""Makes the statistics of a data set that the package ships as a reference, and measures what packing them costs.

Features are kept beside the data, so that it goes on where it was stopped. Printed are Fréchet distances to the exact
statistics and to the packed ones, of all pictures, of the first half of them, and of all with their features scaled;
and their difference, which is what packing changes. Takes the extra `fid`.

Usage: python benchmarks/reference_statistics.py --data cifar10.zip [--split test] [--out FILE]
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch

from ddt_accel.distribution.features import features_of
from ddt_accel.distribution.frechet import Gaussian, frechet_distance, gaussian_of
from ddt_accel.distribution.inception_weights import load_inception
from ddt_accel.distribution.pictures import opened
from ddt_accel.distribution.statistics import Statistics
from ddt_accel.networks.device import processor


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="pictures, as `ddt-accel evaluate` takes them")
    parser.add_argument("--split", default="test")
    parser.add_argument("--out", type=Path, default=Path("ddt_accel/distribution/references/cifar10.safetensors"))
    arguments = parser.parse_args()

    network, done = load_inception(), 0

    def on_pictures(count: int) -> None:
        nonlocal done
        done += count
        print(f"{done} pictures", file=sys.stderr, flush=True)

    with opened(arguments.data, split=arguments.split) as pictures:
        found = features_of(pictures, network, on_pictures, print)
        size = pictures.size
    exact = Statistics(
        pool=found.pool_moments, spatial=found.spatial, network=network.sha256, size=size, count=len(found.pool)
    )
    exact.save(arguments.out)
    packed = Statistics.load(arguments.out)
    assert packed.spatial is not None
    half = gaussian_of(found.pool[: len(found.pool) // 2])
    scaled = Gaussian(mean=1.1 * exact.pool.mean, covariance=1.21 * exact.pool.covariance)
    spatially = Gaussian(mean=1.1 * found.spatial.mean, covariance=1.21 * found.spatial.covariance)
    print(f"{len(found.pool)} pictures of {arguments.data.name} ({arguments.split}), {network.name}; {processor()}")
    print(f"{arguments.out}: {arguments.out.stat().st_size / 1e6:.1f} MB", end="\n\n")
    print("| distance of | to the exact | to the packed | changed by |\n|---|---|---|---|")
    for name, drawn, one, other in (
        ("FID, the same", exact.pool, exact.pool, packed.pool),
        ("FID, the first half", half, exact.pool, packed.pool),
        ("FID, 1.1 times the features", scaled, exact.pool, packed.pool),
        ("sFID, the same", found.spatial, found.spatial, packed.spatial),
        ("sFID, 1.1 times the features", spatially, found.spatial, packed.spatial),
    ):
        before, after = frechet_distance(drawn, one), frechet_distance(drawn, other)
        print(f"| {name} | {before:.4f} | {after:.4f} | {after - before:+.5f} |", flush=True)


if __name__ == "__main__":
    torch.set_grad_enabled(False)
    main()
