"""The decoupled diffusion transformer (Wang et al., 2025, arXiv 2504.05741), split where ddt-accel cuts it.

`velocity(x, t, y) = decode(x, encode(x, t, y))`. The decoder sees its condition only through affine maps of the encoder
state, its *modulations* `m = W s + b`; they are constant between refreshes, so they are a value of their own here:
`decode(x, s) = decode_modulated(x, modulations(s))`.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ddt_accel.errors import ConfigError
from ddt_accel.networks.config import DDTConfig, Source
from ddt_accel.networks.layers import (
    Block,
    Embed,
    FinalLayer,
    LabelEmbedder,
    TimestepEmbedder,
    patchify,
    rotary_table,
    unpatchify,
)


class DDT(nn.Module):
    """Parameter names and numbers are those of the published checkpoints (`load_state_dict(strict=True)`).

    Time runs from noise (t = 0) to data (t = 1); the network predicts `v = x_1 − ε`.
    """

    def __init__(self, config: DDTConfig) -> None:
        super().__init__()
        self.config = config
        self.source: Source | None = None  # set by load_model
        width, patch_features = config.hidden_size, config.in_channels * config.patch_size**2
        self.x_embedder = Embed(patch_features, width)
        self.s_embedder = Embed(patch_features, width)
        self.t_embedder = TimestepEmbedder(width)
        self.y_embedder = LabelEmbedder(config.num_classes, width)
        self.final_layer = FinalLayer(width, patch_features)
        self.blocks = nn.ModuleList(Block(width, config.num_groups) for _ in range(config.num_blocks))
        self._rotary: dict[tuple[int, int, str], tuple[Tensor, Tensor]] = {}
        self._initialize()

    def forward(self, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        """Velocity [B, C, H, W] of the latents x [B, C, H, W] at times t [B] for labels y [B]."""
        return self.decode(x, self.encode(x, t, y))

    def encode(self, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        """The encoder state [B, L, D]."""
        rotary = self._rotary_for(x)
        tokens = self.s_embedder(patchify(x, self.config.patch_size))
        # The timestep embedding may be kept in a higher precision than the rest.
        time = self.t_embedder(t)[:, None].type_as(tokens)
        condition = F.silu(time + self.y_embedder(y)[:, None])
        for block in self.encoder_blocks:
            tokens = block(tokens, block.adaLN_modulation(condition), rotary)
        return F.silu(time + tokens)

    def modulations(self, state: Tensor) -> Tensor:
        """All of the decoder's modulations [B, L, (6 · decoder blocks + 2) · D] of a state [B, L, D]."""
        parts = [block.adaLN_modulation(state) for block in self.decoder_blocks]
        return torch.cat([*parts, self.final_layer.adaLN_modulation(state)], dim=-1)

    def decode_modulated(self, x: Tensor, modulations: Tensor) -> Tensor:
        """Velocity [B, C, H, W] of x [B, C, H, W] under cached modulations."""
        rotary = self._rotary_for(x)
        width = self.config.hidden_size
        *per_block, final = modulations.split(
            [Block.MODULATIONS * width] * len(self.decoder_blocks) + [FinalLayer.MODULATIONS * width], dim=-1
        )
        tokens = self.x_embedder(patchify(x, self.config.patch_size))
        for block, modulation in zip(self.decoder_blocks, per_block, strict=True):
            tokens = block(tokens, modulation, rotary)
        return unpatchify(self.final_layer(tokens, final), self.config.patch_size, x.shape[-2], x.shape[-1])

    def decode(self, x: Tensor, state: Tensor) -> Tensor:
        """Velocity [B, C, H, W] of x [B, C, H, W] under an encoder state [B, L, D]."""
        return self.decode_modulated(x, self.modulations(state))

    @property
    def encoder_blocks(self) -> list[Block]:
        return cast(list[Block], list(self.blocks[: self.config.num_encoder_blocks]))

    @property
    def decoder_blocks(self) -> list[Block]:
        return cast(list[Block], list(self.blocks[self.config.num_encoder_blocks :]))

    def _rotary_for(self, x: Tensor) -> tuple[Tensor, Tensor]:
        rows, columns = x.shape[-2] // self.config.patch_size, x.shape[-1] // self.config.patch_size
        key = (rows, columns, str(x.device))
        if key not in self._rotary:
            # Whoever asks first may be in inference mode, whoever asks next may want gradients.
            with torch.inference_mode(False):
                cos, sin = rotary_table(self.config.hidden_size // self.config.num_groups, rows, columns)
                # [L, 1, d / 2]: broadcasts over heads.
                self._rotary[key] = (cos[:, None].to(x.device), sin[:, None].to(x.device))
        return self._rotary[key]

    def _initialize(self) -> None:
        """The published initialisation; a fresh network predicts exactly 0."""
        for embedder in (self.x_embedder, self.s_embedder):
            nn.init.xavier_uniform_(embedder.proj.weight)
            nn.init.zeros_(embedder.proj.bias)
        nn.init.normal_(self.y_embedder.embedding_table.weight, std=0.02)
        for parameter in self.t_embedder.mlp.parameters():
            if parameter.ndim == 2:
                nn.init.normal_(parameter, std=0.02)
        for parameter in (*self.final_layer.adaLN_modulation.parameters(), *self.final_layer.linear.parameters()):
            nn.init.zeros_(parameter)


def latent_shape_of(model: DDT, given: tuple[int, int, int] | None = None) -> tuple[int, int, int]:
    """[C, H, W] as `given`, else as the model's source has them; raises ConfigError where neither says."""
    known = given or (model.source.latent_shape if model.source else None)
    if known is None:
        raise ConfigError(
            "The model does not say which latents it is for; give --latent-shape C,H,W (in Python latent_shape=)."
        )
    return known
