"""SODA: refreshes by the dissimilarity of what they serve, forecasts beneath (arXiv 2603.07057); a reconstruction.

The error of serving a step from an earlier one is 1 − cosine, a mean over images, and a program chooses the refreshes
of least sum. With the state held that is DDT's published program to the letter (`published.py`); what differs is the
Taylor forecast beneath, whose errors the program does not see. How the authors add up layers and modules within a
segment is not in what was read: here it is the sum over its steps. They also prune tokens, which has no place here.
"""

from __future__ import annotations

from functools import partial

from ddt_accel.rivals.rival import Variant, forecasting
from ddt_accel.rivals.taylor_seer import taylor_weights
from ddt_accel.schedule import Schedule
from ddt_accel.solver.refresh import solve_refresh_steps
from ddt_accel.solver.solve import Statistics, similarity_cost

ORDERS = (1, 2)


def variants(statistics: Statistics) -> list[Variant]:
    return [Variant(settings=f"Taylor {order}", of=partial(_schedule, statistics, order)) for order in ORDERS]


def _schedule(statistics: Statistics, order: int, runs: int) -> Schedule:
    steps = solve_refresh_steps(similarity_cost(statistics.similarity), runs)
    return forecasting(statistics, steps, partial(taylor_weights, order))
