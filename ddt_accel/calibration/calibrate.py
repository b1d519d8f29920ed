"""The run that fills the statistics: unshared trajectories, batch by batch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ddt_accel.backends.guided import check_guides
from ddt_accel.backends.pytorch import TorchBackend
from ddt_accel.calibration.closed_loop import (
    narrow_evaluations,
    narrow_sum,
    no_narrow_sum,
    no_shared_sum,
    shared_evaluations,
    shared_sum,
)
from ddt_accel.calibration.coarser import coarser_evaluations, coarser_sum
from ddt_accel.calibration.guide_sums import GuideSums
from ddt_accel.calibration.inner_products import inner_products
from ddt_accel.calibration.narrow_decoders import effect_evaluations, effect_sums
from ddt_accel.calibration.narrow_encoders import see_narrow, state_sums
from ddt_accel.calibration.sensitivity import measuring_evaluations, sensitivity_sum
from ddt_accel.calibration.statistics import Calibration
from ddt_accel.calibration.statistics import widths_of as calibrated_widths
from ddt_accel.calibration.watched import Networks, watched
from ddt_accel.calibration.width_sums import WidthSums
from ddt_accel.errors import ConfigError, MismatchError, NumericsError
from ddt_accel.networks.config import UNKNOWN
from ddt_accel.networks.dynamic.widths import widths_of
from ddt_accel.networks.split import SplitNetwork, latent_shape_of
from ddt_accel.sampling.noise import ImageRange, draw_labels, draw_noise, draw_step_noise
from ddt_accel.sampling.program import compile_program, null_label
from ddt_accel.sampling.trajectory import Trajectory
from ddt_accel.schedule import Schedule
from ddt_accel.spec import SamplingSpec
from ddt_accel.stages import OnStage, silent

Sums = dict[str, NDArray[np.float64]]


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
    guide: SplitNetwork | None = None,
) -> Calibration:
    """Statistics of the encoder states along the unshared trajectories of `num_samples` images of a seed.

    Labels are uniform and, like the noise, a function of (seed, image index). The first `sensitivity_samples` images
    also measure what an error of the state does to the latents, at the cost of about 26 trajectories each, what fewer
    steps do, at that of 6, and how far predictions are off, in 16 trajectories that mostly run the decoder alone; with
    0 of them only the published objective can be solved for. The first is measured at some `sensitivity_steps`
    evaluations, by default 50, and costs half as many trajectories. Memory holds the states of one batch at all widths,
    `2 · batch_size · E · W · L · D` floats, whatever `num_samples` is. `resume` is what an interrupted run handed to
    `on_batch`; its images are not run again. `on_stage` is called with what comes and how many evaluations of a batch
    it takes, and returns what to call after each.

    Of a network without a null label the states of the conditional branch stand for both. A second network, the
    `guide`, takes the place of the null label: the unconditional branch's states are then its own. Of a network with
    nested widths, without a guide, the narrow encoders see the same latents, and for the sensitivity samples it is
    measured what narrow decoders do, in about 26 trajectories a narrow width.

    Raises NumericsError, naming step and seed, where a state is not finite; ConfigError where guidance is asked for
    that the network cannot have, or that guides nothing; MismatchError for a guide of other latents or classes.
    """
    if num_samples < 1 or batch_size < 1 or min(first_image, seed, sensitivity_samples, sensitivity_steps or 0) < 0:
        raise ConfigError(
            f"{num_samples} samples in batches of {batch_size}, {sensitivity_samples} of them for sensitivities, from "
            f"image {first_image} of seed {seed}: calibration needs at least one sample and batch, and no negative "
            "numbers."
        )
    spec.check_guides()
    networks: Networks = (model,) if guide is None else (model, guide)
    if guide is not None:
        check_guides(spec)
    elif (spec.guidance_weights != 1.0).any():
        null_label(model.config)
    latent_shape = latent_shape_of(model, latent_shape)
    sha256, *others = (one.source.sha256 if one.source else UNKNOWN for one in networks)
    widths = calibrated_at(model, guide)
    wanted = ImageRange(seed=seed, first=first_image, stop=first_image + num_samples)
    if resume is not None:
        check_beginning(
            resume, spec, sha256, latent_shape, wanted, sensitivity_samples,
            guide_sha256=next(iter(others), None), widths=widths,
        )  # fmt: skip
    done = resume
    batches = batches_of(wanted, done.ranges[0].stop if done else first_image, batch_size)
    followed = first_image + sensitivity_samples
    measured = sum(images.first < followed for images in batches)
    measuring = measuring_evaluations(spec, sensitivity_steps) + coarser_evaluations(spec) + shared_evaluations(spec)
    if len(widths) > 1:
        measuring += effect_evaluations(model, spec, sensitivity_steps) + narrow_evaluations(spec)
    advance = on_stage("calibrating", len(batches) * spec.num_evaluations + measured * measuring)
    for images in batches:
        disturbed = replace(images, stop=max(images.first, min(images.stop, followed)))
        sums, guide_sums, width_sums = _batch_sums(networks, spec, images, latent_shape, advance, widths)
        batch = Calibration(
            spec=spec,
            **sums,
            sensitivity_sum=sensitivity_sum(networks, spec, disturbed, latent_shape, advance, most=sensitivity_steps),
            coarser_sum=coarser_sum(networks, spec, disturbed, latent_shape, advance),
            shared_sum=no_shared_sum(spec),
            ranges=(images,),
            checkpoint_sha256=sha256,
            latent_shape=latent_shape,
            guide_sums=GuideSums(**guide_sums, checkpoint_sha256=others[0]) if guide_sums else None,
            width_sums=None,
        )
        if width_sums:
            count, effects = effect_sums(model, spec, disturbed, latent_shape, advance, most=sensitivity_steps)
            found = WidthSums(
                widths=widths, **width_sums, effect_count=count, effect_sum=effects, shared_sum=no_narrow_sum(spec)
            )
            batch = replace(batch, width_sums=found)
            shared = narrow_sum(model, batch, disturbed, latent_shape, advance)
            batch = replace(batch, width_sums=replace(found, shared_sum=shared))
        batch = replace(batch, shared_sum=shared_sum(networks, batch, disturbed, latent_shape, advance))
        done = batch if done is None else done.merge(batch)
        if on_batch is not None:
            on_batch(done)
    assert done is not None
    return done


def calibrated_at(model: SplitNetwork, guide: SplitNetwork | None) -> tuple[float, ...]:
    """The widths that a calibration measures: where a second network guides, both run complete."""
    return widths_of(model) if guide is None else (1.0,)


def batches_of(wanted: ImageRange, start: int, size: int) -> list[ImageRange]:
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
    *,
    guide_sha256: str | None = None,
    widths: tuple[float, ...] = (1.0,),
) -> None:
    """Raises MismatchError unless `resume` is a beginning of the calibration that is wanted."""
    theirs = resume.spec, resume.checkpoint_sha256, resume.latent_shape, resume.guide_sha256
    if theirs != (spec, sha256, latent_shape, guide_sha256):
        raise MismatchError("The calibration to resume was made with another checkpoint, other latents or sampling.")
    kept = resume.ranges[0]
    if len(resume.ranges) != 1 or (kept.seed, kept.first) != (wanted.seed, wanted.first) or kept.stop > wanted.stop:
        raise MismatchError("The calibration to resume covers other images; it must be a beginning of the same run.")
    if calibrated_widths(resume) != widths:
        raise MismatchError("The calibration to resume was made at other widths of the network.")
    if spec.num_evaluations > 1 and resume.sensitivity_sum[:, 0].max() != min(sensitivities, resume.num_samples):
        raise MismatchError("The calibration to resume followed the errors of other numbers of samples.")


def _batch_sums(
    networks: Networks,
    spec: SamplingSpec,
    images: ImageRange,
    latent_shape: tuple[int, int, int],
    on_evaluation: Callable[[], None],
    widths: tuple[float, ...],
) -> tuple[Sums, Sums, Sums]:
    """The sums over some images, but for the sensitivities; and those of a second network and of narrow encoders, if
    there are any, of their own."""
    indices = range(images.first, images.stop)
    model, batch = networks[0], len(indices)
    tokens = [network.config.num_tokens(latent_shape) for network in networks]
    step = 0

    def check(state: Tensor) -> None:
        if not torch.isfinite(state).all():
            raise NumericsError(
                f"The encoder state is not finite at step {step} (t = {spec.times[step]:.3f}), seed {images.seed}, "
                f"images {images.first} … {images.stop - 1}; try float32 weights or less guidance."
            )

    def keep(side: int, state: Tensor) -> None:
        check(state)
        states[side][step, 0] = state.float().reshape(states[side][step, 0].shape)
        # The mean of affine maps of the state is the affine map of its mean.
        mean = state.mean((0, 1), keepdim=True)
        modulations[side][step] = networks[side].modulations(mean).double().flatten()

    backend, branches, unconditional = watched(networks, keep)
    narrow = TorchBackend(model) if len(widths) > 1 else None
    device, count = model.device, spec.num_evaluations
    # Of each network [E, width, branch, B · L, D].
    states = [
        torch.empty((count, len(widths), branches, batch * each, network.config.state_size), device=device)
        for network, each in zip(networks, tokens, strict=True)
    ]
    complete = [one[:, 0] for one in states]
    modulations = [
        torch.empty((count, network.config.modulation_size), dtype=torch.float64, device=device) for network in networks
    ]
    program = compile_program(Schedule.full(spec), encode_unconditional=unconditional)
    trajectory = Trajectory(
        backend,
        program,
        draw_noise(latent_shape, seed=images.seed, indices=indices),
        draw_labels(model.config.num_classes, seed=images.seed, indices=indices),
        step_noise=draw_step_noise(latent_shape, seed=images.seed, indices=indices),
    )
    for step in range(count):
        trajectory.evaluate(step)
        if narrow is not None:
            see_narrow(narrow, trajectory.session, states[0][step, 1:])
            check(states[0][step, 1:])
        trajectory.advance(step, program.evaluations[step].update)
        on_evaluation()
    similar = [
        inner_products(one.flatten(1, 2), unit=True) / (branches * each)
        for one, each in zip(complete, tokens, strict=True)
    ]
    grams = [
        inner_products(one[:, branch]) / each
        for one, each in zip(complete, tokens, strict=True)
        for branch in range(branches)
    ]
    own = [
        {
            "mean_sum": one.mean((1, 2), dtype=torch.float64) * batch,
            "modulation_sum": modulated * batch,
            "bias_sum": network.modulation_bias.double().flatten() * batch,
        }
        for network, one, modulated in zip(networks, complete, modulations, strict=True)
    ]
    # Where there is one branch alone, it stands for both.
    both = {
        "similarity_sum": sum(similar[1:], similar[0]) / len(similar),
        "gram_sum": torch.stack([grams[0], grams[-1]]),
    }
    first, *others = ({name: value.cpu().numpy() for name, value in sums.items()} for sums in (both | own[0], *own[1:]))
    return first, next(iter(others), {}), {} if narrow is None else state_sums(model, states[0], batch)
