"""Refreshes with widths: prices against least squares on the states, and the exact program against brute force."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from ddt_accel.errors import ConfigError, NumericsError
from ddt_accel.solver.pairs import solve_pairs
from ddt_accel.solver.widths import Refresh, RefreshCosts, refreshes_cost, solve_widths, width_prices

N, WIDTHS = 5, 3


def states(seed: int) -> np.ndarray:
    """[N, W, samples]: what narrow widths see is the complete state, less of it and noisier."""
    rng = np.random.default_rng(seed)
    times = np.linspace(0, 1, N)
    complete = np.stack([np.cos(2 * k * times) for k in range(3)], axis=1) @ rng.normal(size=(3, 3000))
    noisy = [(1 - 0.1 * width) * complete + 0.2 * width * rng.normal(size=complete.shape) for width in range(WIDTHS)]
    return np.stack(noisy, axis=1) + 0.02 * rng.normal(size=(N, WIDTHS, 3000))


def test_prices_are_those_of_least_squares() -> None:
    data, sensitivity = states(0), np.array([1.0, 2.0, 0.5, 1.0, 3.0])
    gram = np.einsum("nws,mvs->nwmv", data, data) / data.shape[-1]
    prices = width_prices(gram, sensitivity)
    assert prices.shape == (N, WIDTHS, N, WIDTHS, N)
    for (a, v), (b, u) in itertools.product(itertools.product(range(N), range(WIDTHS)), repeat=2):
        for i in range(b, N):
            if a < b or (a, v) == (b, u):
                sources = np.stack([data[b, u]] if a == b else [data[a, v], data[b, u]])
                weights, *_ = np.linalg.lstsq(sources.T, data[i, 0], rcond=None)
                error = np.sqrt(np.mean((weights @ sources - data[i, 0]) ** 2))
                assert prices[a, v, b, u, i] == pytest.approx(sensitivity[i] * error, rel=1e-3, abs=1e-4)
    assert (prices[:, :, range(N), 0, range(N)] == 0).all()
    assert (prices[0, 0, 1, 1:, 1] > 0).all()  # a narrow refresh has an error at once


EVERY = [
    tuple(zip((0, *steps), widths, strict=True))
    for runs in range(1, N + 1)
    for steps in itertools.combinations(range(1, N), runs - 1)
    for widths in itertools.product(range(WIDTHS), repeat=runs)
]


def spent_on(refreshes: tuple[Refresh, ...], costs: RefreshCosts) -> int:
    """Evaluation by evaluation: which states are read, and where anything guided reads one."""
    read = set()
    for i in np.flatnonzero(costs.guided):
        drawn = [refresh for refresh in refreshes if refresh[0] <= i][-2:]
        read |= {drawn[-1]} if drawn[-1] == (i, 0) else set(drawn)
    return sum((costs.both if one in read else costs.alone)[one[1]] for one in refreshes)


@pytest.mark.parametrize("guided", [(), (2, 3, 4), (1, 2), (1, 3), (4,), range(N)], ids=str)
@pytest.mark.parametrize("costs", [((4, 3, 2), (8, 5, 4)), ((5, 2, 1), (5, 4, 2))], ids=str)
@pytest.mark.parametrize("gamma", [1.0, 2.0])
def test_every_total_is_optimal(guided, costs: tuple[tuple[int, ...], tuple[int, ...]], gamma: float) -> None:
    prices = np.random.default_rng(len(guided)).random((N, WIDTHS, N, WIDTHS, N))
    (alone, both), total = costs, 17
    taken = RefreshCosts(alone=alone, both=both, guided=np.isin(range(N), guided))
    of_all = [(spent_on(one, taken), refreshes_cost(prices, one, gamma=gamma)) for one in EVERY]
    solutions = solve_widths(prices, taken, total, gamma=gamma)
    assert len(solutions) == total
    for within, solution in enumerate(solutions, 1):
        reached = [cost for spent, cost in of_all if spent <= within]
        if not reached:
            assert solution is None
            continue
        assert solution is not None
        assert solution.cost == pytest.approx(min(reached), rel=1e-12)
        assert refreshes_cost(prices, solution.refreshes, gamma=gamma) == pytest.approx(min(reached), rel=1e-12)
        assert solution.considered == len(reached)
        assert solution.spent == spent_on(solution.refreshes, taken) <= within


def test_one_width_is_the_program_over_pairs() -> None:
    price = np.random.default_rng(0).random((8, 8, 8))
    prices = price[:, None, :, None, :] * (np.arange(8) != np.arange(8)[:, None])[:, None]
    solutions = solve_widths(prices, RefreshCosts.everywhere([1], 8), 8)
    for pairs, ours in zip(solve_pairs(price, 8), solutions, strict=True):
        assert ours is not None
        assert tuple(step for step, _ in ours.refreshes) == pairs.refresh_steps
        assert ours.cost == pytest.approx(pairs.cost, rel=1e-12)


def test_narrow_refreshes_are_taken_where_more_of_them_pay() -> None:
    """A width that is all but complete at half the cost runs everywhere; one that says nothing, nowhere."""
    data = states(1)
    data[:, 1] = data[:, 0] + 1e-3 * np.random.default_rng(2).normal(size=data[:, 0].shape)
    data[:, 2] = np.random.default_rng(3).normal(size=data[:, 0].shape)
    gram = np.einsum("nws,mvs->nwmv", data, data) / data.shape[-1]
    *_, last = solve_widths(width_prices(gram, np.ones(N)), RefreshCosts.everywhere([2, 1, 1], N), 4)
    assert last is not None
    assert len(last.refreshes) > 2
    assert all(width != 2 for _, width in last.refreshes)


def test_what_does_not_fit_is_refused() -> None:
    prices = np.zeros((3, 2, 3, 2, 3))
    for costs, total in (([1], 3), ([1, 0], 3), ([1, 1], 0)):
        with pytest.raises(ConfigError, match="give whole numbers from 1"):
            solve_widths(prices, RefreshCosts.everywhere(costs, 3), total)
    with pytest.raises(ConfigError, match="where any of 4 is guided"):
        solve_widths(prices, RefreshCosts.everywhere([1, 1], 4), 3)
    with pytest.raises(ConfigError, match=r"shape \[3, 2, 3, 2, 4\]; give \[N, W, N, W, N\]"):
        solve_widths(np.zeros((3, 2, 3, 2, 4)), RefreshCosts.everywhere([1, 1], 3), 3)
    with pytest.raises(ConfigError, match="not finite"):
        solve_widths(prices + np.nan, RefreshCosts.everywhere([1, 1], 3), 3)
    with pytest.raises(NumericsError, match="not positive semidefinite"):
        width_prices(-np.eye(4).reshape(2, 2, 2, 2), np.ones(2))
