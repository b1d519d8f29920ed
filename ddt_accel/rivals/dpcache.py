"""DPCache: a program over refreshes that knows which came before (arXiv 2602.22654).

C[i, j, k] is the error of all steps between the refreshes j and k, forecast from those that end in i and j. With P the
best predecessor of j, kept of one number of refreshes alone,

    D[m, k] = min_j D[m − 1, j] + C[P[m − 1, j], j, k].

So it is written and coded: not exact, for one predecessor is kept where C needs a pair (`solver/pairs.py` keeps all).
The first three steps refresh, and no interval is longer than 0.3 of all steps, or than so few runs need.

Adapted: C is there of mean absolute errors over recorded features; here it is the root of the expected squared error,
from the Gram matrix, and a step that refreshes costs nothing, which as coded costs what its forecast would. A pair of
refreshes knows a line: the program is of order 1, and the forecast at run time, which theirs has of order 2, is
TaylorSeer's of order 1 or 2.
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
from ddt_accel.solver.forecast import checked_gram, pair_errors
from ddt_accel.solver.pairs import segment_prices
from ddt_accel.solver.solve import Statistics

ORDERS, FIRST, LONGEST = (1, 2), 3, 0.3


def variants(statistics: Statistics) -> list[Variant]:
    gram = checked_gram(statistics.gram)
    costs = segment_prices(pair_errors("linear", gram, np.arange(float(len(gram)))))
    return [Variant(settings=f"order {order}", of=partial(_schedule, statistics, costs, order)) for order in ORDERS]


def _schedule(statistics: Statistics, costs: NDArray[np.float64], order: int, runs: int) -> Schedule:
    return forecasting(statistics, one_parent(costs, runs), partial(taylor_weights, order))


def one_parent(costs: NDArray[np.float64], runs: int) -> tuple[int, ...]:
    """The refresh steps of the program for C [E, E, E + 1]."""
    evaluations, first = len(costs), min(FIRST, runs)
    edges = runs - first + 1  # the last of them leads past the end
    longest = max(
        math.floor(LONGEST * evaluations), math.ceil((evaluations - first + 1) / edges)
    )  # some path keeps to it
    gaps = np.arange(evaluations + 1) - np.arange(evaluations)[:, None]
    before = least_sum(costs, (gaps > 0) & (gaps <= longest), (max(first - 2, 0), first - 1), edges)
    return (*range(first - 1), *traced(before, evaluations)[:-1])
