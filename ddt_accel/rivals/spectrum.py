"""Spectrum: a ridge regression on Chebyshev polynomials over all refreshes (arXiv 2603.01623).

With φ(τ) = (T_0(τ), …, T_M(τ)), τ = 2 · step / E − 1 and Φ the rows φ(τ_r) of all refreshes so far, the forecast is

    ŝ_k = φ(τ_k)ᵀ (ΦᵀΦ + λ I)⁻¹ Φᵀ S,

whose weights do not add up to one. The authors' code mixes it, w to 1 − w, with the line through the last two
refreshes. τ there is of 50 steps; here of all evaluations.

Its schedule is dense at first: some warm-up steps, then windows of a length, rounded down, that begins at 2 and grows
by α with every refresh. α is bisected. Five steps warm up as published, or half the runs where that is less.
"""

from __future__ import annotations

import math
from functools import cache, partial

import numpy as np
from numpy.polynomial.chebyshev import chebvander
from numpy.typing import NDArray

from ddt_accel.rivals.rival import Variant, bisected, forecasting
from ddt_accel.rivals.taylor_seer import taylor_weights
from ddt_accel.schedule import Schedule
from ddt_accel.solver.solve import Statistics

DEGREES, RIDGES, SHARES = (1, 2, 4), (0.001, 0.01, 0.1, 1.0), (1.0, 0.5)
WARM_UP, WINDOW = 5, 2.0


def variants(statistics: Statistics) -> list[Variant]:
    return [
        Variant(
            settings=f"degree {degree}, ridge {ridge:g}, {share:.0%} of it",
            of=partial(_schedule, statistics, degree, ridge, share),
        )
        for share in SHARES
        for degree in DEGREES
        for ridge in RIDGES
    ]


def _schedule(statistics: Statistics, degree: int, ridge: float, share: float, runs: int) -> Schedule | None:
    evaluations, warm_up = statistics.spec.num_evaluations, min(WARM_UP, (runs + 1) // 2)
    steps = bisected(lambda growth: dense_early(evaluations, growth, warm_up=warm_up), runs, float(evaluations))
    if steps is None:
        return None

    def weigh(drawn: list[int], step: int) -> NDArray[np.float64]:
        fitted = chebyshev_weights(degree, ridge, evaluations, drawn, step)
        return share * fitted + (1 - share) * taylor_weights(1, drawn, step)

    return forecasting(statistics, steps, weigh)


def chebyshev_weights(degree: int, ridge: float, evaluations: int, drawn: list[int], step: int) -> NDArray[np.float64]:
    """The weights of the refreshes `drawn` at a step."""
    basis = _basis(degree, evaluations)
    known, wanted = basis[drawn], basis[step]
    return (known @ np.linalg.solve(known.T @ known + ridge * np.eye(degree + 1), wanted)).astype(np.float64)


@cache
def _basis(degree: int, evaluations: int) -> NDArray[np.float64]:
    """φ of all steps, [E, M + 1]."""
    return chebvander(2 * np.arange(evaluations) / evaluations - 1, degree).astype(np.float64)


def dense_early(evaluations: int, growth: float, *, warm_up: int = WARM_UP) -> tuple[int, ...]:
    """The refresh steps of windows that grow by `growth`."""
    steps, window = list(range(warm_up)), WINDOW
    while (step := steps[-1] + math.floor(window)) < evaluations:
        steps.append(step)
        window += growth
    return tuple(steps)
