"""The exact program against brute force, the published program's results, and a shortest path in SciPy."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse import coo_array
from scipy.sparse.csgraph import dijkstra

from ddt_accel import SamplingSpec, Schedule, solve_all_budgets, solve_refresh_steps
from ddt_accel.errors import ConfigError, NumericsError
from ddt_accel.solver.refresh import total_cost
from ddt_accel.solver.solve import similarity_cost


def random_cost(n: int, seed: int) -> np.ndarray:
    """Costs without any structure: not monotone, with ties, with zero diagonal."""
    rng = np.random.default_rng(seed)
    cost = np.round(rng.random((n, n)) * 8) / 8 if seed % 2 else rng.random((n, n))
    np.fill_diagonal(cost, 0.0)
    return cost


def brute_force(cost: np.ndarray, budget: int) -> tuple[float, list[tuple[int, ...]]]:
    """The least cost and all refresh steps that reach it."""
    n = len(cost)
    plans = [(0, *rest) for rest in itertools.combinations(range(1, n), budget - 1)]
    costs = []
    for plan in plans:
        costs.append(sum(cost[max(r for r in plan if r <= i), i] for i in range(n)))
    least = min(costs)
    return least, [plan for plan, value in zip(plans, costs, strict=True) if value <= least + 1e-12]


@pytest.mark.parametrize("n", range(1, 10))
@pytest.mark.parametrize("seed", range(4))
def test_every_budget_is_optimal(n: int, seed: int) -> None:
    cost = random_cost(n, seed)
    solutions = solve_all_budgets(cost)
    assert [len(solution.refresh_steps) for solution in solutions] == list(range(1, n + 1))
    for budget, solution in enumerate(solutions, 1):
        least, optima = brute_force(cost, budget)
        assert solution.cost == pytest.approx(least, abs=1e-12)
        assert solution.refresh_steps in optima
        assert solve_refresh_steps(cost, budget) == solution.refresh_steps


def test_published_refresh_steps(reference) -> None:
    """Equal cost at every budget, and the same steps: the published program breaks ties alike."""
    cost = 1.0 - reference.tensors["similarity"].numpy()
    for budget, expected in reference.case["dp_refresh_steps"].items():
        steps = solve_refresh_steps(cost, int(budget))
        assert total_cost(cost, steps) == pytest.approx(total_cost(cost, tuple(expected)), abs=1e-12)
        assert steps == tuple(expected)


@pytest.mark.parametrize("seed", range(6))
def test_shortest_path(seed: int) -> None:
    """A budget is a number of edges: node (k, e) says that k refreshes serve the steps before e."""
    n = 30
    cost = random_cost(n, seed)
    served = np.cumsum(np.triu(cost), axis=1)
    solutions = solve_all_budgets(cost)
    edges = [
        (k * (n + 1) + j, (k + 1) * (n + 1) + e + 1, served[j, e] + 1.0)  # SciPy drops edges of weight 0
        for k in range(n)
        for j in range(n)
        for e in range(j, n)
    ]
    rows, columns, weights = zip(*edges, strict=True)
    size = (n + 1) ** 2
    distance = dijkstra(coo_array((weights, (rows, columns)), shape=(size, size)).tocsr(), indices=0)
    for k in range(1, n + 1):
        assert solutions[k - 1].cost == pytest.approx(distance[k * (n + 1) + n] - k, abs=1e-9)


@given(st.integers(1, 40), st.integers(0, 10_000))
@settings(max_examples=60, deadline=None)
def test_cost_is_that_of_the_steps(n: int, seed: int) -> None:
    cost = random_cost(n, seed)
    for solution in solve_all_budgets(cost):
        assert solution.cost == pytest.approx(total_cost(cost, solution.refresh_steps), abs=1e-9)


@pytest.mark.parametrize("budget", [0, -1, 6, True, 2.0])
def test_impossible_budgets_are_refused(budget: object) -> None:
    with pytest.raises(ConfigError, match="budget"):
        solve_refresh_steps(np.zeros((5, 5)), budget)  # type: ignore[arg-type]


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_costs_that_are_not_finite_are_refused(value: float) -> None:
    cost = np.zeros((5, 5))
    cost[1, 3] = value
    with pytest.raises(ConfigError, match="step 3 from step 1"):
        solve_refresh_steps(cost, 2)


def test_a_nan_similarity_is_refused() -> None:
    similarity = np.eye(4)
    similarity[2, 1] = np.nan
    with pytest.raises(NumericsError, match="2 and 1"):
        similarity_cost(similarity)


@pytest.mark.parametrize(("steps", "budget"), [(50, 10), (10, 3), (7, 7), (5, 1)])
def test_uniform_spreads_evenly(steps: int, budget: int) -> None:
    refreshes = Schedule.uniform(SamplingSpec(num_steps=steps), budget).refresh_steps
    lengths = np.diff([*refreshes, steps])
    assert len(refreshes) == budget
    assert lengths.max() - lengths.min() <= 1
