"""FoCa: states as the solution of an ordinary differential equation, forecast and corrected (arXiv 2508.16211).

One step at a time, on the last values F, computed or forecast. With the slope of second-order backward differences

    d(k) = (3 F_k − 4 F_{k−1} + F_{k−2}) / 2,

the predictor is F̂_{k+1} = 4/3 F_k − 1/3 F_{k−1} + 2/3 d(k), and Heun's corrector with the slope at the last refresh a

    F_{k+1} = F_k + (d(a) + d̂(k+1)) / 2,

where d̂(k+1), by the first formula of the predicted value, is d(k) again. Where there are fewer values slopes are of
order 1, and without a second value 0. Its schedule is TaylorSeer's.

A reconstruction: the equations are known second-hand and leave open what d(a) is, the slope over the values at a, a − 1
and a − 2, most of them forecasts ("of steps"), or over the last refreshes, which for even intervals N is
(3 s_a − 4 s_b + s_c) / 2N ("of refreshes"). Both are here. The first takes the jump from forecast to refresh into the
slope, one and a half times: such errors grow from refresh to refresh. Weights of which float32 leaves no digit are no
schedule; smaller ones may still end in NaN.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np
from numpy.typing import NDArray

from ddt_accel.rivals.rival import Variant, evenly, forecasting
from ddt_accel.rivals.taylor_seer import FIRST
from ddt_accel.schedule import Schedule
from ddt_accel.solver.solve import Statistics

Array = NDArray[np.float64]

SLOPES = ("steps", "refreshes")


def variants(statistics: Statistics) -> list[Variant]:
    return [
        Variant(settings=f"slope of {slope}, {first} first", of=partial(_schedule, statistics, slope, first))
        for first in FIRST
        for slope in SLOPES
    ]


def _schedule(statistics: Statistics, slope: str, first: int, runs: int) -> Schedule | None:
    evaluations = statistics.spec.num_evaluations
    steps = evenly(evaluations, runs, first=first)
    values = foca_values(slope, steps, evaluations)
    if np.abs(values).max() * np.finfo(np.float32).eps > 1:
        return None
    return forecasting(statistics, steps, lambda drawn, step: values[step, : len(drawn)].tolist())


def foca_values(slope: str, refreshes: Sequence[int], evaluations: int) -> Array:
    """F of all evaluations as weights of the refreshes, [E, R]."""
    own = np.eye(len(refreshes))
    values = np.zeros((evaluations, len(refreshes)))
    seen, anchor = 0, np.zeros(len(refreshes))
    for k in range(evaluations):
        if k not in refreshes:
            values[k] = values[k - 1] + (anchor + _slope(values[:k], range(k))) / 2
            continue
        values[k] = own[seen]
        seen += 1
        known = (values[: k + 1], range(k + 1)) if slope == "steps" else (own[:seen], refreshes[:seen])
        anchor = _slope(*known)
    return values


def _slope(values: Array, steps: Sequence[int]) -> Array:
    """By backward differences at the last of values [K, R], which belong to these steps."""
    quotients = np.diff(values[-3:], axis=0) / np.diff(steps[-3:])[:, None]
    coefficients = ([], [1.0], [-0.5, 1.5])[len(quotients)]
    slope: Array = np.array(coefficients) @ quotients
    return slope
