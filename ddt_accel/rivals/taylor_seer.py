"""TaylorSeer: a Taylor polynomial in the step, of finite differences of the last refreshes (arXiv 2503.06923).

With the refreshes a > b > …, D_0(a) = s_a and D_{i+1}(a) = (D_i(a) − D_i(b)) / (a − b), where every order is divided by
the last gap alone, as in the authors' code (TaylorSeer-DiT, `taylor_utils`), the forecast at step k is

    ŝ_k = Σ_{i ≤ m} D_i(a) (k − a)^i / i!.

It is exact on lines of the step, not on parabolas. As many orders are used as there are refreshes for. Its schedule:
some first evaluations, then one interval.
"""

from __future__ import annotations

import math
from functools import partial

import numpy as np
from numpy.typing import NDArray

from ddt_accel.rivals.rival import Variant, evenly, forecasting
from ddt_accel.schedule import Schedule
from ddt_accel.solver.solve import Statistics

ORDERS, FIRST = (1, 2, 3, 4), (1, 2, 3)


def variants(statistics: Statistics) -> list[Variant]:
    return [
        Variant(settings=f"order {order}, {first} first", of=partial(_schedule, statistics, order, first))
        for first in FIRST
        for order in ORDERS
    ]


def _schedule(statistics: Statistics, order: int, first: int, runs: int) -> Schedule:
    steps = evenly(statistics.spec.num_evaluations, runs, first=first)
    return forecasting(statistics, steps, partial(taylor_weights, order))


def taylor_weights(order: int, drawn: list[int], step: int) -> NDArray[np.float64]:
    """The weights of the refreshes `drawn` at a step."""
    x = float(step - drawn[-1])
    weights = np.zeros(len(drawn))
    for i, row in enumerate(differences(drawn, order)):
        weights += x**i / math.factorial(i) * row
    return weights


def differences(drawn: list[int], order: int) -> list[NDArray[np.float64]]:
    """D_0 … D_m of the last refresh as weights of all of them, m = `order` where there are enough."""
    order = min(order, len(drawn) - 1)
    # Of D_i at the refreshes that have a part in D_m of the last, that one below.
    rows = np.eye(order + 1, len(drawn), len(drawn) - order - 1)
    gaps = np.diff(drawn[-order - 1 :])
    found = [rows[-1]]
    for i in range(order):
        rows = (rows[1:] - rows[:-1]) / gaps[i:, None]
        found.append(rows[-1])
    return found
