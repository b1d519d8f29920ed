"""How far from the reference solution schedules end, all on the same images."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from ddt_accel.artifacts import checksum
from ddt_accel.backends.sample import sample_images
from ddt_accel.calibration.statistics import Calibration
from ddt_accel.evaluation.converged import Keeper, Reference
from ddt_accel.evaluation.costs import Costs
from ddt_accel.evaluation.fidelity import Interval, interval, latent_decibels
from ddt_accel.sampling.backend import Backend
from ddt_accel.sampling.noise import ImageRange
from ddt_accel.schedule import Schedule

# The reference takes this many times the calibrated steps, where nothing else is said.
CONVERGED = 4


@dataclass(frozen=True, kw_only=True, eq=False)
class Plan:
    """A schedule, what it costs, and how far from the reference solution it ends.

    `cost` is in terms of the calibrated trajectory unshared; `fidelity` is −20 log₁₀ of the root-mean-square error of
    the latents over their range of 2, in dB, per image: for latents in [−1, 1] the PSNR before clipping. `copying` is
    the same against the unshared trajectory of the plan's own grid, where that was run and sharing makes a difference.
    `promise` is the mean on other images, where plans are reported on images that they are not chosen on.
    """

    name: str
    schedule: Schedule
    cost: float
    fidelity: NDArray[np.float64]
    copying: NDArray[np.float64] | None
    promise: float | None = None

    @property
    def mean(self) -> float:
        return float(self.fidelity.mean())

    @property
    def interval(self) -> Interval:
        found = interval(self.fidelity)  # finite: errors have a floor
        return found or Interval(mean=self.mean, low=-math.inf, high=math.inf)


class Judge:
    """The reference solution of some images, and how far from it others end.

    `cache` is a folder to keep it in.
    """

    def __init__(
        self, backend: Backend, calibration: Calibration, costs: Costs, images: ImageRange, batch_size: int, *,
        reference_steps: int | None = None, cache: Path | None = None,
    ) -> None:  # fmt: skip
        self.backend, self.calibration = backend, calibration
        self.images, self._batch_size = images, batch_size
        keeper = Keeper(backend, calibration.latent_shape, cache)
        self._reference = keeper.made(reference_of(calibration, images, reference_steps), batch_size)
        self._measured: dict[tuple[str, bool], Plan] = {}
        self.reprice(costs)

    @property
    def plans(self) -> list[Plan]:
        """All that was measured so far."""
        return list(self._measured.values())

    def reprice(self, costs: Costs) -> None:
        """Goes by other costs from now on, of what was measured, too."""
        self.costs, self.unit = costs, costs.of(Schedule.full(self.calibration.spec))
        for key, plan in self._measured.items():
            self._measured[key] = dataclasses.replace(plan, cost=self.cost(plan.schedule))

    def confirm(self, plan: Plan | None, *, copying: bool = False) -> Plan | None:
        """The same plan on these images."""
        if plan is None:
            return None
        return dataclasses.replace(self.measure(plan.schedule, copying=copying), promise=plan.mean)

    def measure(self, schedule: Schedule, *, copying: bool = False) -> Plan:
        """Runs a schedule, and with `copying` the unshared trajectory of its grid, too; each only once."""
        schedule = dataclasses.replace(
            schedule,
            checkpoint_sha256=self.calibration.checkpoint_sha256,
            guide_sha256=self.calibration.guide_sha256,
        )
        key = checksum(schedule.document()), copying
        if key not in self._measured:
            end = self._end(schedule)
            self._measured[key] = Plan(
                name=name_of(schedule),
                schedule=schedule,
                cost=self.cost(schedule),
                fidelity=latent_decibels(end, self._reference),
                copying=latent_decibels(end, self._end(Schedule.full(schedule.spec))) if copying else None,
            )
        return self._measured[key]

    def cost(self, schedule: Schedule) -> float:
        return self.costs.of(schedule) / self.unit

    def _end(self, schedule: Schedule) -> Tensor:
        return sample_images(self.backend, schedule, self.images, self.calibration.latent_shape, self._batch_size)


def reference_of(calibration: Calibration, images: ImageRange, steps: int | None = None) -> Reference:
    """What the ends of some images are held against; in so many steps, or as many as is usual."""
    spec = calibration.spec
    return Reference.converged("ends", spec, steps or CONVERGED * spec.num_steps, images)


def gain(plan: Plan | None, over: Plan | None) -> Interval | None:
    """How much closer a plan ends than another, in dB, paired over images."""
    return None if plan is None or over is None else interval(plan.fidelity - over.fidelity)


def closest(plans: list[Plan]) -> Plan | None:
    """The plan that ends closest, by what was promised where that was on other images."""
    return max(plans, key=lambda plan: plan.mean if plan.promise is None else plan.promise, default=None)


def name_of(schedule: Schedule) -> str:
    """What a schedule goes by: solver, steps and encoder runs; the time shift, where times are a grid's."""
    spec = schedule.spec
    shift = f", shift {spec.timeshift:.3g}" if spec.timeshift != 1 and schedule.times is None else ""
    shared = f", {schedule.budget} runs" if schedule.budget < spec.num_evaluations else ""
    if schedule.unconditional_steps is not None:
        shared = f", {schedule.budget} + {len(schedule.unconditional_steps)} runs"
    return f"{'fitted' if schedule.is_fitted else spec.solver} {spec.num_steps}{shift}{shared}"
