"""Noise that is a function of (seed, image index) alone.

Every image has its own counter-based stream (Philox), drawn on the CPU, so neither batch size nor backend nor device
changes which picture a seed gives.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ddt_accel.errors import ConfigError
from ddt_accel.schedule import Images

_LABELS = 2**32 - 1  # the stream that labels are drawn from; noise streams count up from 0


@dataclass(frozen=True, kw_only=True)
class ImageRange:
    """The images first … stop − 1 of a seed."""

    seed: int
    first: int
    stop: int

    @property
    def count(self) -> int:
        return self.stop - self.first

    def overlaps(self, other: ImageRange) -> bool:
        return self.seed == other.seed and self.first < other.stop and other.first < self.stop

    def overlaps_any(self, others: Sequence[Images]) -> bool:
        return any(self.overlaps(ImageRange(seed=seed, first=first, stop=stop)) for seed, first, stop in others)

    def joined(self, others: Sequence[Images]) -> tuple[Images, ...]:
        """The others and these, without those that these contain."""
        apart = [
            (seed, first, stop)
            for seed, first, stop in others
            if seed != self.seed or first < self.first or stop > self.stop
        ]
        return (*apart, (self.seed, self.first, self.stop))


def draw_noise(shape: tuple[int, int, int], *, seed: int, indices: Sequence[int], stream: int = 0) -> Tensor:
    """Standard normal float32 noise [B, C, H, W] for the images `indices` [B] of `seed`.

    Stream 0 starts trajectories; stream k + 1 is the noise that a stochastic sampler adds after evaluation k.
    """
    images = [_generator(seed, index, stream).standard_normal(shape, dtype=np.float32) for index in indices]
    return torch.from_numpy(np.stack(images))


def draw_step_noise(shape: tuple[int, int, int], *, seed: int, indices: Sequence[int]) -> Callable[[int], Tensor]:
    """What a stochastic sampler adds after evaluation k, as a function of k; [B, C, H, W]."""
    return lambda k: draw_noise(shape, seed=seed, indices=indices, stream=k + 1)


def draw_labels(num_classes: int, *, seed: int, indices: Sequence[int]) -> Tensor:
    """Uniform labels [B] int64, like the noise a function of (seed, image index)."""
    return torch.tensor([int(_generator(seed, index, _LABELS).integers(num_classes)) for index in indices])


def _generator(seed: int, index: int, stream: int) -> np.random.Generator:
    # Larger numbers would take two of the seed's words, and then run into those of another image.
    if not 0 <= seed < 2**32 or not 0 <= index < 2**32:
        raise ConfigError(f"The seed is {seed} and the image index {index}; give whole numbers from 0 to 2³² − 1.")
    return np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, index, stream])))
