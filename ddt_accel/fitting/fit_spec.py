"""How a schedule is fitted, and on which images."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise

from ddt_accel.errors import ConfigError
from ddt_accel.evaluation.converged import Reference
from ddt_accel.fitting.scalars import KINDS
from ddt_accel.sampling.noise import ImageRange
from ddt_accel.spec import SamplingSpec

LEAST_REFERENCE_STEPS = 8
# Fewer images have no interval to speak of.
LEAST_HELD_OUT = 4
# On how many of the images at most the integrator is fitted in closed form.
CLOSED_FORM_IMAGES = 32


@dataclass(frozen=True, kw_only=True)
class FitSpec:
    """How a schedule is fitted: on the images 0 … images − 1 of `seed`, chosen on `held_out` more, reported on as many
    more. `batch_size` images make a gradient, `micro_batch` at a time, or, where that is None, as many as fit into
    memory; with `autocast` in bfloat16. The converged trajectory has `reference_steps`, by default 120, or 4 for each
    of the schedule's, if that is more."""

    iterations: int = 40
    images: int = 64
    held_out: int = 32
    batch_size: int = 12
    micro_batch: int | None = None
    learning_rate: float = 5e-2
    reference_steps: int | None = None
    seed: int = 3
    free: tuple[str, ...] = KINDS
    sources: int = 2
    autocast: bool = False

    def __post_init__(self) -> None:
        for name in ("iterations", "images", "batch_size", "micro_batch"):
            value = getattr(self, name)
            if value is not None and value < 1:
                option = f"--{name.replace('_', '-')}"
                raise ConfigError(f"{value} {name.replace('_', ' ')} ({option}): give at least 1.")
        if self.batch_size > self.images:
            raise ConfigError(f"Batches of {self.batch_size} out of {self.images} images; give smaller ones.")
        if self.held_out < LEAST_HELD_OUT:
            raise ConfigError(f"{self.held_out} held-out images (--held-out): give at least {LEAST_HELD_OUT}.")
        if not 0 <= self.seed < 2**32:
            raise ConfigError(f"The seed is {self.seed}; give a number from 0 to 2³² − 1.")
        if self.reference_steps is not None and self.reference_steps < LEAST_REFERENCE_STEPS:
            raise ConfigError(
                f"{self.reference_steps} steps do not converge; give at least {LEAST_REFERENCE_STEPS} reference steps "
                "(--reference-steps)."
            )
        if not 0 < self.learning_rate < 1:
            raise ConfigError(
                f"The learning rate (--learning-rate) is {self.learning_rate}; give a number between 0 and 1."
            )
        if not set(self.free) <= set(KINDS) or not self.free:
            raise ConfigError(f"To fit: {', '.join(self.free) or 'nothing'}; choose from {', '.join(KINDS)}.")
        if self.sources < 1:
            raise ConfigError(f"Forecasts from {self.sources} states; give 1 or more.")

    @property
    def ranges(self) -> tuple[ImageRange, ImageRange, ImageRange]:
        """The images to fit on, to choose the iterate on, and to report on."""
        ends = [0, self.images, self.images + self.held_out, self.images + 2 * self.held_out]
        fitting, choosing, reporting = (
            ImageRange(seed=self.seed, first=first, stop=stop) for first, stop in pairwise(ends)
        )
        return fitting, choosing, reporting

    @property
    def closed_form_images(self) -> ImageRange:
        """Those of the images to fit on that the integrator is fitted to in closed form."""
        return ImageRange(seed=self.seed, first=0, stop=min(self.images, CLOSED_FORM_IMAGES))

    def references(self, sampler: SamplingSpec, steps: int) -> list[Reference]:
        """What a fit of any schedule for that sampling goes by: the paths of the images of the closed form, and where
        the others of each range end."""
        course, (fitting, *others) = self.closed_form_images, self.ranges
        rest = [replace(fitting, first=course.stop)] if course.stop < fitting.stop else []
        return [
            Reference.converged("paths", sampler, steps, course),
            *(Reference.converged("ends", sampler, steps, images) for images in (*rest, *others)),
        ]
