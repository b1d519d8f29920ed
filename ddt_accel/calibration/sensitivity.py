"""What an error of the encoder state does to the picture, measured evaluation by evaluation.

At evaluation i alone the state is moved towards the one that held a few evaluations earlier, which is the kind of error
that reuse makes; the rest of the trajectory is unshared and its noise the same. The final mean squared error of the
latents over the squared error of the state, `g_i²`, turns forecast errors into errors of the picture.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ddt_accel.calibration.watched import Networks, watched
from ddt_accel.sampling.noise import ImageRange, draw_labels, draw_noise, draw_step_noise
from ddt_accel.sampling.program import compile_program
from ddt_accel.sampling.trajectory import Trajectory
from ddt_accel.schedule import Schedule
from ddt_accel.spec import SamplingSpec

# Half of these trajectories, on the average: a disturbed one starts where it is disturbed.
MAX_MEASURED = 50
# How far the state is moved towards the earlier one, and how much earlier that was.
DISTURBANCE, LAG = 0.25, 1 / 16


def measured_steps(spec: SamplingSpec, most: int | None = None) -> list[int]:
    """Evaluations that are enough to interpolate from: evenly spaced, and both sides of every change of guidance.

    At most `most` of them and those sides; never evaluation 0, which is never a reuse step.
    """
    stride = -(-spec.num_evaluations // (most or MAX_MEASURED))
    steps = set(range(1, spec.num_evaluations, stride)) | {spec.num_evaluations - 1}
    for change in np.flatnonzero(np.diff(spec.guidance_weights)).tolist():
        steps |= {change, change + 1}
    return sorted(steps - {0})


def measuring_evaluations(spec: SamplingSpec, most: int | None = None) -> int:
    """How many evaluations of a batch `sensitivity_sum` makes."""
    count = spec.num_evaluations
    return count + sum(count - i for i in measured_steps(spec, most)) if count > 1 else 0


def sensitivity_sum(
    networks: Networks,
    spec: SamplingSpec,
    images: ImageRange,
    latent_shape: tuple[int, int, int],
    on_evaluation: Callable[[], None] = lambda: None,
    *,
    most: int | None = None,
) -> NDArray[np.float64]:
    """[E, 3]: the count, sum and sum of squares over images of g_i² at `measured_steps`, zero elsewhere.

    `on_evaluation` is called after each evaluation of a batch.
    """
    total = np.zeros((spec.num_evaluations, 3))
    indices = range(images.first, images.stop)
    if len(indices) == 0 or spec.num_evaluations == 1:
        return total
    states: list[list[Tensor]] = [[] for _ in networks]
    errors: list[Tensor] = []  # what is added to the next state of each network

    def meet(side: int, state: Tensor) -> None:
        if errors:
            state += errors[side]
        elif len(states[side]) < spec.num_evaluations:
            states[side].append(state.clone())

    backend, branches, unconditional = watched(networks, meet)
    model = networks[0]
    trajectory = Trajectory(
        backend,
        compile_program(Schedule.full(spec), encode_unconditional=unconditional),
        draw_noise(latent_shape, seed=images.seed, indices=indices),
        draw_labels(model.config.num_classes, seed=images.seed, indices=indices),
        step_noise=draw_step_noise(latent_shape, seed=images.seed, indices=indices),
    )
    snapshots = []
    for k in range(spec.num_evaluations):
        snapshots.append(trajectory.snapshot())
        trajectory.step(k)
        on_evaluation()
    undisturbed = trajectory.latents.clone()
    lag = max(1, round(LAG * spec.num_evaluations))
    for i in measured_steps(spec, most):
        trajectory.restore(snapshots[i])
        errors = [DISTURBANCE * (known[max(0, i - lag)] - known[i]) for known in states]
        # Per image: all branches of it, added up over channels, averaged over tokens.
        squares = [error.double().square().sum(-1).mean(-1).view(branches, -1).mean(0) for error in errors]
        squared = torch.stack(squares).mean(0)
        trajectory.step(i)
        on_evaluation()
        errors = []
        for k in range(i + 1, spec.num_evaluations):
            trajectory.step(k)
            on_evaluation()
        final = (trajectory.latents - undisturbed).double().square().flatten(1).mean(1)
        ratio = (final / squared)[squared > 0]
        total[i] += [len(ratio), ratio.sum().item(), ratio.square().sum().item()]
    return total
