"""HiCache: TaylorSeer with scaled Hermite polynomials in place of powers (arXiv 2508.16984).

With TaylorSeer's differences D_i at the last refresh a, the physicists' Hermite polynomials H_i, a scale σ and
x = k − a, the forecast at step k is

    ŝ_k = s_a + Σ_{1 ≤ i ≤ m} D_i / i! · σ^i H_i(σx).

Differences go towards data here, and so does x; a port that took them towards noise had the wrong sign in odd orders.
A line is followed for σ² = ½ alone, half as far for the usual σ = 0.5, and from order 2 on the forecast does not tend
to s_a. Its schedule is TaylorSeer's. σ goes with x in steps: several are tried, for other numbers of steps than
published.
"""

from __future__ import annotations

import math
from functools import partial

import numpy as np
from numpy.polynomial.hermite import hermval
from numpy.typing import NDArray

from ddt_accel.rivals.rival import Variant, evenly, forecasting
from ddt_accel.rivals.taylor_seer import FIRST, differences
from ddt_accel.schedule import Schedule
from ddt_accel.solver.solve import Statistics

ORDERS, SCALES = (1, 2), (0.3, 0.5, 0.6, 0.75, 1.0)


def variants(statistics: Statistics) -> list[Variant]:
    return [
        Variant(
            settings=f"order {order}, scale {scale:g}, {first} first",
            of=partial(_schedule, statistics, order, scale, first),
        )
        for first in FIRST
        for order in ORDERS
        for scale in SCALES
    ]


def _schedule(statistics: Statistics, order: int, scale: float, first: int, runs: int) -> Schedule:
    steps = evenly(statistics.spec.num_evaluations, runs, first=first)
    return forecasting(statistics, steps, partial(hermite_weights, order, scale))


def hermite_weights(order: int, scale: float, drawn: list[int], step: int) -> NDArray[np.float64]:
    """The weights of the refreshes `drawn` at a step."""
    weights = np.zeros(len(drawn))
    for i, row in enumerate(differences(drawn, order)):
        polynomial = hermval(scale * (step - drawn[-1]), np.eye(i + 1)[i])
        weights += scale**i * polynomial / math.factorial(i) * row
    return weights
