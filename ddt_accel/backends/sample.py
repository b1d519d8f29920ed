"""`sample`: noise and labels in, latents out, by whatever runs the networks."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ddt_accel.backends.pytorch import TorchBackend
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
) -> Tensor:
    """Latents at t = 1, float32 [B, C, H, W], from `noise` [B, C, H, W] for `labels` [B] int64.

    `step_noise(k)` [B, C, H, W] is what the stochastic solver adds after evaluation k. Raises MismatchError where the
    schedule was made for another checkpoint, ConfigError for impossible noise or labels.
    """
    backend = TorchBackend(model_or_backend) if isinstance(model_or_backend, SplitNetwork) else model_or_backend
    check_checkpoint(schedule, backend.checkpoint_sha256)
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


def check_checkpoint(schedule: Schedule, checkpoint_sha256: str | None) -> None:
    """Refuses a schedule that was solved for other weights, where both are known."""
    wanted = schedule.checkpoint_sha256
    if wanted is not None and checkpoint_sha256 is not None and wanted != checkpoint_sha256:
        raise MismatchError(
            f"The schedule was solved for the checkpoint {wanted[:12]}…, this network is {checkpoint_sha256[:12]}…; "
            "calibrate and solve with this one."
        )
