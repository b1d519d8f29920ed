"""On what methods are compared, and what came of it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import count

import numpy as np

from ddt_accel.artifacts import checksum
from ddt_accel.calibration.statistics import Calibration
from ddt_accel.comparison.choosing import Entry
from ddt_accel.comparison.ours import OURS
from ddt_accel.errors import ConfigError, MismatchError
from ddt_accel.evaluation.converged import reference_steps
from ddt_accel.evaluation.costs import Costs
from ddt_accel.evaluation.fidelity import Interval, interval
from ddt_accel.fitting.fit_spec import LEAST_HELD_OUT, LEAST_REFERENCE_STEPS, FitSpec
from ddt_accel.fitting.search import REVISION
from ddt_accel.sampling.backend import Backend
from ddt_accel.sampling.noise import ImageRange
from ddt_accel.schedule import Schedule

REFERENCE, UNSHARED = AIMS = ("reference", "unshared")
# How many images settings are chosen by, how many schedules are aligned on, and how many are fitted to in closed form.
CHOOSING, ALIGNING, CLOSING = 8, 12, 10


@dataclass(frozen=True, kw_only=True)
class Row:
    """What one method does at a cost: dB, per image, to the unshared sampler and to the reference solution."""

    entry: Entry
    cost: float
    seconds: float  # per image, measured
    speedup: float  # over the unshared sampler
    to_unshared: list[float]
    to_reference: list[float]

    def decibels(self, aim: str) -> list[float]:
        return self.to_reference if aim == REFERENCE else self.to_unshared

    def interval(self, aim: str) -> Interval | None:
        return interval(self.decibels(aim))

    def ahead_of(self, other: Row, aim: str) -> Interval | None:
        """By how many dB it ends closer than another, paired over images."""
        return interval(np.subtract(self.decibels(aim), other.decibels(aim)))


@dataclass(frozen=True, kw_only=True)
class Contest:
    """All rows at a cost, what the unshared sampler takes per image, and who has nothing as cheap."""

    cost: float
    unshared_seconds: float
    rows: list[Row]
    missing: list[str]

    @property
    def ours(self) -> Row | None:
        """The row of ours that is ahead on the images that it was chosen by."""
        return max(
            (row for row in self.rows if row.entry.name in OURS), key=lambda row: row.entry.promise, default=None
        )


@dataclass(frozen=True, kw_only=True)
class Field:
    """On what a comparison is made: networks, what is known of them, and which images are for what.

    The images of `seed` are reported on first, then chosen by, then aligned on.
    """

    backend: Backend
    calibration: Calibration
    costs: Costs
    num_images: int
    seed: int
    batch_size: int
    aim: str

    def __post_init__(self) -> None:
        spec = self.calibration.spec
        if self.num_images < 2 or self.batch_size < 1:
            raise ConfigError(
                f"{self.num_images} images in batches of {self.batch_size}: an interval needs at least 2 images."
            )
        if self.aim not in AIMS:
            raise ConfigError(f"The aim (--to) is {self.aim!r}; choose one of {', '.join(AIMS)}.")
        if spec.solver == "sde":
            raise ConfigError("A stochastic sampler has no reference solution to come close to; calibrate another.")
        if self.calibration.contains(self.seen):
            raise MismatchError(f"Seed {self.seed} was calibrated on; compare with another --seed.")

    def images(self, first: int, count: int) -> ImageRange:
        return ImageRange(seed=self.seed, first=first, stop=first + count)

    @property
    def reporting(self) -> ImageRange:
        return self.images(0, self.num_images)

    @property
    def choosing(self) -> ImageRange:
        return self.images(self.num_images, CHOOSING)

    @property
    def aligning(self) -> ImageRange:
        return self.images(self.num_images + CHOOSING, ALIGNING)

    @property
    def closing(self) -> FitSpec:
        """On what is fitted in closed form: images of another seed, since what is found may be kept."""
        specs = (
            FitSpec(
                seed=seed, images=CLOSING, batch_size=CLOSING, held_out=LEAST_HELD_OUT,
                reference_steps=max(LEAST_REFERENCE_STEPS, reference_steps(self.calibration.spec.num_steps)),
            )
            for seed in count()
            if seed != self.seed
        )  # fmt: skip
        return next(spec for spec in specs if not any(map(self.calibration.contains, spec.ranges)))

    @property
    def seen(self) -> ImageRange:
        """All that are used of `seed`."""
        return self.images(0, self.num_images + CHOOSING + ALIGNING)

    @property
    def unshared(self) -> Schedule:
        """What everything stands beside."""
        known = self.calibration
        return replace(
            Schedule.full(known.spec), checkpoint_sha256=known.checkpoint_sha256, guide_sha256=known.guide_sha256
        )

    @property
    def identity(self) -> str:
        """Of everything that choices depend on but the backend's rounding."""
        return checksum(
            {"calibration": self.calibration.sha256, "costs": self.costs.document(), "images": self.num_images,
             "seed": self.seed, "aim": self.aim, "choosing": CHOOSING, "aligning": ALIGNING,
             "closing": CLOSING, "search": REVISION, "backend": self.backend.name}
        )  # fmt: skip
