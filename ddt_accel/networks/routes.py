"""What routers came to: which heads and groups of channels of every block run in a part of the time.

Routers (`networks/dynamic/routers.py`) decide by the time alone, so time is divided into quarters, and what most of a
quarter's times leave on runs in all of it: four networks at most, beside the complete one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ddt_accel.errors import ConfigError
from ddt_accel.spec import is_whole

QUARTERS = 4  # of t, from noise (0) to data (1)

Kept = tuple[tuple[int, ...], ...]


@dataclass(frozen=True, kw_only=True)
class Route:
    """Indices of the `heads` and of the `groups` of channels that run in each transformer block, in `quarters` of t.

    `width` is its name: the share of the weights of heads and MLPs that is left, below 1. A block's channels are as
    many groups as it has heads when complete, one after the other.
    """

    width: float
    quarters: tuple[int, ...]
    heads: Kept
    groups: Kept

    @classmethod
    def of(cls, given: Route | Mapping[str, Any], blocks: int, most: int) -> Route:
        """From what a file says of a network of so many blocks with at `most` so many heads; raises ConfigError."""
        if isinstance(given, Route):
            return given
        try:
            width, quarters = float(given["width"]), tuple(given["quarters"])
            heads, groups = (tuple(tuple(one) for one in given[kind]) for kind in ("heads", "groups"))
        except (KeyError, TypeError, ValueError):
            raise ConfigError("A route of the configuration lacks its width, quarters, heads or groups.") from None
        fits = all(len(one) == blocks and all(_indices(kept, most) for kept in one) for one in (heads, groups))
        if not (0 < width < 1 and _indices(quarters, QUARTERS) and fits):
            raise ConfigError(
                f"A route of the configuration has width {width:g}, quarters {list(quarters)} and indices for "
                f"{len(heads)} and {len(groups)} blocks; expected a width below 1, quarters from 0 to {QUARTERS - 1}, "
                f"and for each of {blocks} blocks some of 0 to {most - 1}, in order."
            )
        return cls(width=width, quarters=quarters, heads=heads, groups=groups)


def checked_routes(given: Any, blocks: int, most: int) -> tuple[Route, ...]:
    """From what a file says; raises ConfigError for what does not fit."""
    if not isinstance(given, list | tuple):
        raise ConfigError(f"block_routes is {given!r}; give a list of routes, or leave it out.")
    routes = tuple(Route.of(one, blocks, most) for one in given)
    quarters = [quarter for one in routes for quarter in one.quarters]
    if len({one.width for one in routes}) < len(routes) or len({*quarters}) < len(quarters):
        raise ConfigError("Routes of the configuration share a width or a quarter; each has its own.")
    return routes


def _indices(given: Sequence[Any], below: int) -> bool:
    """Whether these are indices in order, at least one."""
    return (
        len(given) > 0
        and all(is_whole(one) and 0 <= one < below for one in given)
        and list(given) == sorted(set(given))
    )
