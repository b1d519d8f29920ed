"""How well refreshed states foretell the others: one Gram matrix prices every linear forecast.

With `G[i, j] = E⟨s_i, s_j⟩` the forecast `ŝ_i = Σ_r w_r s_r` has the expected squared error

    e_i² = G_ii − 2 wᵀ G_{r,i} + wᵀ G_{rr} w,

least for `w = (G_{rr} + λ diag G_{rr})⁻¹ G_{r,i}`. With the Gram matrix of the deviations from the mean trajectory μ,
`G − ⟨μ_i, μ_j⟩`, this holds for `ŝ_i = μ_i + Σ w_r (s_r − μ_r)`.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ddt_accel.errors import NumericsError

Array = NDArray[np.float64]

FORECASTS = ("hold", "linear", "calibrated")
# Every state is only known up to rounding, about 2⁻¹⁰ in half precision: independent errors of that relative variance
# add λ diag G to G_{rr}. It also makes the weights of states that are the same unique, and finite.
RIDGE = 1e-6


def checked_gram(gram: Array) -> Array:
    """A Gram matrix, rounding removed; raises NumericsError where it cannot be one.

    A matrix that is not positive semidefinite would promise forecasts of less than no error.
    """
    if not np.isfinite(gram).all():
        raise NumericsError("The inner products of the states are not finite; calibrate anew.")
    gram = (gram + gram.T) / 2
    eigenvalues = np.linalg.eigvalsh(gram)
    if eigenvalues[0] < -1e-6 * max(eigenvalues[-1], 0.0) or eigenvalues[-1] < 0:
        raise NumericsError(
            f"The inner products of the states are not positive semidefinite (eigenvalues from {eigenvalues[0]:.2g} to "
            f"{eigenvalues[-1]:.2g}); the calibration is damaged: calibrate anew."
        )
    np.fill_diagonal(gram, np.maximum(gram.diagonal(), 0.0))
    return gram


def centred(gram: Array, mean_gram: Array) -> Array:
    """The inner products of deviations from means whose own are `mean_gram`; what is not finite stays as it is."""
    return gram - mean_gram if np.isfinite(gram).all() else gram


def forecast_weights(forecast: str, gram: Array, times: Array, sources: list[int], step: int) -> Array:
    """The weights of the states of `sources`, refreshes in increasing order, for a later `step`.

    "hold" and "linear" (extrapolation in t from the last two) leave earlier sources at weight 0.
    """
    weights = np.zeros(len(sources))
    if forecast == "hold" or (forecast == "linear" and len(sources) == 1):
        weights[-1] = 1.0
    elif forecast == "linear":
        a, b = times[sources[-2]], times[sources[-1]]
        weights[-1] = (times[step] - a) / (b - a)
        weights[-2] = 1.0 - weights[-1]
    else:
        inner = gram[np.ix_(sources, sources)] + np.diag(_ridge(gram)[sources])
        weights[:] = np.linalg.solve(inner, gram[sources, step])
    return weights


def forecast_error(gram: Array, sources: list[int], weights: Array, step: int) -> float:
    """e_i, the root of the expected squared error of a forecast."""
    inner = gram[np.ix_(sources, sources)]
    squared = gram[step, step] - 2 * weights @ gram[sources, step] + weights @ inner @ weights
    return float(np.sqrt(max(0.0, squared)))


def pair_errors(
    forecast: str, gram: Array, times: Array, *, sources: int = 2, targets: NDArray[np.intp] | None = None
) -> Array:
    """e[a, b, i], [N, N, N]: the error at step i ≥ b of the forecast from the refreshes a < b.

    From b alone for a = b, and everywhere with a single source. With `targets` [T] only those are foretold: [N, N, T].
    """
    n = len(gram)
    power = gram.diagonal()
    a, b, i = np.ix_(np.arange(n), np.arange(n), np.arange(n) if targets is None else targets)
    if forecast == "hold":
        weight_a, weight_b = np.zeros(np.broadcast(a, b, i).shape), np.ones(np.broadcast(a, b, i).shape)
    elif forecast == "linear":
        gap = times[b] - times[a]
        weight_b = np.where(gap > 0, (times[i] - times[a]) / np.where(gap > 0, gap, 1.0), 1.0)
        weight_a = 1.0 - weight_b
    else:
        ridged = power + _ridge(gram)
        determinant = ridged[a] * ridged[b] - gram[a, b] ** 2
        determinant = np.where(a == b, 1.0, determinant)
        weight_a = (ridged[b] * gram[a, i] - gram[a, b] * gram[b, i]) / determinant
        weight_b = (ridged[a] * gram[b, i] - gram[a, b] * gram[a, i]) / determinant
        alone = (a == b) | (sources == 1)
        weight_a = np.where(alone, 0.0, weight_a)
        weight_b = np.where(alone, gram[b, i] / ridged[b], weight_b)
    squared = (
        power[i]
        - 2 * (weight_a * gram[a, i] + weight_b * gram[b, i])
        + weight_a**2 * power[a]
        + weight_b**2 * power[b]
        + 2 * weight_a * weight_b * gram[a, b]
    )
    errors: Array = np.sqrt(np.maximum(squared, 0.0))
    return errors


def _ridge(gram: Array) -> Array:
    """λ diag G [N], and a floor for states that do not vary at all."""
    power = gram.diagonal()
    ridge: Array = RIDGE * power + 1e-12 * power.max() + 1e-150
    return ridge
