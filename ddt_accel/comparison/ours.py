"""What we enter with: solved schedules, with narrow networks where there are some; these aligned with the unshared
trajectory; what fits in closed form find, to what all come close to; and what gradients fitted."""

from __future__ import annotations

from functools import cache, partial

from ddt_accel.rivals.rival import Rival, Variant
from ddt_accel.schedule import Schedule
from ddt_accel.solver.solve import Method, Statistics, solve_curve

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
    """The schedules of a method by their encoder runs, solved for where the first of them is asked for."""

    def __init__(self, statistics: Statistics, method: Method) -> None:
        self._curve = cache(partial(solve_curve, statistics, statistics.spec.num_evaluations, method))

    def __call__(self, runs: int) -> Schedule:
        return self._curve()[runs - 1][0]


SOLVING = Rival(name=SOLVED, source="docs/concepts/method.md", variants=variants)
