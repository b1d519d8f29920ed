"""How far a trajectory ends from the unshared one of the same noise."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

_RESAMPLES = 4000


def to_images(latents: Tensor) -> Tensor:
    """Pixel-space latents [B, 3, H, W], nominally in [−1, 1], as images in [0, 1]."""
    return (latents.float() / 2 + 0.5).clamp(0, 1)


def to_uint8(latents: Tensor) -> NDArray[np.uint8]:
    """Pixel-space latents [B, 3, H, W] as [B, H, W, 3]."""
    pixels = (to_images(latents) * 255).round().to(torch.uint8)
    return pixels.permute(0, 2, 3, 1).cpu().numpy()


def psnr(images: Tensor, reference: Tensor) -> NDArray[np.float64]:
    """Peak signal-to-noise ratio in dB of each image [B, C, H, W] in [0, 1]; infinite where they are equal."""
    mse = (images.double() - reference.double()).square().flatten(1).mean(1).cpu().numpy()
    with np.errstate(divide="ignore"):
        decibels: NDArray[np.float64] = -10.0 * np.log10(mse)
    return decibels


def latent_decibels(latents: Tensor, reference: Tensor) -> NDArray[np.float64]:
    """−20 log₁₀ of the root-mean-square error of each latent [B, C, H, W] over a range of 2: the PSNR of pixels in
    [−1, 1] before clipping. Capped at 200, where only rounding is left."""
    error = (latents.double() - reference.double()).square().flatten(1).mean(1).clamp_min(4e-20)
    decibels: NDArray[np.float64] = (-10 * torch.log10(error / 4)).cpu().numpy()
    return decibels


def relative_l2(latents: Tensor, reference: Tensor) -> NDArray[np.float64]:
    """‖x − x_ref‖ / ‖x_ref‖ of each latent [B, C, H, W]."""
    difference = (latents.double() - reference.double()).flatten(1).norm(dim=1)
    relative: NDArray[np.float64] = (difference / reference.double().flatten(1).norm(dim=1)).cpu().numpy()
    return relative


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A mean over images with its 95 % bootstrap interval."""

    mean: float
    low: float
    high: float


def interval(values: ArrayLike) -> Interval | None:
    """The mean of per-image values and its 95 % interval; None where a value is infinite (images are identical)."""
    array = np.asarray(values, dtype=np.float64)
    if not np.isfinite(array).all():
        return None
    draws = np.random.default_rng(0).integers(len(array), size=(_RESAMPLES, len(array)))
    low, high = np.quantile(array[draws].mean(axis=1), [0.025, 0.975])
    return Interval(mean=float(array.mean()), low=float(low), high=float(high))
