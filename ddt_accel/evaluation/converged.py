"""Where trajectories lead in the limit of many steps, and by which way: what fits and plans are measured against."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ddt_accel.artifacts import checksum, read_arrays, write_arrays
from ddt_accel.backends.sample import sample_images
from ddt_accel.calibration.resample import interpolation
from ddt_accel.errors import ArtifactError
from ddt_accel.sampling.backend import Backend
from ddt_accel.sampling.noise import ImageRange, draw_labels, draw_noise
from ddt_accel.sampling.program import compile_program
from ddt_accel.sampling.reference import converged
from ddt_accel.sampling.trajectory import Trajectory
from ddt_accel.spec import SamplingSpec

FORMAT, VERSION = "ddt-accel converged trajectories", 1
LatentShape = tuple[int, int, int]


@dataclass(frozen=True, kw_only=True, eq=False)
class ConvergedPath:
    """Where the converged trajectories of some images are at every one of their steps.

    `times` [T + 1] run from 0 to the end, `latents` are [T + 1, B, C, H, W] float32 on the CPU. With a `final_step` the
    last of them is an Euler step, so that it is a straight line and the path has a bend before it.
    """

    images: ImageRange
    final_step: bool
    times: NDArray[np.float64]
    latents: Tensor

    @property
    def ends(self) -> Tensor:
        return self.latents[-1]

    def first(self, count: int) -> ConvergedPath:
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


def reference_steps(num_steps: int) -> int:
    """How many steps the reference solution takes: 100 are enough for its own error to lie 15 dB below that of the best
    fits; more where the baseline has more itself, fewer beside one of very few."""
    return max(2 * num_steps, min(8 * num_steps, 100))


def converged_ends(
    backend: Backend,
    spec: SamplingSpec,
    steps: int,
    images: ImageRange,
    latent_shape: LatentShape,
    batch_size: int,
    *,
    cache: Path | None = None,
) -> Tensor:
    """Where the converged trajectories of some images end, [B, C, H, W].

    In the folder `cache` they are kept under a name made of all that they depend on but the backend's arithmetic.
    """
    limit = converged(spec, steps)
    return _kept(
        "ends", backend, limit.spec, images, latent_shape, cache,
        lambda: sample_images(backend, limit, images, latent_shape, batch_size),
    )  # fmt: skip


def converged_path(
    backend: Backend,
    spec: SamplingSpec,
    steps: int,
    images: ImageRange,
    latent_shape: LatentShape,
    batch_size: int,
    *,
    cache: Path | None = None,
) -> ConvergedPath:
    """The converged trajectories of some images, kept in `cache` as `converged_ends` are."""
    limit = converged(spec, steps)
    program = compile_program(limit)

    def made() -> Tensor:
        parts = []
        for start in range(images.first, images.stop, batch_size):
            indices = range(start, min(images.stop, start + batch_size))
            noise = draw_noise(latent_shape, seed=images.seed, indices=indices)
            labels = draw_labels(backend.config.num_classes, seed=images.seed, indices=indices)
            trajectory = Trajectory(backend, program, noise, labels)
            passed = [trajectory.latents.cpu().clone()]
            for k in range(steps):
                trajectory.step(k)
                passed.append(trajectory.latents.cpu().clone())
            trajectory.end()  # raises where it is not finite, so that nothing broken is kept
            parts.append(torch.stack(passed))
        return torch.cat(parts, dim=1)

    latents = _kept("paths", backend, limit.spec, images, latent_shape, cache, made)
    final_step = limit.spec.last_step is not None
    return ConvergedPath(images=images, times=limit.spec.grid, latents=latents, final_step=final_step)


def _kept(
    name: str, backend: Backend, limit: SamplingSpec, images: ImageRange, latent_shape: LatentShape,
    cache: Path | None, made: Callable[[], Tensor],
) -> Tensor:  # fmt: skip
    if cache is None or backend.checkpoint_sha256 is None:
        return made()
    content = {
        "checkpoint_sha256": backend.checkpoint_sha256,
        "spec": limit.document(),
        "images": asdict(images),
        "latent_shape": list(latent_shape),
    }
    if backend.guide is not None:
        if backend.guide.checkpoint_sha256 is None:
            return made()
        content["guide_sha256"] = backend.guide.checkpoint_sha256
    path = cache / f"converged-{name}-{checksum(content)[:16]}.safetensors"
    if path.exists():
        try:
            _, arrays = read_arrays(path, FORMAT, VERSION)
            if set(arrays) == {name}:
                return torch.from_numpy(arrays[name])
        except ArtifactError:
            pass  # damaged: it is made anew below
    values = made()
    write_arrays(path, FORMAT, VERSION, content, {name: values.numpy()})
    return values
