"""An integrator in closed form: every step's weights by least squares, one pass along the trajectory.

A new latent is linear in the weights that make it, and a converged trajectory, or another one that is to be copied,
says where it should be. So from the latents and velocities so far, the weights of evaluation k are those that bring the
next latent closest to that one's at the next time,

    min_b  Σ_i log ‖x_k^i + Σ_j b_j v_j^i − x*^i(t_{k+1})‖²,

by reweighted least squares over images i, and on it goes from where they lead. It takes no gradient and any backend, as
long as sampling the same images, and gives most of what a fit by gradients gives: a warm start for it, and a score for
choosing what to fit.
"""

from __future__ import annotations

import dataclasses

import torch

from ddt_accel.backends.guided import caching_states
from ddt_accel.errors import ConfigError, NumericsError
from ddt_accel.evaluation.course import Course
from ddt_accel.fitting.least_squares import least_log, system
from ddt_accel.sampling.backend import Backend
from ddt_accel.sampling.integrators import Update
from ddt_accel.sampling.program import Program, compile_program
from ddt_accel.sampling.trajectory import begun, state_slots
from ddt_accel.schedule import FITTED, Row, Schedule

# How much the square of a change of a weight counts, by the square of the latest velocity: velocities are alike.
RIDGE = 1e-6
# Bytes that modulations of all images may take; beyond them states are kept, of which modulations are made anew.
MOST_KEPT = 4 << 30


def closed_form(backend: Backend, schedule: Schedule, course: Course, batch_size: int) -> Schedule:
    """The schedule with its integrator fitted to stay beside `course`, everything else as it was.

    Raises NumericsError where the trajectory leaves the finite numbers.
    """
    if schedule.spec.solver == "sde":
        raise ConfigError("A stochastic sampler has no trajectory to fit to; take a deterministic solver.")
    own = compile_program(schedule)
    count = len(own.evaluations)
    # Every evaluation may read every velocity so far, so that all of them are kept.
    full = tuple(tuple((j, 1.0) for j in range(k + 1)) for k in range(count))
    program = compile_program(dataclasses.replace(schedule, integrator=full))
    if _modulation_bytes(backend, program, course) > MOST_KEPT:
        backend = caching_states(backend)
    channels, height, width = course.latents.shape[2:]
    batches = begun(backend, program, course.images, (channels, height, width), batch_size)
    rows: list[Row] = []
    for k in range(count):
        target = course.at(own.evaluations[k + 1].time if k + 1 < count else course.times[-1])
        warm = torch.zeros(k + 1, dtype=torch.float64)
        for j, weight in own.evaluations[k].update.velocities:
            warm[j] = weight
        systems = []
        for trajectory, aim in zip(batches, target.split(batch_size), strict=True):
            trajectory.evaluate(k)
            velocities = torch.stack([trajectory.velocity(j) for j in range(k + 1)]).double()
            way = torch.einsum("j,j...->...", warm.to(backend.device), velocities)
            systems.append(system(velocities, aim.to(backend.device).double() - trajectory.latents.double() - way))
        gram, right, square = (torch.cat(parts) for parts in zip(*systems, strict=True))
        weights = warm + least_log(gram, right, square, ridge=RIDGE)
        if not torch.isfinite(weights).all():
            raise NumericsError(f"The trajectory of {schedule.spec.solver} is not finite at evaluation {k}.")
        row = tuple(enumerate(weights.tolist()))
        for trajectory in batches:
            trajectory.advance(k, Update(velocities=row))
        rows.append(row)
    return dataclasses.replace(
        schedule,
        integrator=tuple(rows),
        objective=FITTED,
        predicted_cost=None,
        predicted_error=None,
        fitted_on=course.images.joined(schedule.fitted_on),
    )


def _modulation_bytes(backend: Backend, program: Program, course: Course) -> int:
    """What the modulations of all images take in float32, in both branches and as many slots as the program needs."""
    _, height, width = course.latents.shape[2:]
    tokens = backend.config.num_tokens((course.latents.shape[2], height, width))
    return 4 * 2 * course.images.count * state_slots(program) * tokens * backend.config.modulation_size
