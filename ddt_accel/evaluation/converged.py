"""Where trajectories lead in the limit of many steps, and by which way: what fits and plans are measured against."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from ddt_accel.artifacts import checksum, read_arrays, write_arrays
from ddt_accel.backends.sample import sample_images
from ddt_accel.errors import ArtifactError
from ddt_accel.evaluation.course import Course, passed
from ddt_accel.networks.config import LatentShape
from ddt_accel.sampling.backend import Backend
from ddt_accel.sampling.noise import ImageRange
from ddt_accel.sampling.reference import converged, second_order
from ddt_accel.schedule import Schedule
from ddt_accel.spec import SamplingSpec

FORMAT, VERSION = "ddt-accel converged trajectories", 1


def reference_steps(num_steps: int) -> int:
    """How many steps the reference solution takes: 100 are enough for its own error to lie 15 dB below that of the best
    fits; more where the baseline has more itself, fewer beside one of very few."""
    return max(2 * num_steps, min(8 * num_steps, 100))


@dataclass(frozen=True, kw_only=True)
class Reference:
    """Trajectories of some images that others are measured against, by one sampler without sharing.

    Of them the `ends` [B, C, H, W], or the `paths`: where they are at the beginning and after each evaluation,
    [E + 1, B, C, H, W]. `unshared` are paths, too, of a sampler as it is.
    """

    kind: Literal["ends", "paths", "unshared"]
    spec: SamplingSpec
    images: ImageRange

    @classmethod
    def converged(cls, kind: Literal["ends", "paths"], spec: SamplingSpec, steps: int, images: ImageRange) -> Reference:
        """In the limit of many steps, which so many stand for."""
        return cls(kind=kind, spec=converged(spec, steps).spec, images=images)

    def parts(self, batch_size: int) -> list[Reference]:
        """The same, batch by batch."""
        starts = range(self.images.first, self.images.stop, batch_size)
        images = (replace(self.images, first=first, stop=min(self.images.stop, first + batch_size)) for first in starts)
        return [replace(self, images=one) for one in images]

    def joined(self, parts: list[Tensor]) -> Tensor:
        """What its parts have become, as one."""
        return torch.cat(parts, dim=0 if self.kind == "ends" else 1)

    def run(self, backend: Backend, latent_shape: LatentShape, batch_size: int) -> Tensor:
        """Raises NumericsError where a trajectory leaves the finite numbers."""
        schedule = Schedule.full(self.spec) if self.kind == "unshared" else second_order(self.spec)
        follow = sample_images if self.kind == "ends" else passed
        return follow(backend, schedule, self.images, latent_shape, batch_size)

    def course(self, latents: Tensor) -> Course:
        """Paths by their times."""
        spec = self.spec
        if (stages := -(-spec.num_evaluations // spec.num_steps)) > 1:
            # Heun's second one may be missing at the end.
            latents = latents[[min(stages * k, spec.num_evaluations) for k in range(spec.num_steps + 1)]]
        return Course(images=self.images, times=spec.grid, latents=latents, final_step=spec.last_step is not None)


class Keeper:
    """References of a backend, in a folder: under names made of all that they depend on but its arithmetic.

    Without a folder, and of networks that nobody knows, nothing is kept.
    """

    def __init__(self, backend: Backend, latent_shape: LatentShape, folder: Path | None) -> None:
        self.backend, self.latent_shape = backend, latent_shape
        networks = [backend] if backend.guide is None else [backend, backend.guide]
        self._folder = None if any(one.checkpoint_sha256 is None for one in networks) else folder

    def made(self, reference: Reference, batch_size: int) -> Tensor:
        """What is kept of it, or what it becomes now."""
        if (values := self.found(reference)) is None:
            values = reference.run(self.backend, self.latent_shape, batch_size)
            self.keep(reference, values)
        return values

    def found(self, reference: Reference) -> Tensor | None:
        """None where it is not there, or damaged."""
        if (path := self.path(reference)) is None or not path.exists():
            return None
        try:
            _, arrays = read_arrays(path, FORMAT, VERSION)
        except ArtifactError:
            return None
        return torch.from_numpy(arrays[reference.kind]) if set(arrays) == {reference.kind} else None

    def keep(self, reference: Reference, values: Tensor) -> None:
        if (path := self.path(reference)) is not None:
            write_arrays(path, FORMAT, VERSION, self._content(reference), {reference.kind: values.numpy()})

    def drop(self, reference: Reference) -> None:
        if (path := self.path(reference)) is not None:
            path.unlink(missing_ok=True)

    def path(self, reference: Reference) -> Path | None:
        if self._folder is None:
            return None
        return self._folder / f"converged-{reference.kind}-{checksum(self._content(reference))[:16]}.safetensors"

    def _content(self, reference: Reference) -> dict[str, Any]:
        guide = self.backend.guide
        return {
            "checkpoint_sha256": self.backend.checkpoint_sha256,
            "spec": reference.spec.document(),
            "images": asdict(reference.images),
            "latent_shape": list(self.latent_shape),
            **({"guide_sha256": guide.checkpoint_sha256} if guide is not None else {}),
        }


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
    """Where the converged trajectories of some images end, [B, C, H, W]; kept in the folder `cache`."""
    reference = Reference.converged("ends", spec, steps, images)
    return Keeper(backend, latent_shape, cache).made(reference, batch_size)


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
    """The converged trajectories of some images; kept in the folder `cache`."""
    reference = Reference.converged("paths", spec, steps, images)
    return reference.course(Keeper(backend, latent_shape, cache).made(reference, batch_size))
