"""Fewer steps without sharing: what anyone can do, by the named integrators at several time shifts."""

from __future__ import annotations

from functools import partial

from ddt_accel.errors import ConfigError
from ddt_accel.evaluation.candidates import INTEGRATORS, SHIFTS
from ddt_accel.rivals.rival import Variant
from ddt_accel.schedule import Schedule
from ddt_accel.solver.solve import Statistics

SOLVERS = (*INTEGRATORS, "ab4")


def variants(statistics: Statistics) -> list[Variant]:
    """None for a stochastic sampler, which leads elsewhere."""
    if statistics.spec.solver == "sde":
        return []
    return [
        Variant(settings=f"{solver}, shift {shift * statistics.spec.timeshift:.3g}",
                of=partial(_schedule, statistics, solver, shift))
        for shift in (1.0, *SHIFTS)
        for solver in SOLVERS
    ]  # fmt: skip


def _schedule(statistics: Statistics, solver: str, shift: float, runs: int) -> Schedule | None:
    """In as many steps as take so many evaluations."""
    spec = statistics.spec
    steps = (runs + (spec.end is None)) // 2 if solver == "heun" else runs
    try:
        return Schedule.full(spec.on_grid(steps, timeshift=spec.timeshift * shift, solver=solver))
    except ConfigError:  # the shift is out of range, or so few steps make no grid
        return None
