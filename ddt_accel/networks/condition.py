"""The condition encoder of DDT (Wang et al., 2025, arXiv 2504.05741), which PixNerd has to the letter."""

from __future__ import annotations

import copy
from abc import abstractmethod
from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ddt_accel.networks.config import ConditionConfig, LatentShape
from ddt_accel.networks.dynamic.masks import BlockMasks
from ddt_accel.networks.layers import Block, Embed, LabelEmbedder, TimestepEmbedder, patchify, rotary_table
from ddt_accel.networks.prepared import Affine, Arithmetic, PreparedNetwork
from ddt_accel.networks.prepared_layers import BlockWeights, NormWeights, PreparedBlock
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
        self.patch, self._encoder_blocks, self.head_size = patch, encoder_blocks, head_size
        self._rotary: dict[tuple[int, int, str], tuple[Tensor, Tensor]] = {}

    def encode(self, x: Tensor, t: Tensor, y: Tensor, masks: Sequence[BlockMasks | None] | None = None) -> Tensor:
        """The encoder state [B, L, D]; `masks` leave parts of its blocks out."""
        rotary = self.rotary_for(x)
        tokens = self.s_embedder(patchify(x, self.patch))
        # The timestep embedding may be kept in a higher precision than the rest.
        time = self.t_embedder(t)[:, None].type_as(tokens)
        condition = F.silu(time + self.y_embedder(y)[:, None])
        for block, mask in zip(self.encoder_blocks, masks or [None] * self._encoder_blocks, strict=True):
            tokens = block(tokens, block.adaLN_modulation(condition), rotary, mask)
        return F.silu(time + tokens)

    @abstractmethod
    def masked(self, x: Tensor, t: Tensor, y: Tensor, masks: Sequence[BlockMasks]) -> Tensor:
        """Velocity [B, C, H, W] with parts of the transformer blocks left out, of each what its masks say."""

    @property
    def encoder_blocks(self) -> list[Block]:
        return cast(list[Block], list(self.blocks)[: self._encoder_blocks])

    def rotary_for(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Cosines and sines [L, 1, d / 2] for latents x: they broadcast over heads."""
        rows, columns = x.shape[-2] // self.patch, x.shape[-1] // self.patch
        key = (rows, columns, str(x.device))
        if key not in self._rotary:
            # Whoever asks first may be in inference mode, whoever asks next may want gradients.
            with torch.inference_mode(False):
                cos, sin = rotary_table(self.head_size, rows, columns)
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


def config_blocks(config: ConditionConfig) -> list[Block]:
    """The transformer blocks of such a network, fresh."""
    return [
        Block(config.hidden_size, heads, config.head_size, channels)
        for heads, channels in zip(config.heads, config.channels, strict=True)
    ]


class PreparedCondition(PreparedNetwork):
    """The encoder laid out for inference: the modulations of all its blocks are one product of the condition."""

    label_table: Tensor
    cos: Tensor
    sin: Tensor

    def __init__(self, model: ConditionEncoder, latent_shape: LatentShape, arithmetic: Arithmetic) -> None:
        super().__init__(model, latent_shape, arithmetic)
        self.patch = model.patch
        self.t_embedder = copy.deepcopy(model.t_embedder).float().requires_grad_(False)
        self.register_buffer("label_table", model.y_embedder.embedding_table.weight.detach().float())
        self.s_embedder = Affine(model.s_embedder.proj.weight, model.s_embedder.proj.bias, self.dtype)
        maps = [cast(nn.Linear, block.adaLN_modulation[0]) for block in model.encoder_blocks]
        self.condition_map = Affine.stacked(maps, self.dtype)
        self.encoder_blocks = nn.ModuleList(prepared_block(block, arithmetic) for block in model.encoder_blocks)
        rows, columns = (size // model.patch for size in latent_shape[1:])
        for name, table in zip(("cos", "sin"), rotary_table(model.head_size, rows, columns), strict=True):
            # [L, 1, 1, d / 2]: over queries and keys, and over heads.
            self.register_buffer(name, table[:, None, None].to(self.label_table.device))

    def encode(self, latents: Tensor, times: Tensor, labels: Tensor) -> Tensor:
        tokens = self.s_embedder(patchify(latents, self.patch).to(self.dtype)).float()
        time = self.t_embedder(times)
        condition = F.silu(time + F.embedding(labels, self.label_table)).to(self.dtype)
        per_block = self.condition_map(condition)[:, None].chunk(len(self.encoder_blocks), dim=-1)
        for block, modulation in zip(self.encoder_blocks, per_block, strict=True):
            tokens = block(tokens, modulation, self.cos, self.sin)
        return F.silu(time[:, None] + tokens).to(self.dtype)


def prepared_block(block: Block, arithmetic: Arithmetic) -> PreparedBlock:
    """A block of DDT laid out for inference."""
    attention, mlp = block.attn, block.mlp
    weights = BlockWeights(
        heads=attention.heads,
        qkv=attention.qkv,
        qk_norms=(NormWeights.of(attention.q_norm), NormWeights.of(attention.k_norm)),
        proj=attention.proj,
        norms=(NormWeights.of(block.norm1), NormWeights.of(block.norm2)),
        gate=(mlp.w1.weight, None),
        up=(mlp.w3.weight, None),
        down=mlp.w2,
    )
    return PreparedBlock(weights, arithmetic)
