"""What the calibrated sampler does in fewer steps: what anyone can do without sharing, and what sharing is judged by.

Along the same noise the sampler runs in some smaller numbers of steps. How far it then ends from where all of its steps
lead, and from the reference solution, follows a power of the number of steps closely enough to be read in between.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from ddt_accel.backends.sample import sample_images
from ddt_accel.calibration.watched import Networks, unwatched
from ddt_accel.errors import NumericsError
from ddt_accel.sampling.noise import ImageRange
from ddt_accel.sampling.reference import converged
from ddt_accel.schedule import Schedule
from ddt_accel.spec import SamplingSpec

# The numbers of steps, as shares of the calibrated one.
SHARES = (0.04, 0.06, 0.1, 0.16, 0.25, 0.4, 0.63, 1.0)
# The reference solution takes this many times the calibrated steps.
FINER = 3


def coarser_steps(spec: SamplingSpec) -> list[int]:
    """The numbers of steps that are measured, the spec's own last; of a stochastic sampler none, which draws other
    noise at other steps."""
    if spec.solver == "sde":
        return []
    return sorted({max(1, round(share * spec.num_steps)) for share in SHARES})


def coarser_evaluations(spec: SamplingSpec) -> int:
    """How many evaluations of a batch `coarser_sum` makes."""
    return sum(schedule.spec.num_evaluations for schedule in (*_aims(spec), *_coarser(spec)))


def coarser_sum(
    networks: Networks,
    spec: SamplingSpec,
    images: ImageRange,
    latent_shape: tuple[int, int, int],
    on_evaluation: Callable[[], None] = lambda: None,
) -> NDArray[np.float64]:
    """[S, 3] for the numbers of `coarser_steps`: the count of images, and the sums of the final mean squared error of
    the latents, to the end of all steps and to the reference solution.

    `on_evaluation` is called as often as there are evaluations of a batch.
    """
    total = np.zeros((len(coarser_steps(spec)), 3))
    if images.count == 0 or len(total) == 0:
        return total
    backend = unwatched(networks)

    def end(schedule: Schedule) -> Tensor:
        found = sample_images(backend, schedule, images, latent_shape, images.count).double()
        for _ in range(schedule.spec.num_evaluations):
            on_evaluation()
        return found

    aims = [end(schedule) for schedule in _aims(spec)]
    ends = {spec.num_steps: aims[0]}
    for schedule in _coarser(spec):
        with contextlib.suppress(NumericsError):  # too few steps for this network are nothing to compare with
            ends[schedule.spec.num_steps] = end(schedule)
    for row, steps in zip(total, coarser_steps(spec), strict=True):
        if steps in ends:
            errors = [(ends[steps] - aim).square().flatten(1).mean(1).sum().item() for aim in aims]
            row[:] = [images.count, *errors]
    return total


def _aims(spec: SamplingSpec) -> list[Schedule]:
    """All steps, and the reference solution."""
    return [Schedule.full(spec), converged(spec, FINER * spec.num_steps)] if coarser_steps(spec) else []


def _coarser(spec: SamplingSpec) -> list[Schedule]:
    return [Schedule.full(dataclasses.replace(spec, num_steps=steps)) for steps in coarser_steps(spec)[:-1]]
