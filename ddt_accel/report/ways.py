"""The ways of being faster that a report draws as curves, from few encoder runs or steps to many."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from ddt_accel.report.table import steps_name
from ddt_accel.schedule import Schedule
from ddt_accel.solver.solve import OBJECTIVES, Method, Statistics, solve_curve
from ddt_accel.solver.solve import PUBLISHED as PUBLISHED_METHOD
from ddt_accel.spec import SamplingSpec

UNIFORM, PUBLISHED, SOLVED = "uniform", "published", "solved"
FEWER, BEST_FEWER, OTHERS = "fewer steps", "fewer steps, best integrator", "others"
# How many evaluations fewer steps have, in terms of the unshared sampler's.
SHARES = (0.1, 0.16, 0.24, 0.36, 0.5, 0.7)


def curve_budgets(num_evaluations: int) -> list[int]:
    """Up to half of the evaluations, dense where a run more matters, and always both ends."""
    dense = [1, 2, 4, 6, 10, 16, 25, 40, 64, 100]
    return [budget for budget in dense if budget <= num_evaluations / 2] + [num_evaluations]


def curves(
    statistics: Statistics, schedule: Schedule, grids: Sequence[SamplingSpec], measured: Mapping[str, Schedule]
) -> dict[str, dict[str, Schedule]]:
    """Schedules of many budgets, solved as `schedule` was, and of some as published and evenly spread; fewer steps of
    the calibrated sampler, and of the `grids` that were found to be best.

    What has been `measured` comes again under its own name, and what of it is on no curve as `OTHERS`.
    """
    spec = statistics.spec
    *budgets, _ = curve_budgets(spec.num_evaluations)
    sparse = budgets[1::2] or budgets
    found = {UNIFORM: {f"{UNIFORM}, {k}": Schedule.uniform(spec, k) for k in sparse}}
    for way, method, runs in ((PUBLISHED, PUBLISHED_METHOD, sparse), (SOLVED, method_of(schedule), budgets)):
        solved = solve_curve(statistics, runs[-1], method) if runs else []
        found[way] = {f"{way}, {k}": solved[k - 1][0] for k in runs}
    for way in (UNIFORM, PUBLISHED, SOLVED):
        if way in measured and measured[way].spec == spec:
            found[way].pop(f"{way}, {measured[way].budget}", None)
            found[way][way] = measured[way]
    found |= {FEWER: {}, BEST_FEWER: {}}
    wanted = [share * spec.num_evaluations for share in SHARES]
    for kinds in ([spec], grids):
        steps = [_in_evaluations(_nearest(kinds, count), count) for count in wanted if kinds]
        for grid in (*steps, *grids):
            way = FEWER if (grid.solver, grid.timeshift) == (spec.solver, spec.timeshift) else BEST_FEWER
            if grid.num_evaluations < spec.num_evaluations:
                found[way][steps_name(grid)] = Schedule.full(grid)
    _, *rows = measured
    found[OTHERS] = {name: measured[name] for name in rows if not any(name in way for way in found.values())}
    return found


def method_of(schedule: Schedule) -> Method:
    """What a schedule was solved with; the default where it was not solved."""
    if schedule.objective not in OBJECTIVES:
        return Method()
    return Method(
        forecast=schedule.forecast,
        objective=schedule.objective,
        sources=max((len(row) for row in schedule.forecasts.values()), default=2),
        centred=schedule.centred,
    )


def _nearest(grids: Sequence[SamplingSpec], evaluations: float) -> SamplingSpec:
    """That of the most similar number of evaluations: what is best for few steps need not be for many."""
    return min(grids, key=lambda grid: abs(math.log(grid.num_evaluations / evaluations)))


def _in_evaluations(grid: SamplingSpec, count: float) -> SamplingSpec:
    """The same integrator and time shift in about so many evaluations."""
    steps = max(1, round((count + (grid.end is None)) / 2 if grid.solver == "heun" else count))
    return grid.on_grid(steps, timeshift=grid.timeshift, solver=grid.solver)
