"""FoCa: states as the solution of an ordinary differential equation, forecast and corrected (arXiv 2508.16211).

One step at a time, on the last values F, computed or forecast. With the slope of second-order backward differences

    d(k) = (3 F_k − 4 F_{k−1} + F_{k−2}) / 2,

the predictor is F̂_{k+1} = 4/3 F_k − 1/3 F_{k−1} + 2/3 d(k), and Heun's corrector with the slope at the last refresh a

    F_{k+1} = F_k + (d(a) + d̂(k+1)) / 2,

where d̂(k+1), by the first formula of the predicted value, is d(k) again. Where there are fewer values slopes are of
order 1, and without a second value 0. Its schedule is TaylorSeer's.

A reconstruction: the equations are known second-hand and leave open what d(a) is, the slope over the values at a, a − 1
and a − 2, most of them forecasts ("of steps"), or over the last refreshes, (3 s_a − 4 s_b + s_c) / 2(a − b)
("of refreshes"). Both are here.
"""

from __future__ import annotations

from functools import partial

import numpy as np
from numpy.typing import NDArray

from ddt_accel.rivals.rival import Variant, evenly, forecasting
from ddt_accel.rivals.taylor_seer import FIRST
from ddt_accel.schedule import Schedule
from ddt_accel.solver.solve import Statistics

SLOPES = ("steps", "refreshes")


def variants(statistics: Statistics) -> list[Variant]:
    return [
        Variant(settings=f"slope of {slope}, {first} first", of=partial(_schedule, statistics, slope, first))
        for first in FIRST
        for slope in SLOPES
    ]


def _schedule(statistics: Statistics, slope: str, first: int, runs: int) -> Schedule:
    steps = evenly(statistics.spec.num_evaluations, runs, first=first)
    return forecasting(statistics, steps, partial(foca_weights, slope))


def foca_weights(slope: str, drawn: list[int], step: int) -> NDArray[np.float64]:
    """The weights of the refreshes `drawn` at a step."""
    refreshes = np.eye(len(drawn))
    values = np.zeros((step + 1, len(drawn)))  # F_0 … F_step as weights of the refreshes
    seen, anchor = 0, np.zeros(len(drawn))
    for k in range(step + 1):
        if k not in drawn:
            values[k] = values[k - 1] + (anchor + _slope(values[:k])) / 2
            continue
        values[k] = refreshes[seen]
        seen += 1
        if slope == "steps":
            anchor = _slope(values[: k + 1])
        elif seen > 1:
            anchor = _slope(refreshes[:seen]) / (drawn[seen - 1] - drawn[seen - 2])
    weights: NDArray[np.float64] = values[step]
    return weights


def _slope(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """By backward differences at the last of values [K, R] that lie one apart."""
    coefficients = ([0.0], [-1.0, 1.0], [0.5, -2.0, 1.5])[min(len(values), 3) - 1]
    slope: NDArray[np.float64] = np.array(coefficients) @ values[-3:]
    return slope
