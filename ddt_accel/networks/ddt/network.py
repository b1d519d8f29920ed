"""The decoupled diffusion transformer (Wang et al., 2025, arXiv 2504.05741)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

from torch import Tensor, nn

from ddt_accel.networks.condition import ConditionEncoder, config_blocks
from ddt_accel.networks.ddt.config import DDTConfig
from ddt_accel.networks.dynamic.masks import BlockMasks
from ddt_accel.networks.layers import (
    Block,
    Embed,
    FinalLayer,
    LabelEmbedder,
    TimestepEmbedder,
    patchify,
    unpatchify,
)


class DDT(ConditionEncoder):
    """See `SplitNetwork`. The decoder is more blocks, whose tokens have a condition each, the state."""

    config: DDTConfig

    def __init__(self, config: DDTConfig) -> None:
        super().__init__(
            patch=config.patch_size,
            encoder_blocks=config.num_encoder_blocks,
            head_size=config.head_size,
        )
        self.config = config
        width, patch_features = config.hidden_size, config.in_channels * config.patch_size**2
        self.x_embedder = Embed(patch_features, width)
        self.s_embedder = Embed(patch_features, width)
        self.t_embedder = TimestepEmbedder(width)
        self.y_embedder = LabelEmbedder(config.num_classes, width)
        self.final_layer = FinalLayer(width, patch_features)
        self.blocks = nn.ModuleList(config_blocks(config))
        self._initialize()

    @property
    def modulation_maps(self) -> list[nn.Linear]:
        layers: list[Block | FinalLayer] = [*self.decoder_blocks, self.final_layer]
        return [cast(nn.Linear, layer.adaLN_modulation[0]) for layer in layers]

    def decode_modulated(
        self, x: Tensor, modulations: Tensor, masks: Sequence[BlockMasks | None] | None = None
    ) -> Tensor:
        """Velocity [B, C, H, W] of x [B, C, H, W] under modulations [B, L, (6 · decoder blocks + 2) · D]; `masks` leave
        parts of its blocks out."""
        rotary = self.rotary_for(x)
        *per_block, final = modulations.split(self.config.modulation_widths, dim=-1)
        tokens = self.x_embedder(patchify(x, self.patch))
        masks = masks or [None] * len(per_block)
        for block, modulation, mask in zip(self.decoder_blocks, per_block, masks, strict=True):
            tokens = block(tokens, modulation, rotary, mask)
        return unpatchify(self.final_layer(tokens, final), self.patch, x.shape[-2], x.shape[-1])

    def masked(self, x: Tensor, t: Tensor, y: Tensor, masks: Sequence[BlockMasks]) -> Tensor:
        encoder = self.config.num_encoder_blocks
        state = self.encode(x, t, y, masks[:encoder])
        return self.decode_modulated(x, self.modulations(state), masks[encoder:])

    @property
    def decoder_blocks(self) -> list[Block]:
        return cast(list[Block], list(self.blocks)[self.config.num_encoder_blocks :])

    def _initialize(self) -> None:
        """The published initialisation; a fresh network predicts exactly 0."""
        nn.init.xavier_uniform_(self.x_embedder.proj.weight)
        nn.init.zeros_(self.x_embedder.proj.bias)
        self.initialize_encoder()
        for parameter in (*self.final_layer.adaLN_modulation.parameters(), *self.final_layer.linear.parameters()):
            nn.init.zeros_(parameter)


NETWORK = DDT
