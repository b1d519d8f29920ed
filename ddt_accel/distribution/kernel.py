"""The Kernel Inception Distance (arXiv 1801.01401), with torch-fidelity's subsets, so that figures compare."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from torch import Tensor

from ddt_accel.errors import ConfigError

SUBSETS, SUBSET_SIZE, SEED = 100, 1000, 2020


@dataclass(frozen=True, kw_only=True)
class KernelDistance:
    """The mean over subsets, their standard deviation (what papers write behind ±), and the size of a subset."""

    mean: float
    deviation: float
    subset_size: int


def squared_mean_discrepancy(drawn: Tensor, reference: Tensor) -> float:
    """The unbiased estimate of the squared maximum mean discrepancy of features [M, F] and [N, F].

    The kernel is (x·y / F + 1)³; pairs of a picture with itself do not count. It may be below 0.
    """
    size = drawn.shape[1]

    def kernel(x: Tensor, y: Tensor) -> Tensor:
        return (x @ y.T / size + 1).double() ** 3

    def among(x: Tensor) -> Tensor:
        values = kernel(x, x)
        return (values.sum() - values.trace()) / (len(x) * (len(x) - 1))

    return float(among(drawn) + among(reference) - 2 * kernel(drawn, reference).mean())


def kernel_distance(
    drawn: Tensor, reference: Tensor, *, subsets: int = SUBSETS, subset_size: int = SUBSET_SIZE
) -> KernelDistance:
    """Of features [M, F] and [N, F]: the mean of `squared_mean_discrepancy` over random subsets of both.

    A subset is at most half of the smaller set, or all would be the same. Raises ConfigError for fewer than 4 pictures.
    """
    size = min(subset_size, min(len(drawn), len(reference)) // 2)
    if size < 2:
        raise ConfigError(f"{len(drawn)} and {len(reference)} pictures have no subsets; give at least 4 of each.")
    generator = np.random.RandomState(SEED)  # whose stream torch-fidelity takes its subsets from
    found = [
        squared_mean_discrepancy(
            drawn[generator.choice(len(drawn), size, replace=False)],
            reference[generator.choice(len(reference), size, replace=False)],
        )
        for _ in range(subsets)
    ]
    return KernelDistance(mean=float(np.mean(found)), deviation=float(np.std(found)), subset_size=size)
