"""Refreshes of the unconditional branch at steps of its own.

Guidance reads `v_u + w (v_c − v_u)`: an error of the conditional branch counts |w| times, one of the unconditional
branch |1 − w| times, and nothing before the first guided evaluation. Each branch has its own Gram matrix and its own
exact program (solver/pairs.py), the unconditional one over the guided evaluations; with errors of branches adding up
as independent ones do, the best split of a total of encoder runs is the least of

    C_c(k)^γ + C_u(total − k)^γ        over k,

the min-plus convolution of the two curves. Where a second network guides, its runs cost something else, and the total
is one of costs: of a_c k + a_u l ≤ total, l is the most runs that k leaves.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np
from numpy.typing import NDArray

from ddt_accel.errors import ConfigError
from ddt_accel.schedule import Forecast, Schedule
from ddt_accel.solver.forecast import checked_gram, forecast_weights, pair_errors
from ddt_accel.solver.misses import SPLIT
from ddt_accel.solver.pairs import combined, pair_cost, solve_pairs
from ddt_accel.solver.solve import Method, Statistics, schedule_with

Array = NDArray[np.float64]

ALIKE = (1.0, 1.0)  # what runs of one network cost in its two branches
ROUNDING = 1e-9  # of a total of costs


def branch_runs(schedule: Schedule) -> tuple[int, int]:
    """How often the encoder runs for one image in either branch."""
    guided = schedule.spec.guidance_weights != 1.0
    if schedule.unconditional_steps is not None:
        return schedule.budget, len(schedule.unconditional_steps)
    read = {r for k in np.flatnonzero(guided).tolist() for r, _ in schedule.forecast_at(k)}
    return schedule.budget, len(read)


def encoder_runs(schedule: Schedule) -> int:
    """How often the encoder runs for one image in one branch, both branches counted."""
    return sum(branch_runs(schedule))


def split(
    calibration: Statistics, schedule: Schedule, method: Method, *, costs: tuple[float, float] = ALIKE
) -> Schedule:
    """The best schedule of no dearer encoder runs than `schedule` has, each branch at steps of its own.

    `costs` are those of a run in either branch. Raises ConfigError where nothing is guided, or for a method that it is
    not made for.
    """
    return min(splits(calibration, schedule, method, costs=costs), key=lambda found: found.predicted_cost or 0.0)


def splits(
    calibration: Statistics, schedule: Schedule, method: Method, *, costs: tuple[float, float] = ALIKE
) -> list[Schedule]:
    """The best schedule of every split of the encoder runs of `schedule`, by runs of the conditional branch.

    What the best of them was measured to miss, where calibration did, is taken for what all of them miss.
    """
    spec = calibration.spec
    guided = np.flatnonzero(spec.guidance_weights != 1.0)
    if len(guided) == 0:
        raise ConfigError("No step is guided, so that there is no unconditional branch to refresh.")
    if method.centred or method.objective not in ("sum", "power"):
        raise ConfigError("Branches are split for uncentred forecasts and the objectives 'sum' and 'power'.")
    if calibration.sensitivity is None:
        raise ConfigError(
            "The calibration has no sensitivities; calibrate with at least one sensitivity sample "
            "(--sensitivity-samples)."
        )
    weight = spec.guidance_weights
    total = sum(cost * runs for cost, runs in zip(costs, branch_runs(schedule), strict=True)) * (1 + ROUNDING)
    sensitivity = calibration.sensitivity * np.abs([weight, 1 - weight])
    every, first = np.arange(spec.num_evaluations), int(guided[0])
    prices = [
        _prices(calibration, branch, steps, sensitivity[branch], method)
        for branch, steps in enumerate((every, every[first:]))
    ]
    most = [min(int((total - costs[1 - side]) / costs[side]), len(price)) for side, price in enumerate(prices)]
    curves = [solve_pairs(price, runs, gamma=method.gamma) for price, runs in zip(prices, most, strict=True)]
    miss = calibration.misses.at(SPLIT, schedule.budget)
    found = []
    for runs, conditional in enumerate(curves[0], 1):
        left = int((total - costs[0] * runs) / costs[1])
        # Where more are left than there are steps, another run of the conditional branch may be had for nothing.
        spare = left > most[1] and total - costs[0] * (runs + 1) >= costs[1] * most[1] and runs < most[0]
        if left >= 1 and not spare:
            unconditional = curves[1][min(left, most[1]) - 1]
            steps = tuple(first + step for step in unconditional.refresh_steps)
            error = math.hypot(
                *(
                    pair_cost(price, solution.refresh_steps, gamma=2)
                    for price, solution in zip(prices, (conditional, unconditional), strict=True)
                )
            )
            found.append(
                dataclasses.replace(
                    split_with(calibration, conditional.refresh_steps, steps, method),
                    predicted_cost=combined(np.array([conditional.cost, unconditional.cost]), method.gamma),
                    predicted_error=error * miss,
                )
            )
    return found


def split_with(
    calibration: Statistics, refresh_steps: tuple[int, ...], unconditional_steps: tuple[int, ...], method: Method
) -> Schedule:
    """The schedule of given refresh steps of either branch, with the best forecasts for them."""
    return dataclasses.replace(
        schedule_with(calibration, refresh_steps, method),
        forecasts=_forecasts(calibration, 0, refresh_steps, method),
        unconditional_steps=unconditional_steps,
        unconditional_forecasts=_forecasts(calibration, 1, unconditional_steps, method),
        predicted_cost=None,
        predicted_error=None,
    )


def _prices(calibration: Statistics, branch: int, steps: NDArray[np.intp], sensitivity: Array, method: Method) -> Array:
    """The step prices [n, n, n] of a branch over some of the evaluations."""
    part = np.ix_(steps, steps)
    gram = checked_gram(calibration.branch_grams[branch][part])
    errors = pair_errors(method.forecast, gram, calibration.spec.times[steps], sources=method.sources)
    return sensitivity[steps] * errors


def _forecasts(calibration: Statistics, branch: int, refreshes: tuple[int, ...], method: Method) -> dict[int, Forecast]:
    if method.forecast == "hold":
        return {}
    gram, rows = checked_gram(calibration.branch_grams[branch]), {}
    for step in range(refreshes[0], len(gram)):
        if step not in refreshes:
            drawn = [refresh for refresh in refreshes if refresh < step][-method.sources :]
            weights = forecast_weights(method.forecast, gram, calibration.spec.times, drawn, step)
            rows[step] = tuple(zip(drawn, weights.tolist(), strict=True))
    return rows
