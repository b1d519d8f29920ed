"""The refresh problem where a forecast draws on the last two refreshes, solved exactly over pairs.

`step_price[a, b, i]` is the price of step i served by the refreshes a < b ≤ i (b alone where a = b). The steps from a
refresh to the next make a segment: their errors point the same way, so that a segment's price is their sum, while
segments add up as independent errors do:

    A(a, b, c) = Σ_{i=b}^{c−1} price[a, b, i],        cost = (Σ_segments A^γ)^{1/γ}.

γ = 1 adds everything up, γ = 2 is the root of the sum of squares, and "minimax" (γ → ∞) compares the worst segments,
then the second worst, and so on. For all of them

    C_k(b, c) = min_{a < b} C_{k−1}(a, b) ⊕ A(a, b, c)^γ

is exact: O(K N³) time, O(N³) memory.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from ddt_accel.errors import ConfigError
from ddt_accel.schedule import check_budget
from ddt_accel.solver.refresh import Solution

Array = NDArray[np.float64]

# "minimax" compares this many of the worst segments; leaving out the rest keeps the program exact for what is compared.
WORST = 4


def segment_prices(step_price: Array) -> Array:
    """A [N, N, N + 1] from step prices [N, N, N]; infinite where c ≤ b. A refreshed step costs nothing."""
    n = len(step_price)
    if step_price.shape != (n, n, n) or n == 0:
        raise ConfigError(f"The prices have the shape {list(step_price.shape)}; give [N, N, N].")
    index = np.arange(n)
    # Only steps after the refresh count.
    prices = np.where(index[None, None, :] > index[None, :, None], step_price, 0.0)
    if not np.isfinite(prices).all():
        raise ConfigError("A step price is not finite; calibrate anew.")
    sums = np.concatenate([np.zeros((n, n, 1)), np.cumsum(prices, axis=2)], axis=2)
    return np.where(np.arange(n + 1)[None, None, :] > index[None, :, None], sums, np.inf)


def solve_pairs(step_price: Array, max_budget: int, *, gamma: float = 2.0) -> list[Solution]:
    """The optima for the budgets 1 … max_budget from one pass; `gamma` = inf is "minimax" (whose ties go uncounted)."""
    check_budget(max_budget, len(step_price))
    segments = segment_prices(step_price)
    if math.isinf(gamma):
        return _minimax(segments, max_budget)
    n = len(step_price)
    powers = segments**gamma
    # cost[b, c]: the least cost of the steps before c, where b is the last refresh and c the next; c = N is the end.
    cost, count = np.full((n, n + 1), np.inf), np.zeros((n, n + 1))
    cost[0], count[0, 1:] = powers[0, 0], 1
    choices: list[NDArray[np.int32]] = []
    solutions = [_solution(cost, count, choices, gamma)]
    for _ in range(2, max_budget + 1):
        next_cost, next_count = np.full_like(cost, np.inf), np.zeros_like(count)
        choice = np.zeros((n, n + 1), dtype=np.int32)
        for b in range(1, n):
            candidates = cost[:b, b, None] + powers[:b, b, b + 1 :]
            best = candidates.argmin(axis=0)
            least = candidates[best, np.arange(n - b)]
            next_cost[b, b + 1 :], choice[b, b + 1 :] = least, best
            same = candidates <= least * (1 + 1e-12)
            next_count[b, b + 1 :] = (same * count[:b, b, None]).sum(axis=0)
        cost, count = next_cost, next_count
        choices.append(choice)
        solutions.append(_solution(cost, count, choices, gamma))
    return solutions


def pair_cost(step_price: Array, refresh_steps: tuple[int, ...], *, gamma: float) -> float:
    """What a set of refresh steps costs; for "minimax", its worst segment."""
    before = (refresh_steps[0], *refresh_steps[:-1])
    ends = (*refresh_steps[1:], len(step_price))
    prices = np.array([step_price[a, b, b + 1 : c].sum() for a, b, c in zip(before, refresh_steps, ends, strict=True)])
    return combined(prices, gamma)


def combined(segments: Array, gamma: float) -> float:
    """The cost of segments of these prices."""
    return float(segments.max() if math.isinf(gamma) else (segments**gamma).sum() ** (1 / gamma))


def _solution(cost: Array, count: Array, choices: list[NDArray[np.int32]], gamma: float) -> Solution:
    n = len(cost)
    last = int(cost[:, n].argmin())
    least = cost[last, n]
    # Where nothing costs anything every schedule ties: more than a float counts.
    ties = int(min(count[cost[:, n] <= least * (1 + 1e-12), n].sum(), 1e300))
    return Solution(refresh_steps=_trace(choices, last, n), cost=float(least ** (1 / gamma)), ties=max(1, ties))


def _trace(choices: list[NDArray[np.int32]], last: int, end: int) -> tuple[int, ...]:
    steps = [last]
    for choice in reversed(choices):
        before = int(choice[steps[-1], end])
        end = steps[-1]
        steps.append(before)
    return tuple(reversed(steps))


def _minimax(segments: Array, max_budget: int) -> list[Solution]:
    n = len(segments)
    # worst[b, c]: the worst segments before c, in decreasing order.
    worst = np.full((n, n + 1, WORST), np.inf)
    worst[0] = 0.0
    worst[0, :, 0] = segments[0, 0]
    choices: list[NDArray[np.int32]] = []
    solutions = []
    for k in range(1, max_budget + 1):
        if k > 1:
            following = np.full_like(worst, np.inf)
            choice = np.zeros((n, n + 1), dtype=np.int32)
            for b in range(1, n):
                joined = np.concatenate(
                    [
                        np.broadcast_to(worst[:b, None, b], (b, n - b, WORST)),
                        segments[:b, b, b + 1 :, None],
                    ],
                    axis=2,
                )
                kept = -np.sort(-joined, axis=2)[:, :, :WORST]
                best = _lexicographic_argmin(kept)
                following[b, b + 1 :], choice[b, b + 1 :] = kept[best, np.arange(n - b)], best
            worst = following
            choices.append(choice)
        last = int(_lexicographic_argmin(worst[:, n, None])[0])
        steps = _trace(choices, last, n)
        solutions.append(Solution(refresh_steps=steps, cost=float(worst[last, n, 0]), ties=1))
    return solutions


def _lexicographic_argmin(vectors: Array) -> NDArray[np.intp]:
    """For vectors [A, C, W] the index in A of the first in dictionary order, for every C."""
    alive = np.ones(vectors.shape[:2], dtype=bool)
    for position in range(vectors.shape[2]):
        values = np.where(alive, vectors[:, :, position], np.inf)
        alive &= values <= values.min(axis=0)
    first: NDArray[np.intp] = alive.argmax(axis=0)
    return first
