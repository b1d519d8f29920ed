"""Noise that is a function of (seed, image index) alone.

Every image has its own counter-based stream (Philox), drawn on the CPU, so neither batch size nor backend nor device
changes which picture a seed gives.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ddt_accel.errors import ConfigError


def draw_noise(shape: tuple[int, int, int], *, seed: int, indices: Sequence[int], stream: int = 0) -> Tensor:
    """Standard normal float32 noise [B, C, H, W] for the images `indices` [B] of `seed`.

    Stream 0 starts trajectories; stream k + 1 is the noise that a stochastic sampler adds after evaluation k.
    """
    if seed < 0 or any(index < 0 for index in indices):
        raise ConfigError(f"seed {seed} and image indices {list(indices)[:4]}… must not be negative.")
    images = [
        np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, index, stream]))).standard_normal(
            shape, dtype=np.float32
        )
        for index in indices
    ]
    return torch.from_numpy(np.stack(images))
