"""Where a study is measured: a backend, held-out images, and how near what it draws ends to what it should."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from torch import Tensor

from ddt_accel.evaluation.benchmark import Earlier, Measurement, measure
from ddt_accel.evaluation.converged import converged_ends
from ddt_accel.evaluation.fidelity import latent_decibels, psnr, to_images
from ddt_accel.report.headline import Values
from ddt_accel.sampling.backend import Backend
from ddt_accel.sampling.noise import ImageRange
from ddt_accel.schedule import Schedule
from ddt_accel.spec import SamplingSpec
from ddt_accel.stages import OnStage


@dataclass(frozen=True, kw_only=True)
class Bench:
    """Everything that is measured is measured here."""

    backend: Backend
    latent_shape: tuple[int, int, int]
    seed: int
    batch_size: int
    on_stage: OnStage

    @property
    def pixels(self) -> bool:
        return self.backend.config.pixel_space

    def run(
        self,
        label: str,
        schedules: dict[str, Schedule],
        images: int,
        *,
        batch: int | None = None,
        earlier: Earlier | None = None,
    ) -> tuple[list[Measurement], dict[str, Tensor]]:
        """See `measure`; in batches of at most `batch`."""
        size = min(self.batch_size, batch or self.batch_size)
        return measure(
            self.backend,
            schedules,
            latent_shape=self.latent_shape,
            num_images=images,
            seed=self.seed,
            batch_size=size,
            on_run=self.on_stage(label, -(-images // size) * len(schedules)),
            earlier=earlier,
        )

    def reference(self, spec: SamplingSpec, steps: int, images: ImageRange) -> Tensor:
        """Where the reference solution of some images ends, [B, C, H, W]."""
        return converged_ends(self.backend, spec, steps, images, self.latent_shape, self.batch_size)

    def decibels(self, latents: Tensor, ends: Tensor) -> Values:
        """How near the first of some latents are to those ends, image by image; None where they are identical."""
        kept = latents[: len(ends)]
        values = psnr(to_images(kept), to_images(ends)) if self.pixels else latent_decibels(kept, ends)
        return [value if np.isfinite(value) else None for value in values.tolist()]
