"""LeMiCa: the path of least error at the end, the worst segment first (arXiv 2511.00090).

Steps are nodes. The edge from refresh i to refresh j, with the state of i held in between, weighs what that segment
alone does to the end of an otherwise unshared trajectory. Of the paths of so many edges that one is chosen whose
weights in decreasing order come first in the dictionary.

The authors replay every segment and take the mean absolute error of the end; here it is foretold by measured
sensitivities, Σ_{i < k < j} g_k ‖s_k − s_i‖, without which there is no such schedule. Theirs may not be longer than a
limit, these may. Their last step refreshes, too; that is one of two settings.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial

from ddt_accel.rivals.path import Before, least_worst, traced
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
    table = cache(partial(least_worst, weights))
    return [
        Variant(settings="last step refreshed", of=partial(_schedule, statistics, table, True)),
        Variant(settings="last step free", of=partial(_schedule, statistics, table, False)),
    ]


def _schedule(statistics: Statistics, table: Callable[[], Before], last: bool, runs: int) -> Schedule | None:
    path = minimax_path(table(), runs, last=last)
    return None if path is None else held(statistics, path)


def minimax_path(table: Before, runs: int, *, last: bool) -> tuple[int, ...] | None:
    """The refresh steps by the table for weights [E, E + 1], with the `last` step among them or free."""
    end = len(table) - last
    if runs - last == 0 < end:
        return None
    path = traced(table[: runs - last], end)
    return path if last else path[:-1]
