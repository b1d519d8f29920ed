"""The programs that several rivals solve: a path of so many edges from one step to another, at the least cost.

One sweep finds the best paths of every number of edges to every step: a table of them is a list over edges m = 1, 2, …
whose array says of each step which one comes before it on the best path of m edges that ends there.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Before = list[NDArray[np.intp]]


def traced(before: Before, end: int) -> tuple[int, ...]:
    """The path of as many edges as the table has, to a step that as many lead to."""
    steps = [end]
    for choice in reversed(before):
        steps.append(int(choice[steps[-1]]))
    return tuple(reversed(steps))


def least_sum(prices: Array, allowed: NDArray[np.bool_], begin: tuple[int, int], edges: int) -> Before:
    """The paths of least sum that go on from step `begin[1]`, reached from `begin[0]`, by up to so many edges.

    `prices` [S, S, T] are, for paths through i and then j, those of the edge from j to k, which `allowed` [S, T] has to
    allow. Of every step and number of edges one path is kept, the best: exact where a price does not depend on i.
    """
    count, width = allowed.shape
    least = np.full(width, np.inf)
    least[begin[1]] = 0.0
    previous = np.full(width, begin[0])
    before: Before = []
    for _ in range(edges):
        paid = np.where(allowed, prices[previous[:count], np.arange(count)], np.inf)
        candidates = least[:count, None] + paid
        previous = candidates.argmin(axis=0)
        least = candidates[previous, np.arange(width)]
        before.append(previous)
    return before


def least_worst(prices: Array) -> Before:
    """The paths from step 0 whose prices in decreasing order come first in the dictionary, by up to S edges.

    `prices` [S, T] are those of the edges, infinite where there is none. Exact: all prices are compared, not the
    largest alone. A price p joins others, sorted x_1 ≥ x_2 ≥ …, as x'_q = max(x_q, min(x_{q−1}, p)).
    """
    count, width = prices.shape
    # By steps, between x_0 = ∞ and x_{m+1} = −∞; nothing but ∞ where no path leads.
    worst = np.full((width, 2), np.inf)
    worst[0, 1] = -np.inf
    before: Before = []
    for _ in range(count):
        alive, tied = np.ones(prices.shape, dtype=bool), np.arange(width)
        for higher, lower in pairwise(worst[:count].T):
            joined = np.maximum(lower[:, None], np.minimum(higher[:, None], prices[:, tied]))
            joined = np.where(alive[:, tied], joined, np.inf)
            still = (joined <= joined.min(axis=0)) & (joined < np.inf)
            alive[:, tied] = still
            tied = tied[np.count_nonzero(still, axis=0) > 1]
            if len(tied) == 0:
                break
        choice, reached = alive.argmax(axis=0), alive.any(axis=0)
        own, price = worst[choice], prices[choice, np.arange(width), None]
        worst = np.pad(np.maximum(own[:, 1:], np.minimum(own[:, :-1], price)), ((0, 0), (1, 1)), constant_values=np.inf)
        worst[reached, -1] = -np.inf
        worst[~reached] = np.inf
        before.append(choice)
    return before
