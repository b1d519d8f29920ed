"""Which steps, integrator and refreshes to take for a given cost, measured against the converged trajectory.

"Fewer steps" is what anyone can do without sharing, so that a plan is judged by where it ends, not by how well it
copies a particular sampler: the reference is a trajectory of many steps of second order from the same noise. One
calibration on a fine grid serves all grids (`calibration.resample`). Named integrators extrapolate over a
final step as over all others, as the published ones do.

The expected squared error of a shared plan is taken as that of its unshared twin, which is measured, plus that of the
forecasts, which the calibration predicts. The most promising plans of every cost are then run.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from ddt_accel.backends.sample import sample_images
from ddt_accel.calibration.resample import POINTS
from ddt_accel.calibration.statistics import Calibration
from ddt_accel.errors import ConfigError, MismatchError
from ddt_accel.evaluation import candidates
from ddt_accel.evaluation.candidates import INTEGRATORS, SHIFTS, finest, grids
from ddt_accel.evaluation.converged import converged
from ddt_accel.evaluation.costs import Costs
from ddt_accel.evaluation.fidelity import Interval, interval, latent_decibels
from ddt_accel.sampling.backend import Backend
from ddt_accel.sampling.noise import ImageRange
from ddt_accel.schedule import Schedule
from ddt_accel.spec import SamplingSpec
from ddt_accel.stages import OnStage

T = TypeVar("T")

# The reference takes this many times the calibrated steps.
CONVERGED = 4
# On how many grids shared plans are run for every cost.
TRIED = 4


@dataclass(frozen=True, kw_only=True, eq=False)
class Plan:
    """A schedule, what it costs, and how far from the converged trajectory it ends.

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


@dataclass(frozen=True, kw_only=True)
class Row:
    """The best plans of at most a cost, without and with sharing, and what the published method reaches there.

    `fewer` has the calibrated time shift, any of `INTEGRATORS` and at most as many steps as are affordable; `unshared`
    any of `SHIFTS`, too. Fitted plans are there where fits were asked for.
    """

    cost: float
    fewer: Plan | None
    unshared: Plan | None
    published: Plan | None
    shared: Plan | None
    fitted_unshared: Plan | None = None
    fitted_shared: Plan | None = None

    @property
    def best_unshared(self) -> Plan | None:
        return _closest([plan for plan in (self.fewer, self.unshared, self.fitted_unshared) if plan is not None])

    @property
    def best_shared(self) -> Plan | None:
        return _closest([plan for plan in (self.shared, self.fitted_shared) if plan is not None])

    @property
    def plans(self) -> list[Plan]:
        every = (
            self.fewer, self.unshared, self.published, self.shared, self.fitted_unshared, self.fitted_shared
        )  # fmt: skip
        return [plan for plan in every if plan is not None]

    @property
    def best(self) -> Plan | None:
        return _closest(self.plans)


class _Judge:
    """The converged trajectories of some images, and how far from them others end."""

    def __init__(
        self, backend: Backend, calibration: Calibration, costs: Costs, shape: tuple[int, int, int], images: ImageRange,
        batch_size: int,
    ) -> None:  # fmt: skip
        self._backend, self._calibration, self._costs = backend, calibration, costs
        self._shape, self._images, self._batch_size = shape, images, batch_size
        self.unit = costs.of(Schedule.full(calibration.spec))
        steps = CONVERGED * calibration.spec.num_steps
        self._converged = self._end(converged(calibration.spec, steps))

    def confirm(self, plan: Plan | None, *, copying: bool = False) -> Plan | None:
        """The same plan on these images."""
        if plan is None:
            return None
        return dataclasses.replace(self.measure(plan.schedule, copying=copying), promise=plan.mean)

    def measure(self, schedule: Schedule, *, copying: bool = False) -> Plan:
        """Runs a schedule, and with `copying` the unshared trajectory of its grid, too."""
        schedule = dataclasses.replace(schedule, checkpoint_sha256=self._calibration.checkpoint_sha256)
        end = self._end(schedule)
        return Plan(
            name=_name(schedule),
            schedule=schedule,
            cost=self.cost(schedule),
            fidelity=latent_decibels(end, self._converged),
            copying=latent_decibels(end, self._end(Schedule.full(schedule.spec))) if copying else None,
        )

    def cost(self, schedule: Schedule) -> float:
        return self._costs.of(schedule) / self.unit

    def _end(self, schedule: Schedule) -> Tensor:
        return sample_images(self._backend, schedule, self._images, self._shape, self._batch_size)


def make_plans(
    backend: Backend,
    calibration: Calibration,
    costs: Costs,
    targets: list[float],
    *,
    latent_shape: tuple[int, int, int],
    num_images: int,
    seed: int,
    batch_size: int,
    on_stage: OnStage,
    fitted: Callable[[float, bool], Schedule | None] | None = None,
) -> list[Row]:
    """The best plans for every target cost, in terms of the calibrated trajectory unshared.

    Plans are chosen on the images 0 … num_images − 1 of `seed` and reported on as many others, so that the luck of the
    winner is not reported with it. `on_stage` is called with what comes next and how many steps it takes, and returns
    what to call after each. `fitted(cost, shared)` gives a fitted schedule of at most that cost, with sharing or
    without (fitting/joint.py). Raises MismatchError for images that were calibrated on, ConfigError for a stochastic
    sampler, whose trajectories do not converge.
    """
    spec = calibration.spec
    if spec.solver == "sde":
        raise ConfigError(
            "A stochastic trajectory has no converged limit to plan for; calibrate a deterministic solver."
        )
    if num_images < 2 or batch_size < 1 or not targets or not all(0 < target < math.inf for target in targets):
        raise ConfigError(
            f"{num_images} images in batches of {batch_size} for the costs {targets}: give at least 2 images, batches "
            "of at least 1, and costs above 0."
        )
    if calibration.sensitivity is None:
        raise ConfigError("The calibration has no sensitivities; calibrate with at least one sensitivity sample.")
    choosing = ImageRange(seed=seed, first=0, stop=num_images)
    reporting = ImageRange(seed=seed, first=num_images, stop=2 * num_images)
    if calibration.contains(choosing) or calibration.contains(reporting):
        raise MismatchError(f"Seed {seed} was calibrated on; plan with another --seed.")
    targets = sorted(targets)

    judge, reporter = (
        _Judge(backend, calibration, costs, latent_shape, images, batch_size)
        for images in _counted("measuring the converged trajectories", [choosing, reporting], on_stage)
    )
    unshared = _unshared(spec, judge, targets, on_stage)

    def priced(schedules: list[Schedule]) -> list[tuple[float, Schedule]]:
        return [(judge.cost(schedule), schedule) for schedule in schedules]

    twins = [twin for twin in unshared.values() if twin.schedule.spec.num_steps >= POINTS]
    curves = [[priced(curve) for curve in candidates.curves(calibration, twin.schedule.spec)] for twin in twins]
    published = priced(candidates.published(calibration))
    rows = []
    for target in targets:

        def affordable(curve: list[tuple[float, Schedule]], target: float = target) -> list[Schedule]:
            return [schedule for cost, schedule in curve if cost <= target]

        promising = [
            variant
            for schedule in _promising([[affordable(curve) for curve in grid] for grid in curves], unshared)
            for variant in candidates.variants(calibration, schedule)
            if judge.cost(variant) <= target
        ]
        label = f"measuring shared plans at cost {target:g}"
        shared = _closest([judge.measure(schedule) for schedule in _counted(label, promising, on_stage)])
        if shared is not None:
            near = [s for s in candidates.neighbours(calibration, shared.schedule) if judge.cost(s) <= target]
            label = f"measuring their neighbours at cost {target:g}"
            shared = _closest([shared, *(judge.measure(schedule) for schedule in _counted(label, near, on_stage))])
        reachable = [plan for plan in unshared.values() if plan.cost <= target]
        fewer = _closest([plan for plan in reachable if plan.schedule.spec.timeshift == spec.timeshift])
        best = _closest(reachable)
        held = affordable(published)
        numbers = [fitted(target, way) if fitted else None for way in (False, True)]
        fits = [reporter.confirm(judge.measure(schedule)) if schedule else None for schedule in numbers]
        rows.append(
            Row(
                cost=target,
                fewer=reporter.confirm(fewer),
                unshared=reporter.confirm(best),
                published=reporter.confirm(judge.measure(held[-1]), copying=True) if held else None,
                shared=reporter.confirm(shared, copying=True),
                fitted_unshared=fits[0],
                fitted_shared=fits[1],
            )
        )
    return rows


def _unshared(spec: SamplingSpec, judge: _Judge, targets: list[float], on_stage: OnStage) -> dict[SamplingSpec, Plan]:
    """Without sharing: every integrator in as many steps as each cost affords, and in some other numbers of them; the
    integrator that is best at a cost at other time shifts, too, again in as many steps as it affords."""

    def price(grid: SamplingSpec) -> float:
        return judge.cost(Schedule.full(grid))

    plans: dict[SamplingSpec, Plan] = {}

    def measure(label: str, found: list[SamplingSpec]) -> None:
        new = [grid for grid in dict.fromkeys(found) if grid not in plans]
        plans.update({grid: judge.measure(Schedule.full(grid)) for grid in _counted(label, new, on_stage)})

    def best() -> list[tuple[float, SamplingSpec]]:
        found = [(target, _closest([plan for plan in plans.values() if plan.cost <= target])) for target in targets]
        return [(target, plan.schedule.spec) for target, plan in found if plan is not None]

    unshifted = [grid for solver in INTEGRATORS for grid in grids(spec, solver, spec.timeshift) if price(grid) <= 1.001]
    for target in targets:
        unshifted += [grid for solver in INTEGRATORS for grid in finest(spec, solver, spec.timeshift, price, target)]
    measure("measuring fewer steps", unshifted)
    shifted = [
        grid
        for target, near in best()
        for shift in SHIFTS
        for grid in finest(spec, near.solver, spec.timeshift * shift, price, target)
    ]
    measure("measuring other time shifts", shifted)
    # What suits the best grids suits finer ones, too, which only sharing makes affordable.
    suited = sorted({(near.solver, near.timeshift) for _, near in best()})
    finer = [grid for solver, shift in suited for grid in grids(spec, solver, shift) if price(grid) <= 1.001]
    measure("measuring them on finer grids", finer)
    return plans


def _counted(label: str, items: list[T], on_stage: OnStage) -> Iterator[T]:
    """The items, one after the other, under a bar."""
    advance = on_stage(label, len(items))
    for item in items:
        yield item
        advance()


def gain(plan: Plan | None, over: Plan | None) -> Interval | None:
    """How much closer a plan ends than another, in dB, paired over images."""
    return None if plan is None or over is None else interval(plan.fidelity - over.fidelity)


def _closest(plans: list[Plan]) -> Plan | None:
    return max(plans, key=lambda plan: plan.mean if plan.promise is None else plan.promise, default=None)


def _name(schedule: Schedule) -> str:
    spec = schedule.spec
    shift = f", shift {spec.timeshift:.3g}" if spec.timeshift != 1 else ""
    shared = f", {schedule.budget} runs" if schedule.budget < spec.num_evaluations else ""
    if schedule.unconditional_steps is not None:
        shared = f", {schedule.budget} + {len(schedule.unconditional_steps)} runs"
    return f"{'fitted' if schedule.is_fitted else spec.solver} {spec.num_steps}{shift}{shared}"


def _promising(families: list[list[list[Schedule]]], unshared: dict[SamplingSpec, Plan]) -> list[Schedule]:
    """The largest affordable budgets of the grids that should end closest to the converged trajectory."""
    found: list[tuple[float, list[Schedule]]] = []
    for variants in families:
        best = [variant[-1] for variant in variants if variant]
        if best:
            own = float(np.mean(4 * 10 ** (-unshared[best[0].spec].fidelity / 10)))
            found.append((own + min(schedule.predicted_error or 0.0 for schedule in best) ** 2, best))
    found.sort(key=lambda entry: entry[0])
    return [schedule for _, best in found[:TRIED] for schedule in best]
