"""One network at several widths.

Nested ones are each a prefix of the heads and of the channels of every block; which of them runs when is not learned,
but can be chosen afterwards. Where routers learned it, a width is what they came to in a part of the time.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from ddt_accel.errors import ConfigError
from ddt_accel.networks.checkpoints import identity
from ddt_accel.networks.config import ConditionConfig, SplitConfig, swiglu_width
from ddt_accel.networks.dynamic.masks import BlockMasks, group_of_each
from ddt_accel.networks.dynamic.slicing import narrowable, taken
from ddt_accel.networks.routes import QUARTERS
from ddt_accel.networks.split import SplitNetwork

CLOSE = 0.01  # a width as people write it


def widths_to(config: ConditionConfig, narrowest: float) -> tuple[float, ...]:
    """Up to three widths from 1 down to `narrowest`, each a share of the heads; equal ones count once.

    Raises ConfigError where there are too few heads for a second one.
    """
    heads = {count_at(1 - (1 - narrowest) * part, config.num_groups) for part in (0.0, 0.5, 1.0)}
    if len(heads) < 2:
        raise ConfigError(
            f"The network has {config.num_groups} heads, and at --target {narrowest:g} as many are left; give a lower "
            "--target, or a network with more heads."
        )
    # As they are said everywhere, so that who repeats one names the same.
    return tuple(round(count / config.num_groups, 4) for count in sorted(heads, reverse=True))


def count_at(width: float, complete: int) -> int:
    """How many of `complete` heads or channels a width has, at least one."""
    return max(1, math.floor(width * complete + 0.5))


def width_masks(config: ConditionConfig, encoder: float, decoder: float) -> list[BlockMasks]:
    """The masks [1, H] and [1, F] of each transformer block of a complete network at these widths."""
    return [
        BlockMasks(heads=_mask(config.num_groups, heads), channels=_mask(swiglu_width(config.hidden_size), channels))
        for heads, channels in _kept(config, encoder, decoder)
    ]


def _mask(count: int, kept: Sequence[int]) -> Tensor:
    """[1, count]: one at the indices kept."""
    return torch.zeros(1, count).index_fill_(1, torch.tensor(kept), 1.0)


def width_costs(config: ConditionConfig, tokens: int, encoder: float, decoder: float) -> float:
    """Multiply-adds of the transformer blocks at these widths, as a part of the complete ones'."""
    heads, channels = _counts(config, encoder, decoder)
    narrow, complete = (
        one.blocks_multiply_adds(tokens, slice(None)) for one in (config.narrowed(heads, channels), config)
    )
    return narrow / complete


def config_at(config: SplitConfig, width: float) -> SplitConfig:
    """The settings of the network that one with several widths is at one of them, encoder and decoder alike; raises
    ConfigError for blocks that cannot become narrow."""
    heads, channels = _counts(narrowable(config), width, width)
    # A class cannot say that all that are made of it are of a protocol.
    return narrowable(config).narrowed(heads, channels)  # type: ignore[return-value]


def widths_of(model: SplitNetwork) -> tuple[float, ...]:
    """Those that a network can run at, from 1.0 down."""
    source = model.source
    return source.widths if source is not None and source.widths else (1.0,)


def widths_by_quarter(config: ConditionConfig) -> list[float]:
    """Which width the routers of a network choose in each quarter of t; 1 throughout where it has none."""
    chosen = {quarter: route.width for route in config.block_routes or () for quarter in route.quarters}
    return [chosen.get(quarter, 1.0) for quarter in range(QUARTERS)]


def narrow_decoders(model: SplitNetwork) -> tuple[float, ...]:
    """The widths below 1 at which its decoder does less; none where that has no heads and no such MLP."""
    config = model.config
    has_blocks = isinstance(config, ConditionConfig) and config.encoder_blocks < config.transformer_blocks
    return widths_of(model)[1:] if has_blocks else ()


def narrow(model: SplitNetwork, encoder: float, decoder: float | None = None, *, known: bool = True) -> SplitNetwork:
    """The ordinary network that a network trained at several widths is at one of them, sharing its memory where it can.

    `decoder` is `encoder` where nothing is said. Unless it is to be `known` by a checksum of its own, for which all
    weights are read, it has no source. Raises ConfigError for widths that it was not trained at.
    """
    decoder = encoder if decoder is None else decoder
    config = narrowable(model.config)
    widths = model.source.widths if model.source and config.complete else ()
    if not widths:
        name = model.source.name if model.source else "The network"
        raise ConfigError(
            f"{name} was trained at one width; `ddt-accel train --from CHECKPOINT --dynamic nested` makes one that has "
            "several."
        )
    chosen = [_meant(widths, given) for given in (encoder, decoder)]
    heads, channels = zip(*_kept(config, *chosen), strict=True)
    network = taken(model, list(map(torch.tensor, heads)), list(map(torch.tensor, channels)))
    if known and model.source is not None:
        said = f"{chosen[0]:g}" if chosen[0] == chosen[1] else f"{chosen[0]:g} and {chosen[1]:g}"
        network.source = replace(
            model.source, name=f"{model.source.name} at width {said}", sha256=identity(network), widths=()
        )
    return network.eval().requires_grad_(False)


def _meant(widths: Sequence[float], given: float) -> float:
    """The width that somebody means; raises ConfigError where none is close."""
    nearest = min(widths, key=lambda one: abs(one - given))
    if abs(nearest - given) > CLOSE:
        raise ConfigError(
            f"The width is {given:g}; the network was trained at {', '.join(f'{one:g}' for one in widths)}."
        )
    return nearest


def _counts(config: ConditionConfig, encoder: float, decoder: float) -> tuple[list[int], list[int]]:
    """How many heads, and how many channels, each transformer block has at these widths."""
    kept = _kept(config, encoder, decoder)
    return [len(heads) for heads, _ in kept], [len(channels) for _, channels in kept]


def _kept(config: ConditionConfig, encoder: float, decoder: float) -> list[tuple[Sequence[int], Sequence[int]]]:
    """Which heads and which channels of each transformer block run at these widths."""
    routes = {route.width: route for route in config.block_routes or ()}
    heads, channels = config.num_groups, swiglu_width(config.hidden_size)
    kept: list[tuple[Sequence[int], Sequence[int]]] = []
    for index in range(config.transformer_blocks):
        width = encoder if index < config.encoder_blocks else decoder
        if (route := routes.get(width)) is None:
            if routes and width < 1:
                raise ConfigError(f"The width is {width:g}; routers choose {', '.join(f'{one:g}' for one in routes)}.")
            kept.append((range(count_at(width, heads)), range(count_at(width, channels))))
        else:
            in_groups = torch.isin(group_of_each(channels, heads), torch.tensor(route.groups[index]))
            kept.append((route.heads[index], in_groups.nonzero().flatten().tolist()))
    return kept
