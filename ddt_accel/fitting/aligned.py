"""Forecasts in closed form: one pass along the shared trajectory, which keeps it beside the unshared one.

A calibration sees unshared trajectories. On a shared one states are others, and errors of forecasts add up. So the
weights of evaluation k are chosen where the shared trajectory really is, and not for the state but for what becomes of
it: of the next latent x_{k+1}(w), which the decoder makes from the forecast Σ w s,

    min_w  Σ_i log ‖x_{k+1}^i(w) − x*_{k+1}^i‖²     over images i,

x* being where the images should be, by Gauss–Newton with differences of decoder runs. An error of before is made good
as far as a forecast can. It takes no gradient, no encoder run beyond the schedule's own, and any backend. That what is
known of states has to be estimated once more along the shared trajectory was published in arXiv 2605.24870.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ddt_accel.backends.sample import sample_images
from ddt_accel.errors import ConfigError
from ddt_accel.evaluation.course import passed
from ddt_accel.evaluation.fidelity import Interval, interval, latent_decibels
from ddt_accel.fitting.least_squares import least_log, system
from ddt_accel.networks.config import LatentShape
from ddt_accel.sampling.backend import Backend
from ddt_accel.sampling.noise import ImageRange
from ddt_accel.sampling.program import Evaluation, compile_program, reweighted
from ddt_accel.sampling.trajectory import Trajectory, begun
from ddt_accel.schedule import Forecast, Schedule

# By how much a weight is moved to see what becomes of it; how often all of them are moved; and how much the square of a
# move counts, by that of the last input: two states are nearly alike, and half precision tells no more of them.
DIFFERENCE, ROUNDS, RIDGE = 0.02, 2, 1e-4
ALIGNED = "aligned"


@dataclass(frozen=True, kw_only=True)
class Aligned:
    """A schedule after alignment, or as it was where that gained nothing; and on images that it was not aligned on the
    gain in dB, and the root-mean-square error of the final latents to the unshared ones."""

    schedule: Schedule
    gain: Interval | None
    error: float


def aligned(
    backend: Backend, schedule: Schedule, shape: LatentShape, images: ImageRange, held_out: ImageRange, batch_size: int
) -> Aligned:
    """The schedule with its forecasts aligned with its own sampler without sharing, on some images, where the gain on
    others is significant; its `predicted_error` is what was measured on these, which decided, and are remembered."""
    found = align(backend, schedule, unshared_path(backend, schedule, images, shape, batch_size), images, batch_size)

    def ends(one: Schedule) -> Tensor:
        return sample_images(backend, one, held_out, shape, batch_size)

    unshared, before, after = ends(schedule.unshared()), ends(schedule), ends(found)
    gain = interval(latent_decibels(after, unshared) - latent_decibels(before, unshared))
    kept, end = (found, after) if gain is not None and gain.low > 0 else (schedule, before)
    error = float((end - unshared).double().square().mean().sqrt())
    kept = dataclasses.replace(kept, predicted_error=error, fitted_on=held_out.joined(kept.fitted_on))
    return Aligned(schedule=kept, gain=gain, error=error)


def unshared_path(backend: Backend, schedule: Schedule, images: ImageRange, shape: LatentShape, size: int) -> Tensor:
    """Where images are after every evaluation of a schedule's own sampler without sharing, [E, B, C, H, W] float32."""
    return passed(backend, schedule.unshared(), images, shape, size)[1:]


def align(backend: Backend, schedule: Schedule, path: Tensor, images: ImageRange, batch_size: int) -> Schedule:
    """The schedule with the weights of its forecasts chosen so that the trajectories of `images` stay beside `path`.

    `path` [E, B, C, H, W] is where they should be after every evaluation (`unshared_path`). Where a state is held there
    is no weight to choose (fitting.scalars.widened makes them). Raises ConfigError for a stochastic sampler.
    """
    if schedule.spec.solver == "sde":
        raise ConfigError("A stochastic sampler has no trajectory to stay beside; take a deterministic solver.")
    channels, height, width = path.shape[2:]
    program = compile_program(schedule)
    trajectories = begun(backend, program, images, (channels, height, width), batch_size)
    for k, evaluation in enumerate(program.evaluations):
        chosen = None
        if _free(schedule, evaluation):
            aims = [aim.to(backend.device) for aim in path[k].split(batch_size)]
            schedule = _aligned_at(schedule, evaluation, k, trajectories, aims)
            chosen = reweighted(schedule, evaluation, k)
        for trajectory in trajectories:
            trajectory.evaluate(k, chosen)
            trajectory.advance(k, evaluation.update)
    return dataclasses.replace(
        schedule,
        forecast=ALIGNED,
        predicted_cost=None,
        predicted_error=None,
        fitted_on=images.joined(schedule.fitted_on),
    )


def _free(schedule: Schedule, evaluation: Evaluation) -> list[int]:
    """The branches whose forecasts have weights of their own to choose."""
    branches = evaluation.branches
    if schedule.unconditional_steps is None:
        branches = branches[:1]
    return [side for side, one in enumerate(branches) if one.corrected or (not one.encode and one.held is None)]


def _aligned_at(
    schedule: Schedule, evaluation: Evaluation, k: int, trajectories: list[Trajectory], aims: list[Tensor]
) -> Schedule:
    """The schedule with the best weights found for evaluation k."""
    sides = _free(schedule, evaluation)
    drawn = [schedule.forecast_at(k, unconditional=side == 1) for side in sides]
    weights = torch.tensor([weight for row in drawn for _, weight in row], dtype=torch.float64)
    best, least = schedule, math.inf
    for trial in range(ROUNDS + 1):
        tried = _with(schedule, k, sides, drawn, weights)
        ahead = [_ahead(tried, evaluation, k, one) for one in trajectories]
        squares = torch.cat([_squares(aim - x) for aim, x in zip(aims, ahead, strict=True)])
        loss = squares.log().sum().item()
        if not loss < least:
            break
        best, least = tried, loss
        if trial == ROUNDS:
            break
        moved = weights + DIFFERENCE * torch.eye(len(weights), dtype=torch.float64)
        others = [_with(schedule, k, sides, drawn, one) for one in moved]
        systems = []
        for trajectory, x, aim in zip(trajectories, ahead, aims, strict=True):
            inputs = [(_ahead(one, evaluation, k, trajectory) - x) / DIFFERENCE for one in others]
            systems.append(system(torch.stack(inputs), aim - x))
        gram, right, square = (torch.cat(parts) for parts in zip(*systems, strict=True))
        weights = weights + least_log(gram, right, square, ridge=RIDGE)
    return best


def _with(schedule: Schedule, k: int, sides: list[int], drawn: list[Forecast], weights: Tensor) -> Schedule:
    """The schedule with these weights at evaluation k, of one branch after the other."""
    given = iter(weights.tolist())
    rows = {side: tuple((r, next(given)) for r, _ in row) for side, row in zip(sides, drawn, strict=True)}
    return dataclasses.replace(
        schedule,
        forecasts={**schedule.forecasts, **({k: rows[0]} if 0 in rows else {})},
        unconditional_forecasts={**schedule.unconditional_forecasts, **({k: rows[1]} if 1 in rows else {})},
    )


def _ahead(schedule: Schedule, evaluation: Evaluation, k: int, trajectory: Trajectory) -> Tensor:
    """Where a trajectory would be after evaluation k, [B, C, H, W]."""
    trajectory.evaluate(k, reweighted(schedule, evaluation, k))
    return trajectory.ahead(k, evaluation.update)


def _squares(error: Tensor) -> Tensor:
    return error.double().square().flatten(1).sum(1).cpu().clamp_min(1e-30)
