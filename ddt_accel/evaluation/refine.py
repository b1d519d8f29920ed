"""Closing the loop: schedules compared by where their trajectories end.

Reuse moves the trajectory, and what a calibration on unshared trajectories predicts does not see that. Starting from a
solved schedule, those neighbours with one refresh elsewhere that are predicted to be best are run from the same noise.
A neighbour takes over where it ends closer to the unshared trajectory by more than the noise of the comparison.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from ddt_accel.backends.sample import sample_images
from ddt_accel.errors import ConfigError
from ddt_accel.evaluation.fidelity import Interval, interval, latent_decibels
from ddt_accel.sampling.backend import Backend
from ddt_accel.sampling.noise import ImageRange
from ddt_accel.schedule import Schedule
from ddt_accel.solver.solve import Method, Statistics, schedule_with

# How many neighbours are run in a round, and how many rounds there are at most.
TRIED, ROUNDS = 12, 6
# A neighbour wins by this many standard errors of the paired difference; with a dozen tries a round chance alone
# passes 2 often.
SIGNIFICANT = 3.0


@dataclass(frozen=True, kw_only=True)
class Refined:
    """A schedule after refinement, and what that gained in dB: on the images it was chosen on, and on others."""

    schedule: Schedule
    rounds: int
    runs: int
    gain: Interval | None
    held_out_gain: Interval | None


def refine(
    backend: Backend,
    statistics: Statistics,
    schedule: Schedule,
    method: Method,
    *,
    latent_shape: tuple[int, int, int],
    images: ImageRange,
    held_out: ImageRange,
    batch_size: int,
    on_run: Callable[[], None],
) -> Refined:
    """Moves refreshes of `schedule` while that brings the trajectories of `images` closer to the unshared ones.

    A schedule whose gain on `held_out` is not significant is given up for the one it started from.
    """
    if min(images.count, held_out.count) < 4:
        raise ConfigError("Refinement compares schedules over images; give at least 4 of them.")
    unshared = Schedule.full(schedule.spec)

    def end(candidate: Schedule, over: ImageRange) -> Tensor:
        ends = sample_images(backend, candidate, over, latent_shape, batch_size)
        on_run()
        return ends

    def decibels(candidate: Schedule, over: ImageRange, reference: Tensor) -> NDArray[np.float64]:
        return latent_decibels(end(candidate, over), reference)

    reference = end(unshared, images)
    start = current = decibels(schedule, images, reference)
    best, known, runs, rounds = schedule, {schedule.refresh_steps}, 1, 0
    while rounds < ROUNDS:
        rounds += 1
        neighbours = [steps for steps in moved(best.refresh_steps, schedule.spec.num_evaluations) if steps not in known]
        candidates = [schedule_with(statistics, steps, method) for steps in neighbours]
        candidates.sort(key=lambda candidate: candidate.predicted_cost or 0.0)
        winner = None
        for candidate in candidates[:TRIED]:
            known.add(candidate.refresh_steps)
            values = decibels(candidate, images, reference)
            runs += 1
            difference = values - current
            error = difference.std(ddof=1) / np.sqrt(len(difference))
            if difference.mean() > SIGNIFICANT * error:
                winner, current = candidate, values
        if winner is None:
            break
        best = winner
    if best is schedule:
        return Refined(schedule=schedule, rounds=rounds, runs=runs, gain=None, held_out_gain=None)
    elsewhere = end(unshared, held_out)
    held_out_gain = interval(decibels(best, held_out, elsewhere) - decibels(schedule, held_out, elsewhere))
    if held_out_gain is None or held_out_gain.low <= 0:
        best = schedule
    return Refined(
        schedule=dataclasses.replace(best, objective=schedule.objective),
        rounds=rounds,
        runs=runs,
        gain=interval(current - start),
        held_out_gain=held_out_gain,
    )


def moved(refresh_steps: tuple[int, ...], num_evaluations: int) -> list[tuple[int, ...]]:
    """All sets of refresh steps that differ in one, the first of them staying."""
    taken = set(refresh_steps)
    free = [step for step in range(num_evaluations) if step not in taken]
    return [tuple(sorted(taken - {dropped} | {added})) for dropped in refresh_steps[1:] for added in free]
