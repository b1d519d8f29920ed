"""The refresh problem, solved exactly.

Evaluation `i` served by the state of refresh `j ≤ i` costs `d(j, i)`. For refreshes `0 = r_1 < … < r_K` and
`r_{K+1} = N` the cost is `Σ_k Σ_{i = r_k}^{r_{k+1} − 1} d(r_k, i)`.
With `w(j, e) = Σ_{i = j}^{e − 1} d(j, i)`, the cost of serving j … e − 1 from j,

    C_1(e) = w(0, e),    C_k(e) = min_j C_{k − 1}(j) + w(j, e)

gives the optimum of every budget in one pass, O(K N²) time and O(K N) memory, whatever the costs (only finite).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ddt_accel.errors import ConfigError
from ddt_accel.schedule import check_budget


@dataclass(frozen=True, kw_only=True)
class Solution:
    """The refresh steps of least cost for a budget of `len(refresh_steps)`, and how many sets share that cost."""

    refresh_steps: tuple[int, ...]
    cost: float
    ties: int


def solve_refresh_steps(cost: ArrayLike, budget: int) -> tuple[int, ...]:
    """The `budget` refresh steps of least total cost, the first of them 0.

    `cost` is [N, N] with `cost[j, i] = d(j, i)`; only j ≤ i is read. Among equal optima every refresh, counted from
    the last, is as early as can be. Raises ConfigError for a matrix that is not square or not finite, or for a budget
    outside 1 … N.
    """
    matrix = _checked(cost)
    check_budget(budget, len(matrix))
    return _solve(matrix, budget)[-1].refresh_steps


def solve_all_budgets(cost: ArrayLike) -> list[Solution]:
    """The optima for the budgets 1 … N, from one pass of the same program as `solve_refresh_steps`."""
    matrix = _checked(cost)
    return _solve(matrix, len(matrix))


def total_cost(cost: ArrayLike, refresh_steps: tuple[int, ...]) -> float:
    """What a set of refresh steps costs under `cost` [N, N]."""
    matrix = _checked(cost)
    ends = (*refresh_steps[1:], len(matrix))
    return float(sum(matrix[start, start:end].sum() for start, end in zip(refresh_steps, ends, strict=True)))


def _checked(cost: ArrayLike) -> NDArray[np.float64]:
    matrix = np.asarray(cost, dtype=np.float64)
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1] or matrix.shape[0] == 0:
        raise ConfigError(f"The cost has the shape {list(matrix.shape)}; give a square matrix, cost[j, i] = d(j, i).")
    bad = ~np.isfinite(matrix) & np.triu(np.ones_like(matrix, dtype=bool))
    if bad.any():
        j, i = np.argwhere(bad)[0]
        raise ConfigError(f"The cost of serving step {i} from step {j} is {matrix[j, i]}; calibrate anew.")
    return matrix


def _solve(matrix: NDArray[np.float64], max_budget: int) -> list[Solution]:
    n = len(matrix)
    # served[e, j] = w(j, e + 1), infinite where j > e: row-wise minima over j are then contiguous in memory.
    served = np.full((n, n), np.inf)
    served.T[np.triu_indices(n)] = np.cumsum(np.triu(matrix), axis=1)[np.triu_indices(n)]
    best = served[:, 0].copy()  # best[e] = C_k(e + 1)
    last = np.zeros((max_budget + 1, n), dtype=np.int32)  # the last refresh of that optimum
    count = np.ones(n)  # how many sets of refresh steps reach it
    totals, ties = [best[-1]], [1]
    scratch = np.empty((n, n))
    for k in range(2, max_budget + 1):
        # With k refreshes the last lies at k − 1 or later, and so does the step it serves.
        first = k - 1
        candidates = scratch[: n - first, : n - first]
        np.add(served[first:, first:], best[first - 1 : -1], out=candidates)
        choice = candidates.argmin(axis=1)
        last[k, first:] = choice + first
        least = candidates[np.arange(n - first), choice]
        count = np.concatenate([np.zeros(first), (candidates <= least[:, None] * (1 + 1e-12)) @ count[first - 1 : -1]])
        best = np.concatenate([np.full(first, np.inf), least])
        totals.append(best[-1])
        ties.append(int(count[-1]))
    return [
        Solution(refresh_steps=_trace(last, budget, n), cost=float(total), ties=tied)
        for budget, (total, tied) in enumerate(zip(totals, ties, strict=True), 1)
    ]


def _trace(last: NDArray[np.int32], budget: int, n: int) -> tuple[int, ...]:
    steps, end = [], n - 1
    for k in range(budget, 0, -1):
        step = int(last[k, end])
        steps.append(step)
        end = step - 1
    return tuple(reversed(steps))
