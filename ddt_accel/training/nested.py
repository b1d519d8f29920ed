"""Which widths a training step takes beside the complete network."""

from __future__ import annotations

import torch

from ddt_accel.networks.config import ConditionConfig
from ddt_accel.networks.dynamic.masks import BlockMasks
from ddt_accel.networks.dynamic.widths import width_masks


def draw_width(config: ConditionConfig, widths: tuple[float, ...], generator: torch.Generator) -> list[BlockMasks]:
    """Masks of one width in the encoder and one in the decoder, of all pairs but the complete one.

    They are drawn apart, since a schedule may run them apart.
    """
    pairs = [(encoder, decoder) for encoder in widths for decoder in widths][1:]  # the first is (1, 1)
    chosen = int(torch.randint(len(pairs), (), generator=generator))
    return width_masks(config, *pairs[chosen])
