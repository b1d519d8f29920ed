"""CEM: nearly even refreshes by cumulative errors, any forecast beneath (arXiv 2512.23258).

With E(t, n) = 1 − cosine of the features of step t and of n steps before, and sums E*(t, n) = n² Σ_{τ ≤ t} E(τ, n), the
refreshes are the path of least sum of E*(t, g − 1) over its intervals g that end in t; an interval of 1 is free. First
and last step refresh, and intervals keep within 1 of the number of steps per run, rounded. So it is coded; where no
path is that even, the band is as much wider as it must be.

The cosine is there of token means, here the mean of tokens' cosines.
"""

from __future__ import annotations

import math
from functools import partial

import numpy as np
from numpy.typing import NDArray

from ddt_accel.rivals.path import least_sum, traced
from ddt_accel.rivals.rival import Variant, forecasting
from ddt_accel.rivals.taylor_seer import taylor_weights
from ddt_accel.schedule import Schedule
from ddt_accel.solver.solve import Statistics, similarity_cost

ORDERS = (0, 1, 2)


def variants(statistics: Statistics) -> list[Variant]:
    cumulative = cumulative_errors(similarity_cost(statistics.similarity))
    return [
        Variant(settings=f"Taylor {order}" if order else "held", of=partial(_schedule, statistics, cumulative, order))
        for order in ORDERS
    ]


def _schedule(statistics: Statistics, cumulative: NDArray[np.float64], order: int, runs: int) -> Schedule | None:
    if runs == 1:
        return None
    steps = nearly_even_path(cumulative, runs)
    return forecasting(statistics, steps, partial(taylor_weights, order))


def cumulative_errors(error: NDArray[np.float64]) -> NDArray[np.float64]:
    """E* [n, t] of errors [E, E] of serving step t from step t − n."""
    steps = len(error)
    apart = np.array([np.pad(error.diagonal(n), (n, 0)) for n in range(steps)])
    cumulative: NDArray[np.float64] = np.arange(steps)[:, None] ** 2 * np.cumsum(apart, axis=1)
    return cumulative


def nearly_even_path(cumulative: NDArray[np.float64], runs: int) -> tuple[int, ...]:
    """The refresh steps of the program, two or more."""
    steps = len(cumulative)
    usual, even = round(steps / runs), (steps - 1) / (runs - 1)
    band = max(1, math.ceil(even) - usual, usual - math.floor(even))  # some path keeps to it
    gaps = np.arange(steps) - np.arange(steps)[:, None]
    prices = cumulative[gaps - 1, np.arange(steps)]
    allowed = (gaps > 0) & (abs(gaps - usual) <= band)
    return traced(least_sum(np.broadcast_to(prices, (steps, steps, steps)), allowed, (0, 0), runs - 1), steps - 1)
