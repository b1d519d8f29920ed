"""PixNerd (Wang et al., 2025, arXiv 2507.23268): DDT's encoder, and a small network of its own to draw each patch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ddt_accel.networks.condition import ConditionEncoder, config_blocks
from ddt_accel.networks.dynamic.masks import BlockMasks
from ddt_accel.networks.layers import (
    Embed,
    LabelEmbedder,
    RMSNorm,
    TimestepEmbedder,
    patchify,
    unpatchify,
)
from ddt_accel.networks.pixnerd.config import PixNerdConfig

FREQUENCIES = 8  # along each axis
SHORTEST = 1e-12  # a column is divided by no less


class PixNerd(ConditionEncoder):
    """See `SplitNetwork`. A state's modulations are the weights of the networks that draw the patches, one each.

    They are the weights before their columns are normalised: those are affine in the state.
    """

    config: PixNerdConfig

    def __init__(self, config: PixNerdConfig) -> None:
        super().__init__(
            patch=config.patch_size,
            encoder_blocks=config.num_cond_blocks,
            head_size=config.head_size,
        )
        self.config = config
        width, inner = config.hidden_size, config.hidden_size_x
        self.s_embedder = Embed(config.in_channels * config.patch_size**2, width)
        self.x_embedder = PixelEmbedder(config.in_channels, inner)
        self.t_embedder = TimestepEmbedder(width)
        self.y_embedder = LabelEmbedder(config.num_classes, width)
        self.final_layer = PixelLayer(inner, config.in_channels)
        encoder = config_blocks(config)
        decoder = [PatchBlock(width, inner, config.nerf_mlpratio) for _ in range(config.num_decoder_blocks)]
        self.blocks = nn.ModuleList([*encoder, *decoder])
        self.register_buffer("_waves", waves(config.patch_size), persistent=False)
        self._initialize()

    @property
    def modulation_maps(self) -> list[nn.Linear]:
        return [cast(nn.Linear, block.param_generator1[0]) for block in self.decoder_blocks]

    def decode_modulated(self, x: Tensor, modulations: Tensor) -> Tensor:
        """Velocity [B, C, H, W] of x [B, C, H, W] under modulations [B, L, decoder blocks · 2 r h²]."""
        patches = patchify(x, self.patch).unflatten(-1, (self.config.in_channels, self.patch**2))
        pixels = self.x_embedder(patches.transpose(-1, -2), self.get_buffer("_waves"))  # [B, L, p², h]
        for block, weights in zip(
            self.decoder_blocks, modulations.split(self.config.modulation_widths, dim=-1), strict=True
        ):
            pixels = block(pixels, weights)
        drawn = self.final_layer(pixels).transpose(-1, -2).flatten(-2)
        return unpatchify(drawn, self.patch, x.shape[-2], x.shape[-1])

    def masked(self, x: Tensor, t: Tensor, y: Tensor, masks: Sequence[BlockMasks]) -> Tensor:
        return self.decode(x, self.encode(x, t, y, masks))

    @property
    def decoder_blocks(self) -> list[PatchBlock]:
        return cast(list[PatchBlock], list(self.blocks)[self.config.num_cond_blocks :])

    def _initialize(self) -> None:
        """The published initialisation; a fresh network predicts exactly 0."""
        self.initialize_encoder()
        nn.init.zeros_(self.final_layer.linear.weight)
        nn.init.zeros_(self.final_layer.linear.bias)


def waves(patch: int) -> Tensor:
    """What a pixel is told of its place in the patch, [p², 64] in float32, pixels row by row.

    `cos(π x φ_a) cos(π y φ_b) / (1 + φ_a φ_b)`, a outermost, with x and y over `linspace(0, 1, p)` and frequencies
    over `linspace(0, 8, 8)`.
    """
    places, frequencies = torch.linspace(0, 1, patch), torch.linspace(0, FREQUENCIES, FREQUENCIES)
    along = torch.cos(math.pi * places[:, None] * frequencies)  # [p, 8]
    damped = 1 / (1 + frequencies[:, None] * frequencies)
    return (along[None, :, :, None] * along[:, None, None, :] * damped).reshape(patch**2, FREQUENCIES**2)


class PixelEmbedder(nn.Module):
    """One linear map of a pixel's colours and its place."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.embedder = nn.Sequential(nn.Linear(channels + FREQUENCIES**2, width))

    def forward(self, pixels: Tensor, places: Tensor) -> Tensor:
        """[B, L, p², C] and [p², 64] → [B, L, p², h]."""
        affine = cast(nn.Linear, self.embedder[0])
        colours, place = affine.weight.split([pixels.shape[-1], places.shape[-1]], dim=1)
        return F.linear(pixels, colours) + F.linear(places.to(place.dtype), place, affine.bias)


class PatchBlock(nn.Module):
    """`y + SiLU(RMSNorm(y) A) B` on the pixels of a patch, A and B of its own, their columns of length 1."""

    def __init__(self, state_size: int, width: int, ratio: int) -> None:
        super().__init__()
        self.param_generator1 = nn.Sequential(nn.Linear(state_size, 2 * ratio * width**2))
        self.norm = RMSNorm(width)

    def forward(self, pixels: Tensor, weights: Tensor) -> Tensor:
        """pixels [B, L, p², h]; weights [B, L, 2 r h²]: A [h, r h], then B [r h, h]."""
        width = pixels.shape[-1]
        first, second = weights.chunk(2, dim=-1)
        hidden = by_unit_columns(self.norm(pixels), first.unflatten(-1, (width, -1)))
        drawn = by_unit_columns(F.silu(hidden).type_as(weights), second.unflatten(-1, (-1, width)))
        return pixels + drawn.type_as(pixels)


def by_unit_columns(x: Tensor, weights: Tensor) -> Tensor:
    """x [B, L, p², a] times weights [B, L, a, b] whose columns are brought to length 1, in float32.

    The product is divided by the lengths, so that weights are read as they lie in the cache, and none are written.
    """
    squares = weights.float().square().sum(-2, keepdim=True)
    return (x @ weights).float() / squares.clamp_min(SHORTEST**2).sqrt()  # in this order: its gradient is finite


class PixelLayer(nn.Module):
    """Norm and projection of pixels to colours."""

    def __init__(self, width: int, channels: int) -> None:
        super().__init__()
        self.norm = RMSNorm(width)
        self.linear = nn.Linear(width, channels)

    def forward(self, pixels: Tensor) -> Tensor:
        drawn: Tensor = self.linear(self.norm(pixels))
        return drawn


NETWORK = PixNerd
