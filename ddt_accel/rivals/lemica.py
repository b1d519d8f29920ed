"""LeMiCa: the path of least error at the end, the worst segment first (arXiv 2511.00090).

Steps are nodes. The edge from refresh i to refresh j, with the state of i held in between, weighs what that segment
alone does to the end of an otherwise unshared trajectory. Of the paths of so many edges that one is chosen whose
weights in decreasing order come first in the dictionary.

The authors replay every segment and take the mean absolute error of the end; here it is foretold by measured
sensitivities, Σ_{i < k < j} g_k ‖s_k − s_i‖, without which there is no such schedule. Theirs may not be longer than a
limit, these may. Their last step refreshes, too; that is one of two settings.
"""

from __future__ import annotations

from functools import partial

import numpy as np
from numpy.typing import NDArray

from ddt_accel.rivals.path import least_path, worst_first
from ddt_accel.rivals.rival import Variant, held
from ddt_accel.schedule import Schedule
from ddt_accel.solver.forecast import checked_gram, pair_errors
from ddt_accel.solver.pairs import segment_prices
from ddt_accel.solver.solve import Statistics


def variants(statistics: Statistics) -> list[Variant]:
    if statistics.sensitivity is None:
        return []
    errors = pair_errors("hold", checked_gram(statistics.gram), statistics.spec.times)
    weights = segment_prices(statistics.sensitivity * errors)[0]
    return [
        Variant(settings="last step refreshed", of=partial(_schedule, statistics, weights, True)),
        Variant(settings="last step free", of=partial(_schedule, statistics, weights, False)),
    ]


def _schedule(statistics: Statistics, weights: NDArray[np.float64], last: bool, runs: int) -> Schedule | None:
    path = minimax_path(weights, runs, last=last)
    return None if path is None else held(statistics, path)


def minimax_path(weights: NDArray[np.float64], runs: int, *, last: bool) -> tuple[int, ...] | None:
    """The refresh steps for weights [E, E + 1], with the `last` step among them or without asking for it."""
    evaluations = len(weights)

    def price(path: tuple[int, ...], step: int) -> float:
        return float(weights[path[-1], step])

    if last:
        return least_path((0,), runs - 1, evaluations - 1, price, worst_first)
    path = least_path((0,), runs, evaluations, price, worst_first)
    return None if path is None else path[:-1]
