"""The refresh problem where every refresh has a width, too, solved exactly over pairs within a total of costs.

A refresh is a step b at which the encoder runs at a width u, 0 being complete. Everything is measured against the
complete network's states, so a narrow refresh has an error already at its own step, where the refresh before it may
help. With the Gram matrix of states over (step, width), in deviations from each one's mean trajectory, forecasts are
those of solver/forecast.py, and

    A(a, v; b, u; c) = Σ_{i=b}^{c−1} price[a, v, b, u, i],
    C_q(b, u; c) = min_{a < b, v} C_{q − cost(u)}(a, v; b) + A(a, v; b, u; c)^γ

has the least cost of every total q from one pass: O(Q N³ W²) time, O((N W + Q) N² W) memory.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ddt_accel.errors import ConfigError
from ddt_accel.solver.forecast import checked_gram, pair_errors
from ddt_accel.solver.pairs import combined

Array = NDArray[np.float64]
Refresh = tuple[int, int]  # step and width
_ROWS = 64  # totals at a time, so that what is compared stays in the cache


@dataclass(frozen=True, kw_only=True)
class WidthSolution:
    """The refreshes of least cost within a total, what they spend of it, and how many sets of refreshes there were."""

    refreshes: tuple[Refresh, ...]
    cost: float
    spent: int
    considered: int


def width_prices(gram: Array, sensitivity: Array) -> Array:
    """The step prices [N, W, N, W, N] of the best forecasts from refreshes (a, v) before (b, u), b alone where a = b.

    `gram` [N, W, N, W] are expected inner products of the states' deviations from their means; `sensitivity` [N] prices
    an error at a step. Raises NumericsError where there are no such inner products.
    """
    n, widths = gram.shape[:2]
    size = n * widths
    inner = checked_gram(gram.reshape(size, size).astype(np.float64))
    complete = np.arange(n) * widths
    # The pairs of sources, flattened; only the complete states are foretold.
    errors = pair_errors("calibrated", inner, np.repeat(np.arange(n, dtype=np.float64), widths), targets=complete)
    prices: Array = (errors * sensitivity).reshape(n, widths, n, widths, n)
    for step in range(n):
        prices[:, :, step, 0, step] = 0.0  # the state itself, but for the forecast's ridge
    return prices


def solve_widths(prices: Array, costs: Sequence[int], total: int, *, gamma: float = 2.0) -> list[WidthSolution | None]:
    """The optima within the totals 1 … `total`, from one pass; None where not even one refresh is within it.

    `prices` [N, W, N, W, N] as `width_prices` has them; `costs` [W] are whole numbers of one unit, at least 1. The
    first refresh is at step 0. `gamma` is finite. Raises ConfigError for shapes or costs that do not fit.
    """
    n, widths = prices.shape[:2]
    if prices.shape != (n, widths, n, widths, n) or n == 0:
        raise ConfigError(f"The prices have the shape {list(prices.shape)}; give [N, W, N, W, N].")
    if len(costs) != widths or min(costs) < 1 or total < 1:
        raise ConfigError(
            f"The costs of {widths} widths are {list(costs)} and their total {total}; give whole numbers from 1."
        )
    if not np.isfinite(prices).all():
        raise ConfigError("A step price is not finite; calibrate anew.")
    powers = _segments(prices) ** gamma
    # least[q, b, u, c]: of what spends exactly q, b the last refresh and c the next; N is the end.
    least = np.full((total + 1, n, widths, n + 1), np.inf)
    before = np.full(least.shape, -1, dtype=np.int32)
    for u, cost in enumerate(costs):
        if cost <= total:
            least[cost, 0, u] = powers[0, u, 0, u]
    # Refreshes before b are known for all totals at once.
    for b in range(1, n):
        arrived = least[:, :b, :, b].reshape(total + 1, b * widths)
        for u, cost in enumerate(costs):
            segments = np.ascontiguousarray(powers[:b, :, b, u, b + 1 :].reshape(b * widths, n - b).T)
            for first in range(0, total + 1 - cost, _ROWS):
                part = arrived[first : min(first + _ROWS, total + 1 - cost)]
                joined = part[:, None, :] + segments  # [q, c, refreshes before]
                best = joined.argmin(axis=-1)
                spent = slice(first + cost, first + cost + len(part))
                least[spent, b, u, b + 1 :] = np.take_along_axis(joined, best[..., None], axis=-1)[..., 0]
                before[spent, b, u, b + 1 :] = best
    return _within(least, before, costs, gamma)


def refreshes_cost(prices: Array, refreshes: Sequence[Refresh], *, gamma: float = 2.0) -> float:
    """What a set of refreshes costs, in increasing order of steps, the first at step 0."""
    n = len(prices)
    earlier = (refreshes[0], *refreshes[:-1])
    ends = (*(step for step, _ in refreshes[1:]), n)
    segments = [prices[a, v, b, u, b:c].sum() for (a, v), (b, u), c in zip(earlier, refreshes, ends, strict=True)]
    return combined(np.array(segments), gamma)


def _segments(prices: Array) -> Array:
    """A [N, W, N, W, N + 1], infinite where c ≤ b."""
    n = len(prices)
    step = np.arange(n)
    served = step[None, :] >= step[:, None]  # [b, i]
    counted = np.where(served[None, None, :, None, :], prices, 0.0)
    sums = np.concatenate([np.zeros((*prices.shape[:4], 1)), np.cumsum(counted, axis=-1)], axis=-1)
    after = np.arange(n + 1)[None, :] > step[:, None]  # [b, c]
    segments: Array = np.where(after[None, None, :, None, :], sums, np.inf)
    return segments


def _within(least: Array, before: NDArray[np.int32], costs: Sequence[int], gamma: float) -> list[WidthSolution | None]:
    """The best of what spends at most 1, 2, … ."""
    n, widths = least.shape[1:3]
    considered = list(itertools.accumulate(_sets(n, costs, len(least) - 1)))
    found: list[WidthSolution | None] = []
    best: tuple[float, int] = (math.inf, 0)
    for q in range(1, len(least)):
        value = float(least[q, :, :, n].min())
        if value < best[0]:
            best = value, q
        if math.isinf(best[0]):
            found.append(None)
            continue
        last = int(least[best[1], :, :, n].argmin())
        refreshes = _trace(before, last, best[1], costs, n, widths)
        found.append(
            WidthSolution(refreshes=refreshes, cost=best[0] ** (1 / gamma), spent=best[1], considered=considered[q])
        )
    return found


def _trace(
    before: NDArray[np.int32], last: int, q: int, costs: Sequence[int], n: int, widths: int
) -> tuple[Refresh, ...]:
    end, place, refreshes = n, last, []
    while place >= 0:
        step, width = divmod(place, widths)
        refreshes.append((step, width))
        place, end, q = int(before[q, step, width, end]), step, q - costs[width]
    return tuple(reversed(refreshes))


def _sets(n: int, costs: Sequence[int], total: int) -> list[int]:
    """How many sets of refreshes, the first at step 0, spend exactly 0, 1, … total."""
    of_one = [list(costs).count(q) for q in range(total + 1)]
    ways, sets = of_one, [0] * (total + 1)
    for runs in range(1, n + 1):
        places = math.comb(n - 1, runs - 1)
        sets = [found + places * way for found, way in zip(sets, ways, strict=True)]
        ways = [sum(ways[q - cost] for cost in costs if cost <= q) for q in range(total + 1)]
    return sets
