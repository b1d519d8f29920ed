"""PrediT: Adams–Bashforth on what is cached (arXiv 2602.18093); a reconstruction.

Published in words only, as far as was found: a linear multistep predictor of the network's output. On velocities that
is an integrator in fewer steps, which "fewer steps" has. On states, with the refreshes a > b > … and the quotients
d_a = (s_a − s_b) / (a − b) taken for derivatives at a, b, …, it is

    ŝ_k = s_a + ∫_a^k (the polynomial through p of them),

of order p, or what there are refreshes for. Order 2 is TaylorSeer's. Where change is strong the paper corrects by one
evaluation more, which is another refresh here. Evenly spread, as nothing of its schedule could be made out.
"""

from __future__ import annotations

from functools import partial

import numpy as np
from numpy.typing import NDArray

from ddt_accel.rivals.rival import Variant, evenly, forecasting
from ddt_accel.rivals.taylor_seer import FIRST
from ddt_accel.sampling.integrators import adams_bashforth_weights
from ddt_accel.schedule import Schedule
from ddt_accel.solver.solve import Statistics

ORDERS = (2, 3, 4)


def variants(statistics: Statistics) -> list[Variant]:
    return [
        Variant(settings=f"order {order}, {first} first", of=partial(_schedule, statistics, order, first))
        for first in FIRST
        for order in ORDERS
    ]


def _schedule(statistics: Statistics, order: int, first: int, runs: int) -> Schedule:
    steps = evenly(statistics.spec.num_evaluations, runs, first=first)
    return forecasting(statistics, steps, partial(multistep_weights, order))


def multistep_weights(order: int, drawn: list[int], step: int) -> NDArray[np.float64]:
    """The weights of the refreshes `drawn` at a step."""
    weights = np.zeros(len(drawn))
    weights[-1] = 1.0
    if len(drawn) == 1:
        return weights
    # Of the last refreshes, each with the one before it.
    last = np.array(drawn[-order - 1 :], dtype=np.float64)
    integrals = adams_bashforth_weights(last[1:], drawn[-1], step) / np.diff(last)
    weights[-len(integrals) :] += integrals
    weights[-len(last) : -1] -= integrals
    return weights
