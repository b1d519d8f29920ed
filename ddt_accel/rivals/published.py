"""DDT as its authors share it: the state held, at even intervals or by their program (arXiv 2504.05741, section 4).

The program adds up 1 − cosine of every step's state with the one that serves it; see `solver/refresh.py`.
"""

from __future__ import annotations

from ddt_accel.rivals.rival import Variant, evenly, held
from ddt_accel.schedule import Schedule
from ddt_accel.solver.solve import PUBLISHED, Statistics, solve_curve


def variants(statistics: Statistics) -> list[Variant]:
    def uniform(runs: int) -> Schedule:
        return held(statistics, evenly(statistics.spec.num_evaluations, runs))

    def program(runs: int) -> Schedule:
        return solve_curve(statistics, runs, PUBLISHED)[-1][0]

    return [Variant(settings="uniform", of=uniform), Variant(settings="program", of=program)]
