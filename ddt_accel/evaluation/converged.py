"""Where trajectories lead in the limit of many steps, and by which way: what fits and plans are measured against."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor

from ddt_accel.artifacts import checksum, read_arrays, write_arrays
from ddt_accel.backends.sample import sample_images
from ddt_accel.errors import ArtifactError
from ddt_accel.evaluation.course import Course, passed
from ddt_accel.networks.config import LatentShape
from ddt_accel.sampling.backend import Backend
from ddt_accel.sampling.noise import ImageRange
from ddt_accel.sampling.reference import converged
from ddt_accel.schedule import Schedule
from ddt_accel.spec import SamplingSpec

FORMAT, VERSION = "ddt-accel converged trajectories", 1


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


def converged_course(
    backend: Backend,
    spec: SamplingSpec,
    steps: int,
    images: ImageRange,
    latent_shape: LatentShape,
    batch_size: int,
    *,
    cache: Path | None = None,
) -> Course:
    """The converged trajectories of some images, kept in `cache` as `converged_ends` are."""
    limit = converged(spec, steps)
    latents = _kept(
        "paths", backend, limit.spec, images, latent_shape, cache,
        lambda: passed(backend, limit, images, latent_shape, batch_size),
    )  # fmt: skip
    return Course(images=images, times=limit.spec.grid, latents=latents, final_step=limit.spec.last_step is not None)


def unshared_course(
    backend: Backend,
    spec: SamplingSpec,
    images: ImageRange,
    latent_shape: LatentShape,
    batch_size: int,
    *,
    cache: Path | None = None,
) -> Course:
    """The trajectories of some images by a sampler as it is, without sharing, kept as `converged_ends` are."""
    latents = _kept(
        "unshared", backend, spec, images, latent_shape, cache,
        lambda: passed(backend, Schedule.full(spec), images, latent_shape, batch_size),
    )  # fmt: skip
    stages = -(-spec.num_evaluations // spec.num_steps)  # Heun's second one may be missing at the end
    after = [min(stages * k, spec.num_evaluations) for k in range(spec.num_steps + 1)]
    return Course(images=images, times=spec.grid, latents=latents[after], final_step=spec.last_step is not None)


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
