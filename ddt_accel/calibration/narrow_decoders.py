"""What narrow decoders do to the picture, measured evaluation by evaluation.

At evaluation i alone the decoder runs at width v; the rest of the trajectory is unshared and complete, and its noise
the same. What that adds to the final latents is the effect f_{i, v}. To first order effects add up, so that their inner
products say how far any assignment of widths leads away.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ddt_accel.backends.pytorch import TorchBackend
from ddt_accel.calibration.inner_products import inner_products
from ddt_accel.calibration.sensitivity import measured_steps
from ddt_accel.networks.dynamic.widths import narrow_decoders, widths_of
from ddt_accel.networks.split import SplitNetwork
from ddt_accel.sampling.noise import ImageRange, draw_labels, draw_noise, draw_step_noise
from ddt_accel.sampling.program import compile_program
from ddt_accel.sampling.trajectory import Trajectory
from ddt_accel.schedule import Schedule
from ddt_accel.spec import SamplingSpec

Array = NDArray[np.float64]


def effect_evaluations(model: SplitNetwork, spec: SamplingSpec, most: int | None = None) -> int:
    """How many evaluations of a batch `effect_sums` makes."""
    count, narrow = spec.num_evaluations, len(narrow_decoders(model))
    return count + narrow * sum(count - i for i in _measured(spec, most)) if narrow else 0


def effect_sums(
    model: SplitNetwork,
    spec: SamplingSpec,
    images: ImageRange,
    latent_shape: tuple[int, int, int],
    on_evaluation: Callable[[], None] = lambda: None,
    *,
    most: int | None = None,
) -> tuple[Array, Array]:
    """`effect_count` and `effect_sum` of `WidthSums`; images whose trajectories end in NaN do not count.

    Measured at evaluation 0 and those that sensitivities are measured at, of which `most` limits the number.
    `on_evaluation` is called after each evaluation of a batch. Memory holds all effects on the latents of a batch.
    """
    steps, narrow, e = _measured(spec, most), narrow_decoders(model), spec.num_evaluations
    v = len(widths_of(model)) - 1
    count, total = np.zeros(e), np.zeros((e, v, e, v))
    indices = range(images.first, images.stop)
    if len(indices) > 0 and narrow:
        ends = _ends(model, spec, images, latent_shape, on_evaluation, steps, narrow)
        effects = torch.stack([(end - ends[-1]).flatten(1) for end in ends[:-1]])  # [S · (W − 1), B, C · H · W]
        finite = torch.isfinite(effects).all(dim=(0, 2)) if len(effects) else torch.zeros(0, dtype=torch.bool)
        count[steps] = int(finite.sum())
        inner = inner_products(effects[:, finite]) / effects.shape[-1]
        where = np.ix_(steps, range(v), steps, range(v))
        total[where] = inner.cpu().numpy().reshape(len(steps), v, len(steps), v)
    return count, total.reshape(e * v, e * v)


def _measured(spec: SamplingSpec, most: int | None) -> list[int]:
    """A decoder runs at evaluation 0, too."""
    return [0, *measured_steps(spec, most)]


def _ends(
    model: SplitNetwork,
    spec: SamplingSpec,
    images: ImageRange,
    latent_shape: tuple[int, int, int],
    on_evaluation: Callable[[], None],
    steps: list[int],
    narrow: tuple[float, ...],
) -> list[Tensor]:
    """The final latents by step and width, and last the undisturbed ones."""
    indices = range(images.first, images.stop)
    program = compile_program(Schedule.full(spec))
    trajectory = Trajectory(
        TorchBackend(model),
        program,
        draw_noise(latent_shape, seed=images.seed, indices=indices),
        draw_labels(model.config.num_classes, seed=images.seed, indices=indices),
        step_noise=draw_step_noise(latent_shape, seed=images.seed, indices=indices),
    )

    def finished(first: int) -> Tensor:
        for k in range(first, len(program.evaluations)):
            trajectory.step(k)
            on_evaluation()
        return trajectory.latents.clone()

    snapshots = []
    for k in range(len(program.evaluations)):
        snapshots.append(trajectory.snapshot())
        trajectory.step(k)
        on_evaluation()
    undisturbed, ends = trajectory.latents.clone(), []
    for i in steps:
        for width in narrow:
            trajectory.restore(snapshots[i])
            trajectory.evaluate(i, replace(program.evaluations[i], width=width))
            trajectory.advance(i, program.evaluations[i].update)
            on_evaluation()
            ends.append(finished(i + 1))
    return [*ends, undisturbed]
