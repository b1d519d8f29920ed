"""The run that fills the statistics: unshared trajectories, batch by batch."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from ddt_accel.backends.pytorch import TorchBackend
from ddt_accel.calibration.statistics import Calibration, ImageRange
from ddt_accel.errors import ConfigError, MismatchError, NumericsError
from ddt_accel.networks.ddt import DDT
from ddt_accel.sampling.noise import draw_labels, draw_noise, draw_step_noise
from ddt_accel.sampling.program import compile_program
from ddt_accel.sampling.trajectory import run
from ddt_accel.schedule import Schedule
from ddt_accel.spec import SamplingSpec

# Inner products are accumulated in float64, this many state values of a step at a time.
_CHUNK = 1 << 20


def calibrate(
    model: DDT,
    spec: SamplingSpec,
    num_samples: int = 64,
    seed: int = 0,
    *,
    first_image: int = 0,
    batch_size: int = 8,
    latent_shape: tuple[int, int, int] | None = None,
    resume: Calibration | None = None,
    on_batch: Callable[[Calibration], None] | None = None,
) -> Calibration:
    """Similarity of the encoder states along the unshared trajectories of `num_samples` images of a seed.

    Labels are uniform and, like the noise, a function of (seed, image index). Memory holds the states of one batch,
    `2 · batch_size · E · L · D` floats, whatever `num_samples` is. `resume` is what an interrupted run handed to
    `on_batch`; its images are not run again.

    Raises NumericsError, naming step and seed, where a state is not finite.
    """
    if num_samples < 1 or batch_size < 1 or first_image < 0 or seed < 0:
        raise ConfigError(
            f"num_samples {num_samples}, batch_size {batch_size}, first_image {first_image}, seed {seed}: calibration "
            "needs at least one sample and batch, and no negative numbers."
        )
    source = model.source
    latent_shape = latent_shape or (source.latent_shape if source else None)
    if latent_shape is None:
        raise ConfigError("The model does not say which latents it is for; give latent_shape=(C, H, W).")
    sha256 = source.sha256 if source else "unknown"
    wanted = ImageRange(seed=seed, first=first_image, stop=first_image + num_samples)
    done = _resumed(resume, spec, sha256, wanted)
    start = done.ranges[0].stop if done else first_image
    while start < wanted.stop:
        # Batches end at multiples of the batch size, so that runs over parts of the images batch them alike.
        stop = min(wanted.stop, (start // batch_size + 1) * batch_size)
        images = ImageRange(seed=seed, first=start, stop=stop)
        batch = Calibration(
            spec=spec,
            similarity_sum=_similarity_sum(model, spec, images, latent_shape).cpu().numpy(),
            ranges=(images,),
            checkpoint_sha256=sha256,
        )
        done = batch if done is None else done.merge(batch)
        start = stop
        if on_batch is not None:
            on_batch(done)
    assert done is not None
    return done


def _resumed(resume: Calibration | None, spec: SamplingSpec, sha256: str, wanted: ImageRange) -> Calibration | None:
    """What can be kept of an earlier run: a beginning of the wanted images."""
    if resume is None:
        return None
    if resume.spec != spec or resume.checkpoint_sha256 != sha256:
        raise MismatchError("The calibration to resume was made with another checkpoint or other sampling.")
    kept = resume.ranges[0]
    if len(resume.ranges) != 1 or (kept.seed, kept.first) != (wanted.seed, wanted.first) or kept.stop > wanted.stop:
        raise MismatchError("The calibration to resume covers other images; it must be a beginning of the same run.")
    return resume


def _similarity_sum(model: DDT, spec: SamplingSpec, images: ImageRange, latent_shape: tuple[int, int, int]) -> Tensor:
    """[E, E] float64: the cosines, averaged over tokens and branches, added up over the images."""
    indices = range(images.first, images.stop)
    states: list[Tensor] = []

    def keep(state: Tensor) -> None:
        if not torch.isfinite(state).all():
            raise NumericsError(
                f"The encoder state is not finite at step {len(states)} (t = {spec.times[len(states)]:.3f}), seed "
                f"{images.seed}, images {images.first} … {images.stop - 1}; try float32 weights or less guidance."
            )
        # [2B, L, D] → unit tokens, flat
        states.append(F.normalize(state.double(), dim=-1).float().flatten())

    program = compile_program(Schedule.full(spec), encode_unconditional="always")
    run(
        TorchBackend(model, on_state=keep),
        program,
        draw_noise(latent_shape, seed=images.seed, indices=indices),
        draw_labels(model.config.num_classes, seed=images.seed, indices=indices),
        step_noise=draw_step_noise(latent_shape, seed=images.seed, indices=indices),
    )
    unit = torch.stack(states)  # [E, 2B · L · D]
    total = torch.zeros((len(unit), len(unit)), dtype=torch.float64, device=unit.device)
    for chunk in unit.split(_CHUNK, dim=1):
        wide = chunk.double()
        total += wide @ wide.T
    return total / (2 * model.config.num_tokens(latent_shape))
