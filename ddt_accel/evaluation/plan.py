"""Which steps, integrator and refreshes to take for a given cost, measured against the reference solution.

"Fewer steps" is what anyone can do without sharing, so that a plan is judged by where it ends, not by how well it
copies a particular sampler: the reference is a trajectory of many steps of second order from the same noise. One
calibration on a fine grid serves all grids (`calibration.resample`). Named integrators extrapolate over a
final step as over all others, as the published ones do.

The expected squared error of a shared plan is taken as that of its unshared twin, which is measured, plus that of the
forecasts, which the calibration predicts. The most promising plans of every cost are then run.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cache as remembered
from pathlib import Path
from typing import TypeVar

import numpy as np

from ddt_accel.calibration.resample import POINTS, resample
from ddt_accel.calibration.statistics import Calibration
from ddt_accel.errors import ConfigError, MismatchError
from ddt_accel.evaluation import candidates
from ddt_accel.evaluation.candidates import INTEGRATORS, SHIFTS, STEPS, finest, grids
from ddt_accel.evaluation.converged import Reference
from ddt_accel.evaluation.costs import Costs
from ddt_accel.evaluation.judge import Judge, Plan, closest, reference_of
from ddt_accel.sampling.backend import Backend
from ddt_accel.sampling.noise import ImageRange
from ddt_accel.schedule import Schedule
from ddt_accel.spec import SamplingSpec
from ddt_accel.stages import OnStage

T = TypeVar("T")

# On how many grids shared plans are run for every cost.
TRIED = 4


@dataclass(frozen=True, kw_only=True)
class Row:
    """The best plans of at most a cost, without and with sharing, and what the published method reaches there.

    `fewer` has the calibrated time shift, any of `INTEGRATORS` and at most as many steps as are affordable; `unshared`
    any of `SHIFTS`, too; `shared` may run narrow networks where there are some. Fitted plans are there where fits were
    asked for.
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
        return closest([plan for plan in (self.fewer, self.unshared, self.fitted_unshared) if plan is not None])

    @property
    def best_shared(self) -> Plan | None:
        return closest([plan for plan in (self.shared, self.fitted_shared) if plan is not None])

    @property
    def plans(self) -> list[Plan]:
        every = (
            self.fewer, self.unshared, self.published, self.shared, self.fitted_unshared, self.fitted_shared
        )  # fmt: skip
        return [plan for plan in every if plan is not None]

    @property
    def best(self) -> Plan | None:
        return closest(self.plans)

    def confirmed(self, judge: Judge) -> Row:
        """The same plans on the judge's images."""
        return replace(
            self,
            fewer=judge.confirm(self.fewer),
            unshared=judge.confirm(self.unshared),
            published=judge.confirm(self.published, copying=True),
            shared=judge.confirm(self.shared, copying=True),
            fitted_unshared=judge.confirm(self.fitted_unshared),
            fitted_shared=judge.confirm(self.fitted_shared),
        )


def _no_one(references: list[Reference]) -> None:
    """Leaves them to be made when they are needed."""


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
    cache: Path | None = None,
    follow: Callable[[list[Reference]], None] = _no_one,
) -> list[Row]:
    """The best plans for every target cost, in terms of the calibrated trajectory unshared.

    Plans are chosen on the images 0 … num_images − 1 of `seed` and reported on as many others, so that the luck of the
    winner is not reported with it. `on_stage` is called with what comes next and how many steps it takes, and returns
    what to call after each. `fitted(cost, shared)` gives a fitted schedule of at most that cost, with sharing or
    without (fitting/joint.py). `cache` is a folder that reference solutions are kept in, and `follow` may
    bring them there before. Raises MismatchError for images that were calibrated on, ConfigError for a stochastic
    sampler, whose trajectories do not converge.
    """
    check_deterministic(calibration)
    if num_images < 2 or batch_size < 1 or not targets or not all(0 < target < math.inf for target in targets):
        raise ConfigError(
            f"{num_images} images in batches of {batch_size} for the costs {targets}: give at least 2 images, batches "
            "of at least 1, and costs above 0."
        )
    if calibration.latent_shape != latent_shape:
        raise MismatchError(
            f"The calibration is of latents {list(calibration.latent_shape)}, the networks are for "
            f"{list(latent_shape)}; calibrate with these."
        )
    guide = backend.guide.checkpoint_sha256 if backend.guide is not None else None
    if calibration.guide_sha256 != guide:
        was, are = (
            f"guided by {one[:12]}…" if one else "without a second network" for one in (calibration.guide_sha256, guide)
        )
        raise MismatchError(f"The calibration was made {was}, and the networks here are {are}; calibrate with these.")
    choosing = ImageRange(seed=seed, first=0, stop=num_images)
    reporting = ImageRange(seed=seed, first=num_images, stop=2 * num_images)
    if calibration.contains(choosing) or calibration.contains(reporting):
        raise MismatchError(f"Seed {seed} was calibrated on; plan with another --seed.")
    follow([reference_of(calibration, images) for images in (choosing, reporting)])
    judge, reporter = (
        Judge(backend, calibration, costs, images, batch_size, cache=cache)
        for images in _counted("measuring the reference solution", [choosing, reporting], on_stage)
    )
    return [row.confirmed(reporter) for row in choose_plans(judge, targets, on_stage, fitted)]


def check_deterministic(calibration: Calibration) -> None:
    """Raises ConfigError where there is nothing to plan for or to plan by."""
    if calibration.spec.solver == "sde":
        raise ConfigError(
            "A stochastic sampler has no reference solution to plan for; calibrate a deterministic solver."
        )
    if calibration.sensitivity is None:
        raise ConfigError(
            "The calibration has no sensitivities; calibrate with at least one sensitivity sample "
            "(--sensitivity-samples)."
        )


def choose_plans(
    judge: Judge,
    targets: list[float],
    on_stage: OnStage,
    fitted: Callable[[float, bool], Schedule | None] | None = None,
) -> list[Row]:
    """The best plans for every target cost, by the images of the judge; see `make_plans`."""
    targets, calibration = sorted(targets), judge.calibration
    spec = calibration.spec
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
            for variant in candidates.variants(calibration, schedule, costs=judge.costs.relative)
            if judge.cost(variant) <= target
        ]
        if calibration.width_sums is not None:
            statistics = [resample(calibration, one) for one in dict.fromkeys(s.spec for s in promising)]
            narrow = [candidates.with_widths(one, judge.costs, target * judge.unit) for one in statistics]
            promising += [schedule for schedule in narrow if schedule is not None and schedule.has_widths]
        label = f"measuring shared plans at cost {target:.3g}"
        shared = closest([judge.measure(schedule) for schedule in _counted(label, promising, on_stage)])
        if shared is not None:
            beside = candidates.neighbours(calibration, shared.schedule, costs=judge.costs.relative)
            near = [s for s in beside if judge.cost(s) <= target]
            label = f"measuring their neighbours at cost {target:.3g}"
            shared = closest([shared, *(judge.measure(schedule) for schedule in _counted(label, near, on_stage))])
        reachable = [plan for plan in unshared.values() if plan.cost <= target]
        held = affordable(published)
        numbers = [fitted(target, way) if fitted else None for way in (False, True)]
        fits = [judge.measure(schedule) if schedule else None for schedule in numbers]
        rows.append(
            Row(
                cost=target,
                fewer=closest([plan for plan in reachable if plan.schedule.spec.timeshift == spec.timeshift]),
                unshared=closest(reachable),
                published=judge.measure(held[-1]) if held else None,
                shared=shared,
                fitted_unshared=fits[0],
                fitted_shared=fits[1],
            )
        )
    return rows


def fewer_steps(judge: Judge, target: float, on_stage: OnStage) -> Plan | None:
    """The best of `INTEGRATORS` without sharing at the calibrated time shift, in as many steps as a cost affords."""
    spec = judge.calibration.spec

    def price(grid: SamplingSpec) -> float:
        return judge.cost(Schedule.full(grid))

    found = [grid for solver in INTEGRATORS for grid in finest(spec, solver, spec.timeshift, price, target)]
    counted = _counted("measuring fewer steps", found, on_stage)
    return closest([judge.measure(Schedule.full(grid)) for grid in counted])


def fewest_steps(judge: Judge, psnr: float, on_stage: OnStage) -> list[Plan]:
    """Of every one of `INTEGRATORS` the fewest steps without sharing that end within `psnr` dB of the reference
    solution, at the calibrated time shift; of the cheapest of them at `SHIFTS`, too, where that takes fewer.

    More steps are taken to end closer, so that few numbers of them are run.
    """
    spec = judge.calibration.spec
    advance = on_stage("measuring how few steps are enough", len(INTEGRATORS) + len(SHIFTS))

    def fewest(solver: str, timeshift: float, most: int) -> Plan | None:
        @remembered
        def plan(steps: int) -> Plan:
            return judge.measure(Schedule.full(spec.on_grid(steps, timeshift=timeshift, solver=solver)))

        counts = range(min(STEPS[0], most), most + 1)
        try:
            found = bisect_left(counts, True, key=lambda steps: plan(steps).interval.low >= psnr)
        except ConfigError:  # the time shift is out of range
            found = len(counts)
        advance()
        return plan(counts[found]) if found < len(counts) else None

    plans = [plan for solver in INTEGRATORS if (plan := fewest(solver, spec.timeshift, spec.num_steps))]
    best = min(plans, key=lambda plan: plan.cost, default=None)
    if best is not None and best.schedule.spec.num_steps > STEPS[0]:
        own = best.schedule.spec
        shifted = [fewest(own.solver, spec.timeshift * shift, own.num_steps - 1) for shift in SHIFTS]
        plans += [plan for plan in shifted if plan is not None]
    return plans


def _unshared(spec: SamplingSpec, judge: Judge, targets: list[float], on_stage: OnStage) -> dict[SamplingSpec, Plan]:
    """Without sharing: every integrator in as many steps as each cost affords, and in some other numbers of them; the
    integrator that is best at a cost at other time shifts, too, again in as many steps as it affords."""

    def price(grid: SamplingSpec) -> float:
        return judge.cost(Schedule.full(grid))

    plans: dict[SamplingSpec, Plan] = {}

    def measure(label: str, found: list[SamplingSpec]) -> None:
        new = [grid for grid in dict.fromkeys(found) if grid not in plans]
        plans.update({grid: judge.measure(Schedule.full(grid)) for grid in _counted(label, new, on_stage)})

    def best() -> list[tuple[float, SamplingSpec]]:
        found = [(target, closest([plan for plan in plans.values() if plan.cost <= target])) for target in targets]
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


def _promising(families: list[list[list[Schedule]]], unshared: dict[SamplingSpec, Plan]) -> list[Schedule]:
    """The largest affordable budgets of the grids that should end closest to the reference solution."""
    found: list[tuple[float, list[Schedule]]] = []
    for variants in families:
        best = [variant[-1] for variant in variants if variant]
        if best:
            own = float(np.mean(4 * 10 ** (-unshared[best[0].spec].fidelity / 10)))
            found.append((own + min(schedule.predicted_error or 0.0 for schedule in best) ** 2, best))
    found.sort(key=lambda entry: entry[0])
    return [schedule for _, best in found[:TRIED] for schedule in best]
