"""From calibrated statistics to a schedule."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from ddt_accel.errors import ConfigError, NumericsError
from ddt_accel.schedule import MAX_SOURCES, Forecast, Schedule, check_budget
from ddt_accel.solver.forecast import FORECASTS, checked_gram, forecast_error, forecast_weights, pair_errors
from ddt_accel.solver.pairs import pair_cost, solve_pairs
from ddt_accel.solver.refresh import solve_all_budgets, total_cost
from ddt_accel.spec import SamplingSpec

Array = NDArray[np.float64]

# The power of a segment's price in the sum over segments; see solver/pairs.py.
GAMMA = {"sum": 1.0, "power": 2.0, "minimax": math.inf}
OBJECTIVES = ("similarity", *GAMMA)


class Statistics(Protocol):
    """What the solver reads of a calibration."""

    @property
    def spec(self) -> SamplingSpec: ...
    @property
    def similarity(self) -> Array: ...
    @property
    def gram(self) -> Array: ...
    @property
    def mean(self) -> Array: ...
    @property
    def mean_modulations(self) -> NDArray[np.float32]: ...
    @property
    def sensitivity(self) -> Array | None: ...
    @property
    def checkpoint_sha256(self) -> str: ...
    @property
    def sha256(self) -> str: ...


@dataclass(frozen=True, kw_only=True)
class Certificate:
    """What a schedule's cost compares with, all under the same objective and the same kind of forecast.

    `exact` says whether no set of refresh steps of that size is better; `considered` how many there are, `ties` how
    many of them are as good ("minimax" does not count them).
    """

    cost: float
    uniform_cost: float
    published_cost: float
    exact: bool
    considered: int
    ties: int


def similarity_cost(similarity: Array) -> Array:
    """The published objective, `d(j, i) = 1 − S[j, i]`, with d(i, i) = 0 exactly; [N, N].

    Raises NumericsError where the similarity is not finite.
    """
    if not np.isfinite(similarity).all():
        j, i = np.argwhere(~np.isfinite(similarity))[0]
        raise NumericsError(f"The similarity of steps {j} and {i} is {similarity[j, i]}; calibrate anew.")
    cost = np.clip(1.0 - similarity, 0.0, None)
    np.fill_diagonal(cost, 0.0)
    return cost


def solve(
    calibration: Statistics,
    budget: int,
    *,
    forecast: str = "calibrated",
    objective: str = "power",
    sources: int = 2,
    centred: bool = True,
) -> Schedule:
    """The schedule of least predicted cost with `budget` encoder runs; see `solve_curve`."""
    curve = solve_curve(calibration, budget, forecast=forecast, objective=objective, sources=sources, centred=centred)
    return curve[-1][0]


def solve_curve(
    calibration: Statistics,
    max_budget: int,
    *,
    forecast: str = "calibrated",
    objective: str = "power",
    sources: int = 2,
    centred: bool = True,
) -> list[tuple[Schedule, Certificate]]:
    """The schedules for the budgets 1 … max_budget, from one pass of the exact program.

    `forecast` is "hold" (the last state), "linear" (extrapolation in t from the last two) or "calibrated" (the weights
    of least expected error for the last `sources` states, and if `centred` of their deviations from the mean
    trajectory). `objective` is "sum", "power" or "minimax" over segments of sensitivity times forecast error
    (solver/pairs.py), or "similarity": the sum of 1 − cosine with the state held, the published method
    (arXiv 2504.05741, section 4).

    The steps are optimal for forecasts from up to two states. With more `sources` they are those for two, and the
    forecasts are better, but other steps might be better still.
    """
    _check(calibration, forecast, objective, sources)
    spec = calibration.spec
    check_budget(max_budget, spec.num_evaluations)
    if objective == "similarity":
        return _published_curve(calibration, max_budget)
    sensitivity = calibration.sensitivity
    assert sensitivity is not None
    gram = checked_gram(calibration.gram)
    centred = centred and forecast == "calibrated"
    if centred:
        gram = gram - calibration.mean @ calibration.mean.T
        np.fill_diagonal(gram, np.maximum(gram.diagonal(), 0.0))
    wanted = {"hold": 1, "linear": 2, "calibrated": sources}[forecast]
    price = sensitivity * pair_errors(forecast, gram, spec.times, sources=wanted)
    gamma = GAMMA[objective]
    published = solve_all_budgets(similarity_cost(calibration.similarity))
    curve = []
    for budget, solution in enumerate(solve_pairs(price, max_budget, gamma=gamma), 1):
        steps = solution.refresh_steps
        forecasts, errors = _forecasts(forecast, gram, spec.times, steps, wanted)
        cost = _cost(sensitivity * errors, steps, gamma)
        schedule = Schedule(
            spec=spec,
            refresh_steps=steps,
            forecasts=forecasts,
            mean_modulations=calibration.mean_modulations if centred and forecasts else None,
            objective=objective,
            forecast=forecast,
            predicted_cost=cost,
            checkpoint_sha256=calibration.checkpoint_sha256,
            calibration_sha256=calibration.sha256,
        )
        certificate = Certificate(
            cost=solution.cost,
            uniform_cost=pair_cost(price, Schedule.uniform(spec, budget).refresh_steps, gamma=gamma),
            published_cost=pair_cost(price, published[budget - 1].refresh_steps, gamma=gamma),
            exact=wanted <= 2,
            considered=math.comb(spec.num_evaluations - 1, budget - 1),
            ties=solution.ties,
        )
        curve.append((schedule, certificate))
    return curve


def _check(calibration: Statistics, forecast: str, objective: str, sources: int) -> None:
    if forecast not in FORECASTS:
        raise ConfigError(f"forecast is {forecast!r}; choose one of {', '.join(FORECASTS)}.")
    if objective not in OBJECTIVES:
        raise ConfigError(f"objective is {objective!r}; choose one of {', '.join(OBJECTIVES)}.")
    if not 1 <= sources <= MAX_SOURCES:
        raise ConfigError(f"A forecast from {sources} states; give 1 to {MAX_SOURCES}.")
    if objective == "similarity" and forecast != "hold":
        raise ConfigError(
            f"The objective 'similarity' says nothing of a {forecast} forecast; use forecast 'hold', or another "
            "objective."
        )
    if objective != "similarity" and calibration.sensitivity is None:
        raise ConfigError(
            f"The calibration has no sensitivities, which objective {objective!r} needs; calibrate with at least one "
            "sensitivity sample, or use objective 'similarity' with forecast 'hold'."
        )


def _published_curve(calibration: Statistics, max_budget: int) -> list[tuple[Schedule, Certificate]]:
    cost, spec = similarity_cost(calibration.similarity), calibration.spec
    curve = []
    for budget, solution in enumerate(solve_all_budgets(cost)[:max_budget], 1):
        total = total_cost(cost, solution.refresh_steps)
        schedule = Schedule(
            spec=spec,
            refresh_steps=solution.refresh_steps,
            objective="similarity",
            predicted_cost=total,
            checkpoint_sha256=calibration.checkpoint_sha256,
            calibration_sha256=calibration.sha256,
        )
        certificate = Certificate(
            cost=total,
            uniform_cost=total_cost(cost, Schedule.uniform(spec, budget).refresh_steps),
            published_cost=total,
            exact=True,
            considered=math.comb(spec.num_evaluations - 1, budget - 1),
            ties=solution.ties,
        )
        curve.append((schedule, certificate))
    return curve


def _forecasts(
    forecast: str, gram: Array, times: Array, steps: tuple[int, ...], wanted: int
) -> tuple[dict[int, Forecast], Array]:
    """The weights at every reuse step, none where the last state is held, and the expected errors [N]."""
    rows: dict[int, Forecast] = {}
    errors = np.zeros(len(gram))
    for step in sorted(set(range(len(gram))) - set(steps)):
        drawn = [refresh for refresh in steps if refresh < step][-wanted:]
        weights = forecast_weights(forecast, gram, times, drawn, step)
        errors[step] = forecast_error(gram, drawn, weights, step)
        if forecast != "hold":
            rows[step] = tuple(zip(drawn, weights.tolist(), strict=True))
    return rows, errors


def _cost(prices: Array, steps: tuple[int, ...], gamma: float) -> float:
    """A schedule's cost from its step prices [N]."""
    segments = np.add.reduceat(prices, steps)
    return float(segments.max() if math.isinf(gamma) else (segments**gamma).sum() ** (1 / gamma))
