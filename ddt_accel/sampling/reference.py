"""The reference solution: where the sampler's differential equation leads, by many even steps of second order."""

from __future__ import annotations

import dataclasses

import numpy as np

from ddt_accel.sampling.program import compile_program
from ddt_accel.schedule import Schedule
from ddt_accel.spec import SamplingSpec


def second_order(grid: SamplingSpec) -> Schedule:
    """Second-order Adams–Bashforth along a grid without sharing.

    A last step that the sampler asks for is no error of it but belongs to it, as in the published settings: from where
    the other steps lead the network's own estimate of the data is taken, by an Euler step (arXiv 2009.05475 on why).
    """
    schedule = Schedule.full(dataclasses.replace(grid, solver="ab2"))
    if schedule.spec.last_step is None:
        return schedule
    rows = [evaluation.update.velocities for evaluation in compile_program(schedule).evaluations]
    length = float(np.diff(schedule.spec.grid)[-1])
    return dataclasses.replace(schedule, integrator=(*rows[:-1], ((grid.num_steps - 1, length),)))


def converged(spec: SamplingSpec, steps: int) -> Schedule:
    """The same guidance and final step, integrated in many even steps.

    The reference knows of no time shift, so that grids of all of them share what is kept.
    """
    return second_order(spec.on_grid(steps, timeshift=1.0, solver="ab2"))
