"""What we enter with: solved schedules, with narrow networks where there are some; these aligned with the unshared
trajectory; what fits in closed form find, to what all come close to; and what gradients fitted."""

from __future__ import annotations

from functools import cache, cached_property, partial

from ddt_accel.rivals.rival import Rival, Variant
from ddt_accel.sampling.program import compile_program, network_rows
from ddt_accel.schedule import Schedule
from ddt_accel.solver.solve import Method, Statistics, solve_runs

SOLVED, ALIGNED, CLOSED, FITTED = "ours, solved", "ours, aligned", "ours, in closed form", "ours, fitted"
WIDTHS = "ours, with widths"
OURS = (SOLVED, WIDTHS, ALIGNED, CLOSED, FITTED)
SOURCES = (2, 3, 4)


def variants(statistics: Statistics) -> list[Variant]:
    """Forecasts from some of the last states, of deviations from the mean trajectory or of the states themselves."""
    if statistics.sensitivity is None:
        return []
    return [
        Variant(settings=f"from {sources} states{', centred' if centred else ''}", of=Solved(statistics, method))
        for sources in SOURCES
        for centred in (True, False)
        for method in [Method(sources=sources, centred=centred)]
    ]


class Solved:
    """The schedules of a method within what so many refreshes in all guidance branches take, solved for where the first
    of them is asked for."""

    def __init__(self, statistics: Statistics, method: Method) -> None:
        self._curve = cache(partial(solve_runs, statistics, method))
        self._branches = 2 if (statistics.spec.guidance_weights != 1.0).any() else 1

    def __call__(self, runs: int) -> Schedule:
        within = [one for one, made in zip(self._curve(), self._runs, strict=True) if made <= self._branches * runs]
        return min(within, key=lambda schedule: schedule.predicted_cost or 0.0)

    @cached_property
    def _runs(self) -> list[int]:
        return [network_rows(compile_program(schedule))[0] for schedule in self._curve()]


SOLVING = Rival(name=SOLVED, source="docs/concepts/method.md", variants=variants)
