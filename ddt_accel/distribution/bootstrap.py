"""By how much the Fréchet distances of two samplers to the same reference differ, and how sure that is.

A resample would need eigenvalues of matrices of 2048 rows, a thousand times for each sampler. The distance is a smooth
function of means and covariances, so its change under other weights of the pictures is, to first order, a mean over
pictures of what each of them contributes: its influence (Efron, The Jackknife, the Bootstrap and Other Resampling
Plans, 1982, chapter 6). Influences are computed once and resampled as often as one likes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from ddt_accel.distribution.frechet import Coupling, Gaussian, distance_of, gaussian_of
from ddt_accel.errors import ConfigError

RESAMPLES = 2000
_AT_A_TIME = 1 << 24  # indices in memory


@dataclass(frozen=True, kw_only=True, eq=False)
class Influences:
    """A Fréchet distance to a reference, and what each picture contributes to its changes.

    [M] of the drawn ones, [N] of the reference's, where these are known; their means are 0.
    """

    distance: float
    drawn: NDArray[np.float64]
    reference: NDArray[np.float64] | None


@dataclass(frozen=True, kw_only=True)
class Difference:
    """The first distance less the second, with its 95 % interval."""

    value: float
    low: float
    high: float


def influences(
    drawn: Tensor, reference: Gaussian, pictures: Tensor | None = None, *, own: Gaussian | None = None
) -> Influences:
    """Of features [M, F] against a reference, of whose pictures the features [N, F] may be known, too.

    `own` are the moments of the drawn ones, where somebody has them.

    With dΣ = (x − μ)(x − μ)ᵀ − Σ and dμ = x − μ for each picture, the distance changes by
    2 (μ₁ − μ₂)·dμ₁ + tr (I − T) dΣ₁, T as in `Coupling.transported`; by the same with the sides changed for the
    reference.
    """
    ours = gaussian_of(drawn) if own is None else own
    coupling = Coupling.of(ours, reference)
    return Influences(
        distance=distance_of(ours, reference, coupling),
        drawn=_influence(drawn, ours, reference, coupling),
        reference=None if pictures is None else _influence(pictures, reference, ours, Coupling.of(reference, ours)),
    )


def paired_difference(
    first: Influences, second: Influences, *, resamples: int = RESAMPLES, seed: int = 0
) -> Difference:
    """How far apart two samplers' distances are, where both drew from the same noises and share the reference.

    Each resample takes the same noises, and the same pictures of the reference, for both. Raises ConfigError for
    different numbers of pictures, and for too few resamples.
    """
    if len(first.drawn) != len(second.drawn):
        raise ConfigError(
            f"{len(first.drawn)} and {len(second.drawn)} pictures are no pairs; give as many, of the same noises."
        )
    if resamples < 100:
        raise ConfigError(f"{resamples} resamples have no quantiles to speak of; give at least 1000.")
    generator = np.random.default_rng(seed)
    away = _resampled_means(first.drawn - second.drawn, resamples, generator)
    if first.reference is not None and second.reference is not None:
        away += _resampled_means(first.reference - second.reference, resamples, generator)
    value = first.distance - second.distance
    low, high = value - np.quantile(away, [0.975, 0.025])
    return Difference(value=value, low=float(low), high=float(high))


def _influence(rows: Tensor, own: Gaussian, other: Gaussian, coupling: Coupling) -> NDArray[np.float64]:
    centred = rows.double() - own.mean
    spread = centred.square().sum(1) - coupling.transported(centred)
    found = 2 * centred @ (own.mean - other.mean) + spread * len(rows) / (len(rows) - 1)  # the covariance is unbiased
    influence: NDArray[np.float64] = (found - found.mean()).numpy()
    return influence


def _resampled_means(
    values: NDArray[np.float64], resamples: int, generator: np.random.Generator
) -> NDArray[np.float64]:
    """Means [resamples] of as many values as there are, drawn from them with replacement."""
    size = max(1, _AT_A_TIME // len(values))
    parts = [
        values[generator.integers(len(values), size=(min(size, resamples - start), len(values)))].mean(1)
        for start in range(0, resamples, size)
    ]
    return np.concatenate(parts)
