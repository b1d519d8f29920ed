"""From calibrated statistics to a schedule."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from ddt_accel.errors import ConfigError, NumericsError
from ddt_accel.schedule import Forecast, Schedule, check_budget
from ddt_accel.solver.forecast import FORECASTS, centred, checked_gram, forecast_error, forecast_weights, pair_errors
from ddt_accel.solver.misses import Misses
from ddt_accel.solver.pairs import combined, pair_cost, solve_pairs
from ddt_accel.solver.refresh import Solution, solve_all_budgets, total_cost
from ddt_accel.solver.width_statistics import WidthStatistics
from ddt_accel.solver.widths import MOST_EVALUATIONS, RefreshCosts, solve_widths
from ddt_accel.spec import SamplingSpec

Array = NDArray[np.float64]

# The power of a segment's price in the sum over segments; see solver/pairs.py.
GAMMA = {"sum": 1.0, "power": 2.0, "minimax": math.inf}
OBJECTIVES = ("similarity", *GAMMA)


@dataclass(frozen=True, kw_only=True, eq=False)
class GuideMeans:
    """Of a second network that guides: which one it is, the modulations [E, M] of its states' means, and those [M] of a
    state of zeros."""

    checkpoint_sha256: str
    mean_modulations: NDArray[np.float32]
    modulation_bias: NDArray[np.float32]


class Statistics(Protocol):
    """What the solver reads of a calibration."""

    @property
    def spec(self) -> SamplingSpec: ...
    @property
    def similarity(self) -> Array: ...
    @property
    def gram(self) -> Array: ...
    @property
    def branch_grams(self) -> Array: ...
    @property
    def mean_gram(self) -> Array: ...
    @property
    def mean_modulations(self) -> NDArray[np.float32]: ...
    @property
    def modulation_bias(self) -> NDArray[np.float32]: ...
    @property
    def guide(self) -> GuideMeans | None: ...
    @property
    def sensitivity(self) -> Array | None: ...
    @property
    def widths(self) -> WidthStatistics | None: ...
    @property
    def misses(self) -> Misses: ...
    @property
    def checkpoint_sha256(self) -> str: ...
    @property
    def sha256(self) -> str: ...


@dataclass(frozen=True, kw_only=True)
class Method:
    """How schedules are solved for.

    `forecast` is "hold" (the last state), "linear" (extrapolation in t from the last two) or "calibrated" (the weights
    of least expected error for the last `sources` states, and if `centred` of their deviations from the mean
    trajectory). `objective` is "sum", "power" or "minimax" over segments of sensitivity times forecast error
    (solver/pairs.py), or "similarity": the sum of 1 − cosine with the state held.
    """

    forecast: str = "calibrated"
    objective: str = "sum"
    sources: int = 2
    centred: bool = True

    def __post_init__(self) -> None:
        if self.forecast not in FORECASTS:
            raise ConfigError(f"forecast is {self.forecast!r}; choose one of {', '.join(FORECASTS)}.")
        if self.objective not in OBJECTIVES:
            raise ConfigError(f"objective is {self.objective!r}; choose one of {', '.join(OBJECTIVES)}.")
        if self.sources < 1:
            raise ConfigError(f"A forecast from {self.sources} states; give 1 or more.")
        if self.objective == "similarity" and self.forecast != "hold":
            raise ConfigError(
                f"The objective 'similarity' says nothing of a {self.forecast} forecast; use forecast 'hold', or "
                "another objective."
            )
        if self.forecast != "calibrated":  # settings that mean nothing, so that equal methods compare equal
            object.__setattr__(self, "sources", {"hold": 1, "linear": 2}[self.forecast])
            object.__setattr__(self, "centred", False)

    @property
    def gamma(self) -> float:
        return GAMMA[self.objective]


# Section 4 of the paper (arXiv 2504.05741), solved exactly.
PUBLISHED = Method(forecast="hold", objective="similarity")


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
    objective: str = "sum",
    sources: int = 2,
    centred: bool = True,
) -> Schedule:
    """The schedule of least predicted cost with `budget` encoder runs; see `Method` and `solve_curve`."""
    method = Method(forecast=forecast, objective=objective, sources=sources, centred=centred)
    return solve_curve(calibration, budget, method)[-1][0]


def solve_curve(
    calibration: Statistics, max_budget: int, method: Method | None = None
) -> list[tuple[Schedule, Certificate]]:
    """The schedules for the budgets 1 … max_budget, from one pass of the exact program.

    The steps are optimal for forecasts from up to two states. With more `sources` they are those for two, and the
    forecasts are better, but other steps might be better still.
    """
    method = method or Method()
    spec = calibration.spec
    check_budget(max_budget, spec.num_evaluations)
    published = solve_all_budgets(similarity_cost(calibration.similarity))[:max_budget]
    pricing = None if method == PUBLISHED else _Pricing(calibration, method)
    solutions = pricing.solve(max_budget) if pricing else published
    curve = []
    for budget, solution in enumerate(solutions, 1):
        price = pricing.pair_cost if pricing else partial(total_cost, similarity_cost(calibration.similarity))
        certificate = Certificate(
            cost=solution.cost,
            uniform_cost=price(Schedule.uniform(spec, budget).refresh_steps),
            published_cost=price(published[budget - 1].refresh_steps),
            exact=method.sources <= 2,
            considered=math.comb(spec.num_evaluations - 1, budget - 1),
            ties=solution.ties,
        )
        curve.append((schedule_with(calibration, solution.refresh_steps, method, pricing), certificate))
    return curve


def solve_runs(calibration: Statistics, method: Method) -> list[Schedule]:
    """The schedules of least predicted cost for every number of encoder runs, those of both branches counted: once each
    where several numbers have the same one.

    `solve_curve` counts refreshes; but where nothing guided reads its state a refresh is one run, not two, so that
    there may be more of them. The program over costs is for calibrated forecasts from two states and finite γ, of one
    network and up to `MOST_EVALUATIONS`; else it is `solve_curve` all the same.
    """
    guided = calibration.spec.guidance_weights != 1.0
    count, apart = len(guided), guided.any() and not guided.all()
    by_pairs = method.forecast == "calibrated" and method.sources == 2 and math.isfinite(method.gamma)
    if not by_pairs or not apart or calibration.guide is not None or count > MOST_EVALUATIONS:
        return [schedule for schedule, _ in solve_curve(calibration, count, method)]
    pricing = _Pricing(calibration, method)
    served = np.arange(count) > np.arange(count)[:, None]  # [b, i]: a refresh is no forecast
    prices = np.where(served, pricing.prices, 0.0)[:, None, :, None, :]
    costs = RefreshCosts(alone=(1,), both=(2,), guided=guided)
    solutions = solve_widths(prices, costs, 2 * count, gamma=method.gamma)
    found = dict.fromkeys(solution.refreshes for solution in solutions if solution is not None)
    return [schedule_with(calibration, tuple(step for step, _ in one), method, pricing) for one in found]


def schedule_with(
    calibration: Statistics, refresh_steps: tuple[int, ...], method: Method, pricing: _Pricing | None = None
) -> Schedule:
    """The schedule of given refresh steps: the best forecasts for them, and what it is predicted to cost."""
    bare = Schedule(
        spec=calibration.spec,
        refresh_steps=refresh_steps,
        objective=method.objective,
        forecast=method.forecast,
        checkpoint_sha256=calibration.checkpoint_sha256,
        guide_sha256=calibration.guide.checkpoint_sha256 if calibration.guide else None,
        calibration_sha256=calibration.sha256,
    )
    if method == PUBLISHED:
        cost = total_cost(similarity_cost(calibration.similarity), refresh_steps)
        return dataclasses.replace(bare, predicted_cost=cost)
    pricing = pricing or _Pricing(calibration, method)
    forecasts, segments = pricing.forecasts(refresh_steps)
    means, guide_means = None, None
    if method.forecast == "calibrated" and forecasts:
        # Without a mean trajectory forecasts are relative to a state of zeros, whose modulations are the bias.
        means, guide_means = (
            None if one is None else one.mean_modulations if method.centred else one.modulation_bias[None]
            for one in (calibration, calibration.guide)
        )
    return dataclasses.replace(
        bare,
        forecasts=forecasts,
        mean_modulations=means,
        guide_mean_modulations=guide_means,
        predicted_cost=combined(segments, method.gamma),
        predicted_error=combined(segments, GAMMA["power"]) * calibration.misses.of(method.forecast, len(refresh_steps)),
    )


class _Pricing:
    """What errors of the state cost under a method; see solver/forecast.py and solver/pairs.py."""

    def __init__(self, calibration: Statistics, method: Method) -> None:
        if calibration.sensitivity is None:
            raise ConfigError(
                f"The calibration has no sensitivities, which objective {method.objective!r} needs: none were asked "
                "for, or the states never change. Calibrate with at least one sensitivity sample "
                "(--sensitivity-samples), or use objective 'similarity' with forecast 'hold'."
            )
        self.method, self.times, self.sensitivity = method, calibration.spec.times, calibration.sensitivity
        gram = calibration.gram
        self.gram = checked_gram(centred(gram, calibration.mean_gram) if method.centred else gram)

    @cached_property
    def prices(self) -> Array:
        errors = pair_errors(self.method.forecast, self.gram, self.times, sources=self.method.sources)
        return self.sensitivity * errors

    def solve(self, max_budget: int) -> list[Solution]:
        return solve_pairs(self.prices, max_budget, gamma=self.method.gamma)

    def pair_cost(self, refresh_steps: tuple[int, ...]) -> float:
        return pair_cost(self.prices, refresh_steps, gamma=self.method.gamma)

    def forecasts(self, steps: tuple[int, ...]) -> tuple[dict[int, Forecast], Array]:
        """The weights at every reuse step, none where the last state is held, and the prices of the segments."""
        rows: dict[int, Forecast] = {}
        errors = np.zeros(len(self.gram))
        for step in sorted(set(range(len(self.gram))) - set(steps)):
            drawn = [refresh for refresh in steps if refresh < step][-self.method.sources :]
            weights = forecast_weights(self.method.forecast, self.gram, self.times, drawn, step)
            errors[step] = forecast_error(self.gram, drawn, weights, step)
            if self.method.forecast != "hold":
                rows[step] = tuple(zip(drawn, weights.tolist(), strict=True))
        return rows, np.add.reduceat(self.sensitivity * errors, steps)
