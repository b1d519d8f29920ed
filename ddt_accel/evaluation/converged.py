"""Where trajectories lead in the limit of many steps: what fits and plans are measured against."""

from __future__ import annotations

import dataclasses
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor

from ddt_accel.artifacts import checksum, read_arrays, write_arrays
from ddt_accel.backends.sample import sample_images
from ddt_accel.errors import ArtifactError
from ddt_accel.sampling.backend import Backend
from ddt_accel.sampling.noise import ImageRange
from ddt_accel.schedule import Schedule
from ddt_accel.spec import SamplingSpec

FORMAT, VERSION = "ddt-accel converged ends", 1


def converged(spec: SamplingSpec, steps: int) -> SamplingSpec:
    """The same guidance and time shift, integrated by second-order Adams–Bashforth in many steps."""
    return dataclasses.replace(spec, num_steps=steps, solver="ab2", last_step=None)


def converged_ends(
    backend: Backend,
    spec: SamplingSpec,
    steps: int,
    images: ImageRange,
    latent_shape: tuple[int, int, int],
    batch_size: int,
    *,
    cache: Path | None = None,
) -> Tensor:
    """Where the converged trajectories of some images end, [B, C, H, W].

    In the folder `cache` they are kept under a name made of all that they depend on but the backend's arithmetic.
    """
    limit = converged(spec, steps)
    if cache is None or backend.checkpoint_sha256 is None:
        return sample_images(backend, Schedule.full(limit), images, latent_shape, batch_size)
    content = {
        "checkpoint_sha256": backend.checkpoint_sha256,
        "spec": asdict(limit),
        "images": asdict(images),
        "latent_shape": list(latent_shape),
    }
    path = cache / f"converged-{checksum(content)[:16]}.safetensors"
    if path.exists():
        try:
            _, arrays = read_arrays(path, FORMAT, VERSION)
            if set(arrays) == {"ends"}:
                return torch.from_numpy(arrays["ends"])
        except ArtifactError:
            pass  # damaged: it is made anew below
    ends = sample_images(backend, Schedule.full(limit), images, latent_shape, batch_size)
    write_arrays(path, FORMAT, VERSION, content, {"ends": ends.numpy()})
    return ends
