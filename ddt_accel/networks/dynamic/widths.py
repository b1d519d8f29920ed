"""One network at several widths: each is a prefix of the heads and of the channels of every block.

Which width runs when is not learned, as routers are, but can be chosen afterwards.
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch

from ddt_accel.errors import ConfigError
from ddt_accel.networks.checkpoints import identity
from ddt_accel.networks.config import ConditionConfig, SplitConfig, swiglu_width
from ddt_accel.networks.dynamic.masks import BlockMasks, prefix
from ddt_accel.networks.dynamic.slicing import narrowable, taken
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
        BlockMasks(heads=prefix(config.num_groups, heads), channels=prefix(swiglu_width(config.hidden_size), channels))
        for heads, channels in _counts(config, encoder, decoder)
    ]


def width_costs(config: ConditionConfig, tokens: int, encoder: float, decoder: float) -> float:
    """Multiply-adds of the transformer blocks at these widths, as a part of the complete ones'."""
    heads, channels = zip(*_counts(config, encoder, decoder), strict=True)
    narrow, complete = (
        one.blocks_multiply_adds(tokens, slice(None)) for one in (config.narrowed(heads, channels), config)
    )
    return narrow / complete


def config_at(config: SplitConfig, width: float) -> SplitConfig:
    """The settings of the network that one with nested widths is at one of them, encoder and decoder alike; raises
    ConfigError for blocks that cannot become narrow."""
    heads, channels = zip(*_counts(narrowable(config), width, width), strict=True)
    # A class cannot say that all that are made of it are of a protocol.
    return narrowable(config).narrowed(heads, channels)  # type: ignore[return-value]


def widths_of(model: SplitNetwork) -> tuple[float, ...]:
    """Those that a network can run at, from 1.0 down."""
    source = model.source
    return source.widths if source is not None and source.widths else (1.0,)


def narrow_decoders(model: SplitNetwork) -> tuple[float, ...]:
    """The widths below 1 at which its decoder does less; none where that has no heads and no such MLP."""
    config = model.config
    has_blocks = isinstance(config, ConditionConfig) and config.encoder_blocks < config.transformer_blocks
    return widths_of(model)[1:] if has_blocks else ()


def narrow(model: SplitNetwork, encoder: float, decoder: float | None = None, *, known: bool = True) -> SplitNetwork:
    """The ordinary network that a network trained at nested widths is at one of them, sharing its memory where it can.

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
    chosen = [next((one for one in widths if abs(one - given) < CLOSE), None) for given in (encoder, decoder)]
    if None in chosen:
        wrong = encoder if chosen[0] is None else decoder
        raise ConfigError(
            f"The width is {wrong:g}; the network was trained at {', '.join(f'{one:g}' for one in widths)}."
        )
    heads, channels = zip(*_counts(config, *map(float, chosen)), strict=True)  # type: ignore[arg-type]
    network = taken(model, [torch.arange(one) for one in heads], [torch.arange(one) for one in channels])
    if known and model.source is not None:
        said = f"{chosen[0]:g}" if chosen[0] == chosen[1] else f"{chosen[0]:g} and {chosen[1]:g}"
        network.source = replace(
            model.source, name=f"{model.source.name} at width {said}", sha256=identity(network), widths=()
        )
    return network.eval().requires_grad_(False)


def _counts(config: ConditionConfig, encoder: float, decoder: float) -> list[tuple[int, int]]:
    """Heads and channels of each transformer block at these widths."""
    blocks = config.transformer_blocks
    widths = [encoder if index < config.encoder_blocks else decoder for index in range(blocks)]
    complete = config.num_groups, swiglu_width(config.hidden_size)
    return [(count_at(width, complete[0]), count_at(width, complete[1])) for width in widths]
