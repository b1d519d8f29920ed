"""What a plan tries: grids that a cost affords, and schedules that share on them; and what a schedule stands beside:
as many steps without sharing as take as long."""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Callable

from ddt_accel.calibration.resample import resample
from ddt_accel.calibration.statistics import Calibration
from ddt_accel.errors import ConfigError
from ddt_accel.evaluation.costs import Costs
from ddt_accel.schedule import Schedule
from ddt_accel.solver.solve import PUBLISHED, Method, Statistics, schedule_with, solve_curve, solve_runs
from ddt_accel.solver.split import ALIKE, split, splits
from ddt_accel.solver.with_widths import solve_with_widths
from ddt_accel.spec import SamplingSpec

INTEGRATORS = ("euler", "heun", "ab2", "ab3")
# Time shifts that are tried, relative to the calibrated one, with the integrator that is best at a cost.
SHIFTS = (0.6, 0.8, 1.25, 1.7, 2.4)
# How closely the share of a total that is left to forecasts is searched for.
UNSPENT = 0.01
STEPS = (4, 5, 6, 8, 10, 12, 14, 16, 20, 24, 30, 36, 42, 50, 60, 80, 100, 125, 160, 200, 250)


def grids(spec: SamplingSpec, solver: str, timeshift: float) -> list[SamplingSpec]:
    """Grids of no more steps than the calibrated one."""
    return [spec.on_grid(steps, timeshift=timeshift, solver=solver) for steps in STEPS if steps <= spec.num_steps]


def finest(
    spec: SamplingSpec, solver: str, timeshift: float, price: Callable[[SamplingSpec], float], target: float
) -> list[SamplingSpec]:
    """The grid of the most steps that costs at most `target` without sharing, if there is one; none where the time
    shift is out of range."""
    counts = range(STEPS[0], spec.num_steps + 1)
    try:
        every = [spec.on_grid(steps, timeshift=timeshift, solver=solver) for steps in counts]
    except ConfigError:
        return []
    return every[: bisect_right(every, target, key=price)][-1:]


def coarsest(
    spec: SamplingSpec, solver: str, timeshift: float, price: Callable[[SamplingSpec], float], target: float
) -> list[SamplingSpec]:
    """The grid of the fewest steps that costs at least `target` without sharing, or that of all calibrated steps; none
    where the time shift is out of range."""
    try:
        every = [spec.on_grid(steps, timeshift=timeshift, solver=solver) for steps in range(1, spec.num_steps + 1)]
    except ConfigError:
        return []
    return every[bisect_left(every[:-1], target, key=price) :][:1]


def closest(
    spec: SamplingSpec,
    price: Callable[[SamplingSpec], float],
    target: float,
    decibels: Callable[[SamplingSpec], float],
) -> SamplingSpec:
    """What to do for a cost of at least `target` without sharing: the integrator, in as many steps, that ends closest
    by `decibels`, at the best of some time shifts."""
    solvers = dict.fromkeys((spec.solver, *INTEGRATORS))
    unshifted = [grid for solver in solvers for grid in coarsest(spec, solver, spec.timeshift, price, target)]
    best = max(unshifted, key=decibels)
    shifted = [grid for shift in SHIFTS for grid in coarsest(spec, best.solver, spec.timeshift * shift, price, target)]
    return max([best, *shifted], key=decibels)


def published(calibration: Calibration) -> list[Schedule]:
    """The published method on the calibrated grid, budget by budget."""
    evaluations = calibration.spec.num_evaluations
    return [schedule for schedule, _ in solve_curve(calibration, evaluations, PUBLISHED)]


def curves(calibration: Calibration, spec: SamplingSpec) -> list[list[Schedule]]:
    """What is best for all numbers of encoder runs that share something, on a grid, with and without centred
    forecasts."""
    statistics, evaluations = resample(calibration, spec), spec.num_evaluations
    every = [solve_runs(statistics, Method(centred=centred)) for centred in (True, False)]
    return [[schedule for schedule in curve if schedule.budget < evaluations] for curve in every]


def variants(calibration: Calibration, schedule: Schedule, *, costs: tuple[float, float] = ALIKE) -> list[Schedule]:
    """A schedule, and where its forecasts are not centred, others of no dearer encoder runs that may end closer.

    `costs` are those of an encoder run in either branch.
    """
    if schedule.centred:
        return [schedule]
    statistics = resample(calibration, schedule.spec)
    methods = [Method(centred=False, sources=sources) for sources in (2, 3, 4)]
    found = [schedule] + [schedule_with(statistics, schedule.refresh_steps, method) for method in methods[1:]]
    if (schedule.spec.guidance_weights != 1.0).any():
        found += [split(statistics, schedule, method, costs=costs) for method in methods[:2]]
    return found


def with_widths(statistics: Statistics, costs: Costs, total: float) -> Schedule | None:
    """The best schedule found that runs narrow networks, too, and costs at most `total`; None for a network at one
    width, and where nothing is as cheap.

    The program counts networks alone. Where its answer leaves enough for its forecasts, it is the best of all.
    """
    if statistics.widths is None:
        return None
    each = [costs.at(width) for width in statistics.widths.widths]
    encoders, decoders = [one.encoder for one in each], [one.decoder for one in each]
    best: Schedule | None = None
    beside = too_little = costs.evaluation * statistics.spec.num_evaluations
    enough = math.inf
    while enough - too_little > UNSPENT * total:
        try:
            schedule, _ = solve_with_widths(statistics, total - beside, encoders, decoders)
        except ConfigError:  # nothing is as cheap, or the statistics have no sensitivities
            if beside == too_little:
                return best
            enough = beside
        else:
            whole, networks = costs.of(schedule), costs.of(schedule, networks_alone=True)
            if whole <= total or whole - networks <= beside:
                best, enough = schedule, beside
            else:
                too_little, beside = beside, whole - networks
        if math.isfinite(enough):
            beside = (too_little + enough) / 2
    return best


def neighbours(calibration: Calibration, schedule: Schedule, *, costs: tuple[float, float] = ALIKE) -> list[Schedule]:
    """Where branches have steps of their own, up to two runs more for one and fewer for the other.

    The split is predicted as if errors of the branches were independent, which they are not.
    """
    if schedule.unconditional_steps is None:
        return []
    sources = max(len(row) for row in schedule.forecasts.values()) if schedule.forecasts else 2
    method = Method(centred=False, sources=max(2, sources))
    found = splits(resample(calibration, schedule.spec), schedule, method, costs=costs)
    return [near for near in found if 1 <= abs(near.budget - schedule.budget) <= 2]
