"""From the routers of a checkpoint to the widths that its network can run at."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import cast

import torch
from torch import Tensor

from ddt_accel.errors import CheckpointError
from ddt_accel.networks.condition import ConditionEncoder
from ddt_accel.networks.config import ConditionConfig, SplitConfig
from ddt_accel.networks.dynamic.routers import Routers
from ddt_accel.networks.dynamic.slicing import narrowable
from ddt_accel.networks.routes import QUARTERS, Kept, Route
from ddt_accel.networks.split import SplitNetwork

TIMES = 1000  # at which routers are asked, evenly spread over t
DIGITS = 4  # of a width as it is written
_BY_TIME, _BY_TOKEN = ("attn_rate", "mlp_rate"), "token_selection"


def of_routers(names: Iterable[str]) -> set[str]:
    """The names of tensors that decide on heads and channels."""
    return {name for name in names if _part(name) in _BY_TIME}


def is_of_a_router(name: str) -> bool:
    """Whether a tensor's name is that of any router."""
    return _part(name) in (*_BY_TIME, _BY_TOKEN)


def _part(name: str) -> str:
    """Of a block, which part of it a tensor belongs to."""
    first, *rest = name.split(".")
    return rest[1] if first == "blocks" and len(rest) > 1 else ""


def route(model: SplitNetwork, tensors: Mapping[str, Tensor]) -> set[str]:
    """Gives a complete network the routes that its routers come to, and returns the names that were read.

    `tensors` are theirs by DyDiT's names, of either layout. Raises CheckpointError where some are missing or unusable,
    and for a network of which parts were left out already; ConfigError for one with other blocks.
    """
    config = narrowable(model.config)
    if not config.complete:
        raise CheckpointError("The checkpoint has routers, and its network is narrow already; give the complete one.")
    routers = Routers.of(tensors, config.num_groups, config.transformer_blocks, config.hidden_size)
    heads, groups = masks_over_time(model, routers)
    routes = _routes(config, *(one.unflatten(0, (QUARTERS, -1)).mean(1) for one in (heads, groups)))
    model.config = cast(SplitConfig, replace(config, block_routes=routes))  # type: ignore[type-var]
    return set(routers.state_dict())


def routed_widths(config: SplitConfig) -> tuple[float, ...] | None:
    """Those of the routes of a network, from 1 down; None where it has no routers."""
    if not isinstance(config, ConditionConfig) or config.block_routes is None:
        return None
    return (1.0, *sorted((one.width for one in config.block_routes), reverse=True))


@torch.no_grad()
def masks_over_time(model: SplitNetwork, routers: Routers) -> tuple[Tensor, Tensor]:
    """Masks of heads and of groups of channels [TIMES, blocks, G] at times evenly spread over t."""
    times = (torch.arange(TIMES) + 0.5) / TIMES
    embedded: Tensor = cast(ConditionEncoder, model).t_embedder(times.to(model.device))
    return routers.to(model.device).table(embedded.float())


def _routes(config: ConditionConfig, heads: Tensor, groups: Tensor) -> tuple[Route, ...]:
    """From how much of each quarter they run, [QUARTERS, blocks, G] both; complete quarters have none."""
    quarters: dict[tuple[Kept, Kept], list[int]] = {}
    for quarter, kinds in enumerate(zip(heads, groups, strict=True)):
        of_heads, of_groups = (tuple(_most(one) for one in kind) for kind in kinds)
        quarters.setdefault((of_heads, of_groups), []).append(quarter)
    routes: list[Route] = []
    for (of_heads, of_groups), within in quarters.items():
        if all(len(one) == config.num_groups for one in of_heads + of_groups):
            continue
        width = round(_share(config, of_heads, of_groups), DIGITS)
        while width in (1.0, *(one.width for one in routes)):  # others of the same share, told apart by the last digit
            width = round(width - 10**-DIGITS, DIGITS)
        routes.append(Route(width=width, quarters=tuple(within), heads=of_heads, groups=of_groups))
    return tuple(routes)


def _most(rates: Tensor) -> tuple[int, ...]:
    """What runs most of the time; where nothing does, what runs longest."""
    kept = rates > 0.5
    kept[rates.argmax()] = True
    return tuple(kept.nonzero().flatten().tolist())


def _share(config: ConditionConfig, heads: Kept, groups: Kept) -> float:
    """Of the weights of complete heads and MLPs: maps of a head are 4 D d, a group's share of SwiGLU 3 D F / G."""
    attention = 4 * config.head_size
    mlp = 3 * config.channels[0] / config.num_groups
    left = sum(attention * len(one) for one in heads) + sum(mlp * len(one) for one in groups)
    return left / (config.transformer_blocks * config.num_groups * (attention + mlp))
