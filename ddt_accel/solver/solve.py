"""From calibrated statistics to a schedule."""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from ddt_accel.errors import ConfigError, NumericsError
from ddt_accel.schedule import Schedule, check_budget
from ddt_accel.solver.refresh import solve_refresh_steps, total_cost
from ddt_accel.spec import SamplingSpec


class Statistics(Protocol):
    """What the solver reads of a calibration."""

    @property
    def spec(self) -> SamplingSpec: ...
    @property
    def similarity(self) -> NDArray[np.float64]: ...
    @property
    def checkpoint_sha256(self) -> str: ...
    @property
    def sha256(self) -> str: ...


def similarity_cost(similarity: NDArray[np.float64]) -> NDArray[np.float64]:
    """The published objective, `d(j, i) = 1 − S[j, i]`, with d(i, i) = 0 exactly; [N, N].

    Raises NumericsError where the similarity is not finite.
    """
    if not np.isfinite(similarity).all():
        j, i = np.argwhere(~np.isfinite(similarity))[0]
        raise NumericsError(f"The similarity of steps {j} and {i} is {similarity[j, i]}; calibrate anew.")
    cost = np.clip(1.0 - similarity, 0.0, None)
    np.fill_diagonal(cost, 0.0)
    return cost


def solve(calibration: Statistics, budget: int, *, forecast: str = "hold", objective: str = "similarity") -> Schedule:
    """The schedule of least predicted cost with `budget` encoder runs.

    `forecast="hold"` reuses the last state as it is; `objective="similarity"` minimises the sum of 1 − cosine over the
    reuse steps: the published method (arXiv 2504.05741, section 4), solved exactly.
    """
    if forecast != "hold" or objective != "similarity":
        raise ConfigError(
            f"forecast {forecast!r} with objective {objective!r} is not known; use forecast 'hold' and objective "
            "'similarity'."
        )
    check_budget(budget, calibration.spec.num_evaluations)
    cost = similarity_cost(calibration.similarity)
    steps = solve_refresh_steps(cost, budget)
    return Schedule(
        spec=calibration.spec,
        refresh_steps=steps,
        objective=objective,
        predicted_cost=total_cost(cost, steps),
        checkpoint_sha256=calibration.checkpoint_sha256,
        calibration_sha256=calibration.sha256,
    )
