"""The named samplers as weights: one row an evaluation, `x ← a·x + Σ_j b_j·v_j + n·ξ`."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from ddt_accel.spec import SamplingSpec


@dataclass(frozen=True, kw_only=True)
class Update:
    """How evaluation k changes the latent: `x ← scale·x + Σ weight·v_evaluation + noise·ξ`."""

    velocities: tuple[tuple[int, float], ...]  # (evaluation ≤ k, weight)
    scale: float = 1.0
    noise: float = 0.0


@lru_cache(maxsize=256)
def updates(spec: SamplingSpec) -> tuple[Update, ...]:
    """One update for each of the spec's evaluations."""
    if spec.solver == "heun":
        return _heun(spec)
    if spec.solver == "sde":
        return _euler_maruyama(spec)
    order = int(spec.solver[2:]) if spec.solver.startswith("ab") else 1
    return _adams_bashforth(spec, order)


def adams_bashforth_weights(times: NDArray[np.float64], start: float, end: float) -> NDArray[np.float64]:
    """The integrals over [start, end] of the Lagrange polynomials on `times` [order]; they add up to end − start."""
    # In Python's floats, for arrays of so few numbers are slower.
    nodes, begin, length = times.tolist(), float(start), float(end - start)
    weights = []
    for k, node in enumerate(nodes):
        # Coefficients in powers of t − start: absolute times would cancel to nothing at short steps.
        basis = [1.0]
        for other in nodes[:k] + nodes[k + 1 :]:
            constant, slope = (begin - other) / (node - other), 1 / (node - other)
            basis = [constant * own + slope * below for own, below in zip([*basis, 0.0], [0.0, *basis], strict=True)]
        integral = 0.0
        for power in range(len(basis), 0, -1):
            integral = (integral + basis[power - 1] / power) * length
        weights.append(integral)
    return np.array(weights)


def published_weights(
    times: NDArray[np.float64], start: NDArray[np.float64], end: NDArray[np.float64]
) -> NDArray[np.float64]:
    """`adams_bashforth_weights` of many steps, to the bit as the published sampler has them for three and four times.

    `times` are [steps, order], `start` and `end` [steps]. It integrates in powers of absolute time in float32,
    `Σ_m (−1)^m e_m t^(n−m) / (n − m)` with the elementary symmetric polynomials e_m of the other times, and
    cancellation costs it digits: four at 10 steps of order 4, all of them at 100.
    """
    order = times.shape[1]
    nodes, bounds = times.T.astype(np.float32), np.array([start, end], dtype=np.float32)
    integrals = np.empty_like(nodes)
    for k, node in enumerate(nodes):
        a, b, *rest = others = np.delete(nodes, k, axis=0)
        symmetric = [others.sum(axis=0, dtype=np.float32)]
        symmetric += [b * c + a * b + a * c for c in rest] + [others.prod(axis=0, dtype=np.float32)]
        primitive = np.float32(1 / order) * _power(bounds, order)
        for m, value in enumerate(symmetric, 1):
            primitive = primitive + (-1) ** m * (np.float32(1 / (order - m)) * value * _power(bounds, order - m))
        integrals[k] = (primitive[1] - primitive[0]) / (node - others).prod(axis=0, dtype=np.float32)
    with np.errstate(all="ignore"):  # at many steps the sum cancels to nothing
        shares = integrals / integrals.cumsum(axis=0, dtype=np.float32)[-1]
    weights: NDArray[np.float64] = shares.T.astype(np.float64) * (end - start)[:, None]
    return weights


def _power(values: NDArray[np.float32], exponent: int) -> NDArray[np.float32]:
    """As PyTorch computes powers of float32: squares and cubes by products, others rounded once."""
    power: NDArray[np.float32] = (values.astype(np.float64) ** exponent).astype(np.float32)
    return np.prod([values] * exponent, axis=0, dtype=np.float32) if exponent <= 3 else power


def _adams_bashforth(spec: SamplingSpec, order: int) -> tuple[Update, ...]:
    """Euler is order 1; higher orders ramp up over the first steps.

    The published arithmetic is followed wherever it is good to three digits, for a trajectory may amplify what is left.
    """
    grid = spec.grid
    rows: list[Update] = []
    for count in range(1, min(order, spec.num_steps) + 1):
        steps = np.arange(count - 1, spec.num_steps if count == order else count)
        used, start, end = steps[:, None] + np.arange(1 - count, 1), grid[steps], grid[steps + 1]
        weights = np.array([adams_bashforth_weights(*step) for step in zip(grid[used], start, end, strict=True)])
        if count > 2:
            published = published_weights(grid[used], start, end)
            good = np.abs(published - weights).max(axis=1) < 1e-3 * (end - start)
            weights = np.where(good[:, None], published, weights)
        rows += [
            Update(velocities=tuple(zip(*row, strict=True)))
            for row in zip(used.tolist(), weights.tolist(), strict=True)
        ]
    return tuple(rows)


def _heun(spec: SamplingSpec) -> tuple[Update, ...]:
    """An Euler step, then from its end the correction to the trapezoid; a step to the data stays an Euler step."""
    rows = []
    for k, h in enumerate(np.diff(spec.grid).tolist()):
        rows.append(Update(velocities=((2 * k, h),)))
        if k < spec.num_steps - 1 or spec.end is not None:
            rows.append(Update(velocities=((2 * k, -h / 2), (2 * k + 1, h / 2))))
    return tuple(rows)


def _euler_maruyama(spec: SamplingSpec) -> tuple[Update, ...]:
    """`dx = (v + w s) dt + √(2w) dW` with the published diffusion w = 1 − t; the last step is an Euler step.

    The score of x_t = t x_1 + (1 − t) ε is `s = (t v − x) / (1 − t)`, so `w s = t v − x`.
    """
    grid = spec.grid
    rows = []
    for k, h in enumerate(np.diff(grid).tolist()):
        t = float(grid[k])
        if k < spec.num_steps - 1:
            rows.append(Update(velocities=((k, h * (1 + t)),), scale=1 - h, noise=float(np.sqrt(2 * (1 - t) * h))))
        else:
            rows.append(Update(velocities=((k, h),)))
    return tuple(rows)
