"""`sample`: noise and labels in, latents out, by whatever runs the networks."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ddt_accel.backends.guided import backend_of
from ddt_accel.errors import MismatchError
from ddt_accel.networks.split import SplitNetwork
from ddt_accel.sampling.backend import Backend
from ddt_accel.sampling.noise import ImageRange, draw_labels, draw_noise, draw_step_noise
from ddt_accel.sampling.program import compile_program
from ddt_accel.sampling.trajectory import run
from ddt_accel.schedule import Schedule


def sample(
    model_or_backend: SplitNetwork | Backend,
    schedule: Schedule,
    noise: Tensor,
    labels: Tensor,
    *,
    step_noise: Callable[[int], Tensor] | None = None,
    guide: SplitNetwork | Backend | None = None,
) -> Tensor:
    """Latents at t = 1, float32 [B, C, H, W], from `noise` [B, C, H, W] for `labels` [B] int64.

    `step_noise(k)` [B, C, H, W] is what the stochastic solver adds after evaluation k. A second network, the `guide`,
    takes the place of the null label: v = v_g + w (v − v_g), under the same labels. Raises MismatchError where the
    schedule was made for another checkpoint or guide, ConfigError for impossible noise or labels, or for a guide that
    guides nothing.
    """
    backend = backend_of(model_or_backend, guide, schedule.spec)
    check_checkpoint(schedule, backend)
    return run(backend, compile_program(schedule), noise, labels, step_noise=step_noise)


def sample_images(
    backend: Backend, schedule: Schedule, images: ImageRange, latent_shape: tuple[int, int, int], batch_size: int
) -> Tensor:
    """The final latents of some images of a seed, float32 [B, C, H, W] on the CPU, `batch_size` at a time."""
    parts = []
    for start in range(images.first, images.stop, batch_size):
        indices = range(start, min(images.stop, start + batch_size))
        noise = draw_noise(latent_shape, seed=images.seed, indices=indices)
        labels = draw_labels(backend.config.num_classes, seed=images.seed, indices=indices)
        step_noise = draw_step_noise(latent_shape, seed=images.seed, indices=indices)
        parts.append(sample(backend, schedule, noise, labels, step_noise=step_noise).cpu())
    return torch.cat(parts)


def check_checkpoint(schedule: Schedule, backend: Backend) -> None:
    """Refuses a schedule that was solved for other weights or another guide, where both are known."""
    wanted, checkpoint_sha256 = schedule.checkpoint_sha256, backend.checkpoint_sha256
    if wanted is not None and checkpoint_sha256 is not None and wanted != checkpoint_sha256:
        raise MismatchError(
            f"The schedule was solved for the checkpoint {wanted[:12]}…, this network is {checkpoint_sha256[:12]}…; "
            "calibrate and solve with this one."
        )
    guided_by, guide = schedule.guide_sha256, backend.guide
    if guided_by is not None and guide is None:
        raise MismatchError(
            f"The schedule was solved with a second network that guides, {guided_by[:12]}…, and here is none; give it "
            "(--guide), also to export, or calibrate and solve without."
        )
    # One that was written by hand is for any networks.
    if guide is not None and guided_by is None and (wanted is not None or schedule.mean_modulations is not None):
        raise MismatchError(
            "The schedule was solved without a second network, and one guides here; calibrate and solve with it "
            "(--guide), or leave it out: --guide none makes a workspace forget it."
        )
    if guide is not None and guided_by is not None and guide.checkpoint_sha256 not in (None, guided_by):
        raise MismatchError(
            f"The schedule was solved for the guide {guided_by[:12]}…, this one is {guide.checkpoint_sha256[:12]}…; "
            "calibrate and solve with this one."
        )
