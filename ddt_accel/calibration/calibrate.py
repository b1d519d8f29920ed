"""The run that fills the statistics: unshared trajectories, batch by batch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from ddt_accel.backends.pytorch import TorchBackend
from ddt_accel.calibration.coarser import coarser_evaluations, coarser_sum
from ddt_accel.calibration.sensitivity import measuring_evaluations, sensitivity_sum
from ddt_accel.calibration.statistics import Calibration
from ddt_accel.errors import ConfigError, MismatchError, NumericsError
from ddt_accel.networks.split import SplitNetwork, latent_shape_of
from ddt_accel.sampling.noise import ImageRange, draw_labels, draw_noise, draw_step_noise
from ddt_accel.sampling.program import compile_program, null_label
from ddt_accel.sampling.trajectory import Trajectory
from ddt_accel.schedule import Schedule
from ddt_accel.spec import SamplingSpec
from ddt_accel.stages import OnStage, silent

# Inner products are accumulated in float64, this many state values of a step at a time.
_CHUNK = 1 << 20


def calibrate(
    model: SplitNetwork,
    spec: SamplingSpec,
    num_samples: int = 64,
    seed: int = 0,
    *,
    first_image: int = 0,
    batch_size: int = 8,
    sensitivity_samples: int = 8,
    sensitivity_steps: int | None = None,
    latent_shape: tuple[int, int, int] | None = None,
    resume: Calibration | None = None,
    on_batch: Callable[[Calibration], None] | None = None,
    on_stage: OnStage = silent,
) -> Calibration:
    """Statistics of the encoder states along the unshared trajectories of `num_samples` images of a seed.

    Labels are uniform and, like the noise, a function of (seed, image index). The first `sensitivity_samples` images
    also measure what an error of the state does to the latents, at the cost of about 26 trajectories each, and what
    fewer steps do, at that of 6; with 0 of them only the published objective can be solved for. The former is measured
    at some `sensitivity_steps` evaluations, by default 50, and costs half as many trajectories. Memory holds the states
    of one batch, `2 · batch_size · E · L · D` floats, whatever `num_samples` is. `resume` is what an interrupted run
    handed to `on_batch`; its images are not run again. `on_stage` is called with what comes and how many evaluations of
    a batch it takes, and returns what to call after each.

    Of a network without a null label the states of the conditional branch stand for both.

    Raises NumericsError, naming step and seed, where a state is not finite; ConfigError where guidance is asked for
    that the network cannot have, or that guides nothing.
    """
    if num_samples < 1 or batch_size < 1 or min(first_image, seed, sensitivity_samples, sensitivity_steps or 0) < 0:
        raise ConfigError(
            f"{num_samples} samples in batches of {batch_size}, {sensitivity_samples} of them for sensitivities, from "
            f"image {first_image} of seed {seed}: calibration needs at least one sample and batch, and no negative "
            "numbers."
        )
    spec.check_guides()
    if (spec.guidance_weights != 1.0).any():
        null_label(model.config)
    source = model.source
    latent_shape = latent_shape_of(model, latent_shape)
    sha256 = source.sha256 if source else "unknown"
    wanted = ImageRange(seed=seed, first=first_image, stop=first_image + num_samples)
    if resume is not None:
        check_beginning(resume, spec, sha256, latent_shape, wanted, sensitivity_samples)
    done = resume
    batches = _batches(wanted, done.ranges[0].stop if done else first_image, batch_size)
    followed = first_image + sensitivity_samples
    measured = sum(images.first < followed for images in batches)
    measuring = measuring_evaluations(spec, sensitivity_steps) + coarser_evaluations(spec)
    advance = on_stage("calibrating", len(batches) * spec.num_evaluations + measured * measuring)
    for images in batches:
        disturbed = replace(images, stop=max(images.first, min(images.stop, followed)))
        batch = Calibration(
            spec=spec,
            **_batch_sums(model, spec, images, latent_shape, advance),
            sensitivity_sum=sensitivity_sum(model, spec, disturbed, latent_shape, advance, most=sensitivity_steps),
            coarser_sum=coarser_sum(model, spec, disturbed, latent_shape, advance),
            ranges=(images,),
            checkpoint_sha256=sha256,
            latent_shape=latent_shape,
        )
        done = batch if done is None else done.merge(batch)
        if on_batch is not None:
            on_batch(done)
    assert done is not None
    return done


def _batches(wanted: ImageRange, start: int, size: int) -> list[ImageRange]:
    """The images from `start` on, in batches that end at multiples of their size, so that runs over parts of them batch
    them alike."""
    ends = [start, *range((start // size + 1) * size, wanted.stop, size), wanted.stop]
    return [ImageRange(seed=wanted.seed, first=first, stop=stop) for first, stop in pairwise(ends) if first < stop]


def check_beginning(
    resume: Calibration,
    spec: SamplingSpec,
    sha256: str,
    latent_shape: tuple[int, int, int],
    wanted: ImageRange,
    sensitivities: int,
) -> None:
    """Raises MismatchError unless `resume` is a beginning of the calibration that is wanted."""
    if (resume.spec, resume.checkpoint_sha256, resume.latent_shape) != (spec, sha256, latent_shape):
        raise MismatchError("The calibration to resume was made with another checkpoint, other latents or sampling.")
    kept = resume.ranges[0]
    if len(resume.ranges) != 1 or (kept.seed, kept.first) != (wanted.seed, wanted.first) or kept.stop > wanted.stop:
        raise MismatchError("The calibration to resume covers other images; it must be a beginning of the same run.")
    if spec.num_evaluations > 1 and resume.sensitivity_sum[:, 0].max() != min(sensitivities, resume.num_samples):
        raise MismatchError("The calibration to resume followed the errors of other numbers of samples.")


def _batch_sums(
    model: SplitNetwork,
    spec: SamplingSpec,
    images: ImageRange,
    latent_shape: tuple[int, int, int],
    on_evaluation: Callable[[], None],
) -> dict[str, NDArray[np.float64]]:
    """The sums over some images, but for the sensitivities."""
    indices = range(images.first, images.stop)
    batch, tokens = len(indices), model.config.num_tokens(latent_shape)
    branches = 1 if model.config.null_label is None else 2
    program = compile_program(Schedule.full(spec), encode_unconditional="always" if branches == 2 else "read")
    device, width = model.device, model.config.state_size
    # [E, branch, B · L, D]
    states = torch.empty((spec.num_evaluations, branches, batch * tokens, width), device=device)
    modulations = torch.empty((spec.num_evaluations, model.config.modulation_size), dtype=torch.float64, device=device)
    bias = model.modulation_bias
    step = 0

    def keep(state: Tensor) -> None:
        if not torch.isfinite(state).all():
            raise NumericsError(
                f"The encoder state is not finite at step {step} (t = {spec.times[step]:.3f}), seed {images.seed}, "
                f"images {images.first} … {images.stop - 1}; try float32 weights or less guidance."
            )
        states[step] = state.float().reshape(states[step].shape)
        # The mean of affine maps of the state is the affine map of its mean.
        modulations[step] = model.modulations(state.mean((0, 1), keepdim=True)).double().flatten()

    trajectory = Trajectory(
        TorchBackend(model, on_state=keep),
        program,
        draw_noise(latent_shape, seed=images.seed, indices=indices),
        draw_labels(model.config.num_classes, seed=images.seed, indices=indices),
        step_noise=draw_step_noise(latent_shape, seed=images.seed, indices=indices),
    )
    for step in range(spec.num_evaluations):
        trajectory.step(step)
        on_evaluation()
    sums = {
        "similarity_sum": _inner_products(states.flatten(1, 2), unit=True) / (branches * tokens),
        "gram_sum": torch.stack([_inner_products(states[:, branch]) / tokens for branch in (0, branches - 1)]),
        "mean_sum": states.mean((1, 2), dtype=torch.float64) * batch,
        "modulation_sum": modulations * batch,
        "bias_sum": bias.double().flatten() * batch,
    }
    return {name: value.cpu().numpy() for name, value in sums.items()}


def _inner_products(states: Tensor, *, unit: bool = False) -> Tensor:
    """[E, E] float64: Σ over tokens of ⟨s_i, s_j⟩ for states [E, T, D]; of cosines, where they are made `unit`."""
    total = torch.zeros((len(states), len(states)), dtype=torch.float64, device=states.device)
    for chunk in states.split(max(1, _CHUNK // states.shape[-1]), dim=1):
        wide = chunk.double()
        if unit:
            wide = F.normalize(wide, dim=-1)
        rows = wide.flatten(1)
        total += rows @ rows.T
    return total
