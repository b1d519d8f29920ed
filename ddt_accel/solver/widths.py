"""The refresh problem where every refresh has a width, too, solved exactly over pairs within a total of costs.

A refresh is a step b at which the encoder runs at a width u, 0 being complete. Everything is measured against the
complete network's states, so a narrow refresh has an error already at its own step, where the refresh before it may
help. With the Gram matrix of states over (step, width), in deviations from each one's mean trajectory, forecasts are
those of solver/forecast.py, and

    A(a, v; b, u; c) = Σ_{i=b}^{c−1} price[a, v, b, u, i],
    C_q(b, u; c) = min_{a < b, v} C_{q − cost(a, v; b, u; c)}(a, v; b) + A(a, v; b, u; c)^γ

has the least cost of every total q from one pass: O(Q N³ W²) time, O((N W + Q) N² W) memory. What a refresh a takes is
known when the next but one, c, is: from there on nothing reads its state, and the unconditional branch is encoded only
where a guided evaluation does.
"""

from __future__ import annotations

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
MOST_EVALUATIONS = 128  # more take gigabytes
_ROWS = 64  # totals at a time, so that what is compared stays in the cache


@dataclass(frozen=True, kw_only=True)
class WidthSolution:
    """The refreshes of least cost within a total, what they spend of it, and how many sets of refreshes there were, to
    the precision of a float64."""

    refreshes: tuple[Refresh, ...]
    cost: float
    spent: int
    considered: int


@dataclass(frozen=True, kw_only=True, eq=False)
class RefreshCosts:
    """What a refresh takes, in whole units of at least 1: `alone` [W] in the conditional branch, `both` [W] with the
    unconditional one, where an evaluation that reads its state is `guided` [N]."""

    alone: tuple[int, ...]
    both: tuple[int, ...]
    guided: NDArray[np.bool_]

    @classmethod
    def everywhere(cls, costs: Sequence[int], evaluations: int) -> RefreshCosts:
        """The same [W] wherever a refresh stands."""
        return cls(alone=tuple(costs), both=tuple(costs), guided=np.zeros(evaluations, dtype=np.bool_))


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


def solve_widths(prices: Array, costs: RefreshCosts, total: int, *, gamma: float = 2.0) -> list[WidthSolution | None]:
    """The optima within the totals 1 … `total`, from one pass; None where not even one refresh is within it.

    `prices` [N, W, N, W, N] as `width_prices` has them. The first refresh is at step 0. `gamma` is finite. Raises
    ConfigError for shapes or costs that do not fit.
    """
    n, widths = prices.shape[:2]
    if prices.shape != (n, widths, n, widths, n) or n == 0:
        raise ConfigError(f"The prices have the shape {list(prices.shape)}; give [N, W, N, W, N].")
    each = (costs.alone, costs.both)
    if {len(one) for one in each} != {widths} or min(map(min, each)) < 1 or total < 1 or costs.guided.shape != (n,):
        raise ConfigError(
            f"The costs of {widths} widths at {n} evaluations are {list(costs.alone)}, {list(costs.both)} where any of "
            f"{len(costs.guided)} is guided, and their total {total}; give whole numbers from 1."
        )
    if not np.isfinite(prices).all():
        raise ConfigError("A step price is not finite; calibrate anew.")
    powers = _segments(prices) ** gamma
    # least[q, b, u, c]: b the last refresh and c the next, N the end, where those before b spend exactly q.
    least = np.full((total + 1, n, widths, n + 1), np.inf)
    before = np.full(least.shape, -1, dtype=np.int32)
    least[0, 0] = powers[0, range(widths), 0, range(widths)]
    # ways[b][u][c]: how many sets there are of them, [Q + 1].
    ways = [[[np.eye(1, total + 1)[0]] * (n + 1) for _ in range(widths)] for _ in range(n)]
    # Refreshes before b are known for all totals at once.
    for b in range(1, n):
        counts = np.moveaxis(np.array([[ways[a][v][b] for v in range(widths)] for a in range(b)]), -1, 0)
        spending = [_spent(least[:, :b, :, b], one, np.inf) for one in each]
        spending_ways = [_spent(counts, one, 0.0) for one in each]
        for u in range(widths):
            for guides, ends in _alike(costs.guided, b, u):
                sets = np.where(guides[:, None], spending_ways[1], spending_ways[0]).sum(axis=(1, 2))
                for c in ends:
                    ways[b][u][c] = sets
                arrived = np.where(guides[:, None], spending[1], spending[0]).reshape(total + 1, b * widths)
                segments = np.ascontiguousarray(powers[:b, :, b, u, ends].reshape(b * widths, len(ends)).T)
                for first in range(0, total + 1, _ROWS):
                    rows = slice(first, first + _ROWS)
                    joined = arrived[rows, None, :] + segments  # [q, c, refreshes before]
                    best = joined.argmin(axis=-1)
                    least[rows, b, u, ends] = np.take_along_axis(joined, best[..., None], axis=-1)[..., 0]
                    before[rows, b, u, ends] = best
    # The last refresh serves to the end.
    for b in range(n):
        last = costs.both if costs.guided[b:].any() else costs.alone
        least[:, b, :, n] = _spent(least[:, b, :, n], last, np.inf)
        for u, cost in enumerate(last):
            ways[b][u][n] = _spent(ways[b][u][n][:, None], (cost,), 0.0)[:, 0]
    return _within(
        least, before, np.sum([ways[b][u][n] for b in range(n) for u in range(widths)], axis=0), costs, gamma
    )


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


def _spent(values: Array, costs: Sequence[int], fill: float) -> Array:
    """`values` [Q + 1, …, W] by what is spent, after refreshes that take so much more [W]; `fill` where it is less."""
    spent = np.full(values.shape, fill)
    for width, cost in enumerate(costs):
        spent[cost:, ..., width] = values[: max(0, len(values) - cost), ..., width]
    return spent


def _alike(guided: NDArray[np.bool_], b: int, u: int) -> list[tuple[NDArray[np.bool_], list[int]]]:
    """The next refreshes c after b at width u, by which of the refreshes before b guided evaluations read."""
    found: dict[bytes, tuple[NDArray[np.bool_], list[int]]] = {}
    for c in range(b + 1, len(guided) + 1):
        guides = _guides(guided, b, u, c)
        found.setdefault(guides.tobytes(), (guides, []))[1].append(c)
    return list(found.values())


def _guides(guided: NDArray[np.bool_], b: int, u: int, c: int) -> NDArray[np.bool_]:
    """For each step before b, whether a guided evaluation reads its state, where it is a refresh, the next one is b at
    width u, and the one after that c; a complete b reads its own state alone."""
    read = guided[:c].copy()
    read[b] &= u > 0
    some: NDArray[np.bool_] = np.logical_or.accumulate(read[::-1])[::-1][:b]
    return some


def _within(
    least: Array, before: NDArray[np.int32], ways: Array, costs: RefreshCosts, gamma: float
) -> list[WidthSolution | None]:
    """The best of what spends at most 1, 2, …; `least` and `ways` by what is spent in all, where c is the end."""
    n = least.shape[1]
    considered = np.cumsum(ways)
    found: list[WidthSolution | None] = []
    best: tuple[float, int] = (math.inf, 0)
    for q in range(1, len(least)):
        value = float(least[q, :, :, n].min())
        if value < best[0]:
            best = value, q
        if math.isinf(best[0]):
            found.append(None)
            continue
        refreshes = _trace(least[best[1], :, :, n], before, best[1], costs)
        found.append(
            WidthSolution(
                refreshes=refreshes, cost=best[0] ** (1 / gamma), spent=best[1], considered=int(considered[q])
            )
        )
    return found


def _trace(ended: Array, before: NDArray[np.int32], spent: int, costs: RefreshCosts) -> tuple[Refresh, ...]:
    n, widths = ended.shape
    b, u = divmod(int(ended.argmin()), widths)
    c, guides = n, bool(costs.guided[b:].any())
    refreshes = [(b, u)]
    while b > 0:
        spent -= (costs.both if guides else costs.alone)[u]
        a, v = divmod(int(before[spent, b, u, c]), widths)
        guides = bool(_guides(costs.guided, b, u, c)[a])
        b, u, c = a, v, b
        refreshes.append((b, u))
    return tuple(reversed(refreshes))
