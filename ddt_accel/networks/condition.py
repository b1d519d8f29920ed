"""The condition encoder of DDT (Wang et al., 2025, arXiv 2504.05741), which PixNerd has to the letter."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ddt_accel.networks.layers import Block, Embed, LabelEmbedder, TimestepEmbedder, patchify, rotary_table
from ddt_accel.networks.split import SplitNetwork


class ConditionEncoder(SplitNetwork):
    """A network whose first blocks are DDT's encoder; the state is `SiLU(temb(t) + tokens)`."""

    s_embedder: Embed
    t_embedder: TimestepEmbedder
    y_embedder: LabelEmbedder
    blocks: nn.ModuleList  # the encoder's first, then the decoder's

    def __init__(self, *, patch: int, encoder_blocks: int, head_size: int) -> None:
        super().__init__()
        self.source = None
        self.patch, self._encoder_blocks, self._head_size = patch, encoder_blocks, head_size
        self._rotary: dict[tuple[int, int, str], tuple[Tensor, Tensor]] = {}

    def encode(self, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        """The encoder state [B, L, D]."""
        rotary = self.rotary_for(x)
        tokens = self.s_embedder(patchify(x, self.patch))
        # The timestep embedding may be kept in a higher precision than the rest.
        time = self.t_embedder(t)[:, None].type_as(tokens)
        condition = F.silu(time + self.y_embedder(y)[:, None])
        for block in self.encoder_blocks:
            tokens = block(tokens, block.adaLN_modulation(condition), rotary)
        return F.silu(time + tokens)

    @property
    def encoder_blocks(self) -> list[Block]:
        return cast(list[Block], list(self.blocks[: self._encoder_blocks]))

    def rotary_for(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Cosines and sines [L, 1, d / 2] for latents x: they broadcast over heads."""
        rows, columns = x.shape[-2] // self.patch, x.shape[-1] // self.patch
        key = (rows, columns, str(x.device))
        if key not in self._rotary:
            # Whoever asks first may be in inference mode, whoever asks next may want gradients.
            with torch.inference_mode(False):
                cos, sin = rotary_table(self._head_size, rows, columns)
                self._rotary[key] = (cos[:, None].to(x.device), sin[:, None].to(x.device))
        return self._rotary[key]

    def initialize_encoder(self) -> None:
        """The published initialisation of what lies before the blocks."""
        nn.init.xavier_uniform_(self.s_embedder.proj.weight)
        nn.init.zeros_(self.s_embedder.proj.bias)
        nn.init.normal_(self.y_embedder.embedding_table.weight, std=0.02)
        for parameter in self.t_embedder.mlp.parameters():
            if parameter.ndim == 2:
                nn.init.normal_(parameter, std=0.02)
