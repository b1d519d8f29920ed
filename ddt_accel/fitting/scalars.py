"""The scalars of a trajectory as parameters: its times, its integrator's weights, its forecasts' weights.

Times are `t_k = T Σ_{j ≤ k} softmax(γ)_j` over E + 1 gaps, the last of them up to the trajectory's end T: they increase
and stay in [0, T), rounding aside, and a gap of 0 stays 0. The integrator is a full lower triangle, every velocity so
far in every row (a non-stationary solver, arXiv 2403.01329), in units of the row's step, so that it follows when times
move. A forecast draws on the last few refreshed states.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ddt_accel.errors import ConfigError
from ddt_accel.sampling.program import compile_program
from ddt_accel.schedule import FITTED, Forecast, Row, Schedule

LATEST = 1 - 2.0**-20  # the latest time, in float32 below 1
TIMES, INTEGRATOR, FORECASTS = KINDS = ("times", "integrator", "forecasts")


class Scalars(nn.Module):
    """The numbers of a schedule, float64; those of the kinds in `free` can be trained.

    `modulation_bias` [M] are the modulations of a state of zeros, which forecasts are relative to where the schedule
    has no mean trajectory, `guide_bias` those of a second network that guides. With `sources` of 2 or more, forecasts
    may draw on more states than the schedule's do, at first with weight 0.
    """

    def __init__(
        self,
        schedule: Schedule,
        modulation_bias: NDArray[np.float32],
        *,
        free: Collection[str] = KINDS,
        sources: int = 2,
        guide_bias: NDArray[np.float32] | None = None,
    ) -> None:
        super().__init__()
        if not set(free) <= set(KINDS) or not free:
            raise ConfigError(f"{', '.join(free) or 'Nothing'} cannot be fitted; choose from {', '.join(KINDS)}.")
        if schedule.spec.solver == "sde":
            raise ConfigError("A stochastic sampler has no trajectory to fit to; take a deterministic solver.")
        self.free = frozenset(free)
        wide = widened(schedule, modulation_bias, sources, guide_bias=guide_bias) if FORECASTS in free else schedule
        self.warm = wide
        self.program = compile_program(self.warm)
        evaluations = self.program.evaluations
        self.count = count = len(evaluations)
        self.end = float(schedule.spec.grid[-1])
        times = np.minimum([evaluation.time for evaluation in evaluations], self.end)
        with np.errstate(divide="ignore"):
            gaps = np.log(np.diff(times, prepend=0.0, append=self.end))
        # The gap up to a first time of 0 stays, so that a single time cannot move.
        self.gaps = self._parameter(TIMES, gaps, can_move=np.isfinite(gaps).sum() > 1)
        self.integrator = self._parameter(INTEGRATOR, np.zeros((count, count)))
        self.set_integrator(self.warm)
        branches = (False,) if schedule.unconditional_steps is None else (False, True)
        rows = [[self.warm.forecast_at(k, unconditional=side) for k in range(count)] for side in branches]
        forecasts = np.zeros((len(branches), count, count))
        for side, branch in enumerate(rows):
            for k, row in enumerate(branch):
                for r, weight in row:
                    forecasts[side, k, r] = weight
        shared = bool(self.warm.forecasts or self.warm.unconditional_forecasts)
        self.forecasts = self._parameter(FORECASTS, forecasts, can_move=shared)
        if not any(value.requires_grad for value in self.parameters()):
            raise ConfigError(f"This schedule has no {' or '.join(sorted(self.free))} that could be fitted.")
        self.means: Tensor | None
        self.guide_means: Tensor | None
        self.source_means: Tensor | None
        self.register_buffer("means", _every(self.warm.mean_modulations, count))
        self.register_buffer("guide_means", _every(self.warm.guide_mean_modulations, count))
        # Those of the states that there are: at narrow refreshes the narrow encoder's.
        self.register_buffer("source_means", None if self.means is None else self.means.clone())
        if self.source_means is not None and (narrow := self.warm.narrow_mean_modulations) is not None:
            self.source_means[list(self.warm.encoder_widths)] = torch.from_numpy(narrow)

    def means_of(self, side: int) -> Tensor | None:
        """What the forecasts of a branch (0 conditional, 1 unconditional) are relative to, [E, M]."""
        return self.guide_means if side == 1 and self.warm.guide_sha256 is not None else self.means

    def source_means_of(self, side: int) -> Tensor:
        """The means [E, M] of the states that a branch's forecasts draw on; there are some where `means_of` has any."""
        found = self.guide_means if side == 1 and self.warm.guide_sha256 is not None else self.source_means
        assert found is not None
        return found

    def set_integrator(self, schedule: Schedule) -> None:
        """Takes over the integrator of a schedule of the same times."""
        steps, rows = self._steps.tolist(), torch.zeros(self.count, self.count, dtype=torch.float64)
        for k, evaluation in enumerate(compile_program(schedule).evaluations):
            for j, weight in evaluation.update.velocities:
                rows[k, j] = weight / steps[k]
        with torch.no_grad():
            self.integrator.copy_(rows)

    def _parameter(self, kind: str, values: NDArray[np.float64], *, can_move: bool = True) -> nn.Parameter:
        return nn.Parameter(torch.from_numpy(values), requires_grad=bool(kind in self.free and can_move))

    @property
    def times(self) -> Tensor:
        """The time of every evaluation, [E]."""
        # Sums round, and in parallel not even monotonically.
        return (self.end * self.gaps.softmax(0).cumsum(0)[:-1]).cummax(0).values.clamp(max=min(LATEST, self.end))

    @property
    def weights(self) -> Tensor:
        """B, lower triangular [E, E]: `x_{k+1} = x_k + Σ_j B[k, j] v_j`."""
        return self.integrator.tril() * self._steps[:, None]

    @property
    def _steps(self) -> Tensor:
        """What an integrator's rows are in units of, [E]: the time to the next evaluation.

        Heun's corrector, which stands still, has its own step; where time stands still otherwise it is an even step.
        """
        gaps = self.end * self.gaps.softmax(0)
        steps = torch.where(gaps[1:] > 0, gaps[1:], gaps[:-1])
        return torch.where(steps > 0, steps, torch.full_like(steps, 1 / self.count))

    def schedule(self) -> Schedule:
        """The schedule of the present numbers."""
        changes: dict[str, object] = {}
        if TIMES in self.free:
            changes["times"] = tuple(self.times.tolist())
        if self.free & {INTEGRATOR, TIMES}:  # where times move, the steps do
            changes["integrator"] = tuple(
                tuple((j, weight) for j, weight in enumerate(row[: k + 1]) if weight)
                for k, row in enumerate(self.weights.tolist())
            )
        if FORECASTS in self.free:
            changes["forecasts"] = self._rows(self.warm.forecasts, 0)
            if self.warm.unconditional_steps is not None:
                changes["unconditional_forecasts"] = self._rows(self.warm.unconditional_forecasts, 1)
            if self.forecasts.requires_grad:
                changes["forecast"] = FITTED
        return dataclasses.replace(self.warm, **changes, objective=FITTED, predicted_cost=None, predicted_error=None)  # type: ignore[arg-type]

    def _rows(self, pattern: Collection[int], side: int) -> dict[int, Forecast]:
        rows = (self.warm.forecasts, self.warm.unconditional_forecasts)[side]
        values = self.forecasts[side].tolist()
        return {k: tuple((r, values[k][r]) for r, _ in rows[k]) for k in sorted(pattern)}


def _every(means: NDArray[np.float32] | None, count: int) -> Tensor | None:
    return None if means is None else torch.from_numpy(np.broadcast_to(means, (count, means.shape[1])).copy())


def widened(
    schedule: Schedule,
    modulation_bias: NDArray[np.float32],
    sources: int,
    *,
    guide_bias: NDArray[np.float32] | None = None,
) -> Schedule:
    """The same schedule with a row for every reuse step and corrected refresh, of the last `sources` refreshes where
    that costs no encoder run, the new ones with weight 0."""
    if sources < 1:
        raise ConfigError(f"A forecast from {sources} states; give 1 or more.")

    own, guidance = schedule.unconditional_steps, schedule.spec.guidance_weights
    read = {
        k
        for k, evaluation in enumerate(compile_program(schedule).evaluations)
        if evaluation.unconditional is not None and evaluation.unconditional.encode
    }

    def rows(steps: tuple[int, ...], unconditional: bool) -> dict[int, Forecast]:
        wide: dict[int, Row] = {}
        for k in range(steps[0], schedule.spec.num_evaluations):
            if k not in steps or (k in schedule.encoder_widths and k in schedule.forecasts):
                given = dict(schedule.forecast_at(k, unconditional=unconditional))
                # A guided step that read another refresh would have the unconditional branch encoded there, too.
                shares_rows = own is None and guidance[k] != 1.0
                last = [r for r in steps if r <= k and (r in read or not shares_rows)][-sources:]
                added = [r for r in last if r not in given]
                wide[k] = tuple((r, given.get(r, 0.0)) for r in sorted([*given, *added]))
        return wide

    forecasts = rows(schedule.refresh_steps, False)
    unconditional = rows(own, True) if own is not None else {}
    changes: dict[str, Any] = {"forecasts": forecasts, "unconditional_forecasts": unconditional}
    every = [*forecasts.values(), *unconditional.values()]
    # Without means there is no constant; while weights add up to 1 there would be none with them, either.
    adding_up = every and all(abs(sum(w for _, w in row) - 1) < 1e-9 for row in every)
    if schedule.mean_modulations is None and adding_up:
        changes["mean_modulations"] = modulation_bias[None]
        if schedule.guide_sha256 is not None and guide_bias is not None:
            changes["guide_mean_modulations"] = guide_bias[None]
    return dataclasses.replace(schedule, **changes)
