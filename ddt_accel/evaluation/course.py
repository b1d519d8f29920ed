"""Where the trajectories of some images pass: what fits are to stay beside."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ddt_accel.calibration.resample import interpolation
from ddt_accel.networks.config import LatentShape
from ddt_accel.sampling.backend import Backend
from ddt_accel.sampling.noise import ImageRange
from ddt_accel.sampling.program import compile_program
from ddt_accel.sampling.trajectory import begun
from ddt_accel.schedule import Schedule


@dataclass(frozen=True, kw_only=True, eq=False)
class Course:
    """Where the trajectories of some images are at every one of their steps.

    `times` [T + 1] run from 0 to the end, `latents` are [T + 1, B, C, H, W] float32 on the CPU. With a `final_step` the
    last of them is an Euler step, so that it is a straight line and the course has a bend before it.
    """

    images: ImageRange
    final_step: bool
    times: NDArray[np.float64]
    latents: Tensor

    @property
    def ends(self) -> Tensor:
        return self.latents[-1]

    def first(self, count: int) -> Course:
        """Of the first `count` images."""
        images = dataclasses.replace(self.images, stop=self.images.first + count)
        return dataclasses.replace(self, images=images, latents=self.latents[:, :count])

    def at(self, time: float) -> Tensor:
        """The latents [B, C, H, W] at a time up to the end, by the cubic through the four nearest steps."""
        if self.final_step and time > self.times[-2]:
            share = (time - self.times[-2]) / (self.times[-1] - self.times[-2])
            return torch.lerp(self.latents[-2], self.latents[-1], share)
        weights = interpolation(self.times[:-1] if self.final_step else self.times, np.array([time]))[0]
        near = np.flatnonzero(weights)
        return torch.einsum("k,k...->...", torch.from_numpy(weights[near]).float(), self.latents[near])


def passed(backend: Backend, schedule: Schedule, images: ImageRange, shape: LatentShape, batch_size: int) -> Tensor:
    """Where images are at the beginning of a schedule and after each of its evaluations, [E + 1, B, C, H, W] float32.

    Raises NumericsError where a trajectory leaves the finite numbers.
    """
    program, parts = compile_program(schedule), []
    for start in range(images.first, images.stop, batch_size):
        part = dataclasses.replace(images, first=start, stop=min(images.stop, start + batch_size))
        (trajectory,) = begun(backend, program, part, shape, batch_size)
        seen = [trajectory.latents.cpu().clone()]
        for k in range(len(program.evaluations)):
            trajectory.step(k)
            seen.append(trajectory.latents.cpu().clone())
        trajectory.end()  # raises where it is not finite
        parts.append(torch.stack(seen))
    return torch.cat(parts, dim=1)
