"""A trajectory as data: what the loop does at every evaluation, in numbers only."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ddt_accel.sampling.integrators import Update, updates
from ddt_accel.schedule import Forecast, Schedule


@dataclass(frozen=True, kw_only=True, eq=False)
class Evaluation:
    """One evaluation of the network."""

    time: float
    guidance: float  # 1: the unconditional branch is not needed
    forecast: Forecast  # ((k, 1.0),) at refresh k itself
    constant: NDArray[np.float32] | None  # c_k [M], added to the forecast
    encode_both: bool  # at a refresh: encode the unconditional branch too
    update: Update

    @property
    def decode_both(self) -> bool:
        return self.guidance != 1.0

    @property
    def holds(self) -> bool:
        """Whether the forecast is the last refreshed state as it is."""
        return len(self.forecast) == 1 and self.forecast[0][1] == 1.0 and self.constant is None


@dataclass(frozen=True, kw_only=True)
class Program:
    """The evaluations of a trajectory, and which of them refresh the state."""

    evaluations: tuple[Evaluation, ...]
    refresh_steps: frozenset[int]

    @property
    def stochastic(self) -> bool:
        return any(evaluation.update.noise for evaluation in self.evaluations)


def compile_program(schedule: Schedule, *, encode_unconditional: str = "read") -> Program:
    """The program of a schedule.

    The unconditional branch is encoded only at refreshes that a guided evaluation reads, or with
    `encode_unconditional="always"` (calibration averages over both branches) at every one.
    """
    spec = schedule.spec
    guidance = spec.guidance_weights.tolist()
    rows = [schedule.forecast_at(k) for k in range(spec.num_evaluations)]
    read = {r for k, row in enumerate(rows) if guidance[k] != 1.0 for r, _ in row}
    return Program(
        evaluations=tuple(
            Evaluation(
                time=time,
                guidance=guidance[k],
                forecast=rows[k],
                constant=_constant(schedule.mean_modulations, k, rows[k]),
                encode_both=encode_unconditional == "always" or k in read,
                update=update,
            )
            for k, (time, update) in enumerate(zip(spec.times.tolist(), updates(spec), strict=True))
        ),
        refresh_steps=frozenset(schedule.refresh_steps),
    )


def _constant(means: NDArray[np.float32] | None, k: int, row: Forecast) -> NDArray[np.float32] | None:
    """c_k = μ_k − Σ w μ_r: with it the forecast is of the deviation from the states of modulations μ [E, M] or [1, M].

    Modulations are affine in the state, so that means and forecasts of states are means and forecasts of modulations.
    """
    if means is None or row == ((k, 1.0),):
        return None
    wide = np.broadcast_to(means.astype(np.float64), (max(len(means), k + 1), means.shape[1]))
    constant: NDArray[np.float32] = (wide[k] - sum(w * wide[r] for r, w in row)).astype(np.float32)
    return constant
