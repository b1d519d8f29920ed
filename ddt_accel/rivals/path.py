"""The program that several rivals solve: a path of so many edges from the first step to an end, at the least cost."""

from __future__ import annotations

import math
from collections.abc import Callable

Path = tuple[int, ...]
# Compared in dictionary order.
Cost = tuple[float, ...]


def added(cost: Cost, price: float) -> Cost:
    """The sum."""
    return (sum(cost) + price,)


def worst_first(cost: Cost, price: float) -> Cost:
    """All prices in decreasing order: the largest is compared first, then the second largest, and so on."""
    return tuple(sorted((*cost, price), reverse=True))


def least_path(
    begin: Path, edges: int, end: int, price: Callable[[Path, int], float], join: Callable[[Cost, float], Cost]
) -> Path | None:
    """The path that goes on from `begin` to `end` by so many edges, each to a later step; None where there is none.

    `price(path, step)` is that of the edge from the end of a path to a step, infinite where there is no such edge. Of
    every step and number of edges one path is kept, the best: exact where a price only depends on the path's end.
    """
    best: dict[int, tuple[Cost, Path]] = {begin[-1]: ((), begin)}
    for _ in range(edges):
        following: dict[int, tuple[Cost, Path]] = {}
        for cost, path in best.values():
            for step in range(path[-1] + 1, end + 1):
                paid = price(path, step)
                if math.isinf(paid):
                    continue
                joined = join(cost, paid)
                if step not in following or joined < following[step][0]:
                    following[step] = joined, (*path, step)
        best = following
    return best[end][1] if end in best else None
