"""RAE's DiT-DH laid out for inference; the velocity's sign is turned in the last layer's weights."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import cast

from torch import Tensor, nn
from torch.nn import functional as F

from ddt_accel.networks.config import LatentShape
from ddt_accel.networks.layers import modulate
from ddt_accel.networks.prepared import Affine, Arithmetic, PreparedNetwork
from ddt_accel.networks.prepared_layers import BlockWeights, NormWeights, PreparedBlock, PreparedNorm
from ddt_accel.networks.rae.network import DHBlock, DiTDH, GatedMLP, GeluMLP, Place


class PreparedDiTDH(PreparedNetwork):
    """See `PreparedNetwork`."""

    label_table: Tensor

    def __init__(self, model: DiTDH, latent_shape: LatentShape, arithmetic: Arithmetic) -> None:
        super().__init__(model, latent_shape, arithmetic)
        config = model.config
        self.t_embedder = copy.deepcopy(model.t_embedder).float().requires_grad_(False)
        self.register_buffer("label_table", model.y_embedder.embedding_table.weight.detach().float())
        self.s_embedder, self.x_embedder = (self._place(layer) for layer in (model.s_embedder, model.x_embedder))
        self.register_buffer("positions", model.pos_embed.detach().float() if config.use_pos_embed else None)
        maps = [cast(nn.Linear, block.adaLN_modulation[1]) for block in model.encoder_blocks]
        self.condition_map = Affine.stacked(maps, self.dtype)
        projector = model.s_projector
        self.projector = None if projector is None else Affine(projector.weight, projector.bias, self.dtype)
        self.encoder_blocks, self.decoder_blocks = (
            nn.ModuleList(PreparedBlock(_weights(block), arithmetic) for block in blocks)
            for blocks in (model.encoder_blocks, model.decoder_blocks)
        )
        self.final_norm = PreparedNorm(NormWeights.of(model.final_layer.norm_final))
        self.final = Affine(-model.final_layer.linear.weight, -model.final_layer.linear.bias, self.dtype)
        for part in (0, 1):
            for name in ("cos", "sin"):
                # [L, 1, 1, d / 2]: over queries and keys, and over heads.
                self.register_buffer(f"{name}{part}", model.get_buffer(f"_{name}{part}")[:, None])

    def encode(self, latents: Tensor, times: Tensor, labels: Tensor) -> Tensor:
        tokens = self.s_embedder(_places(latents).to(self.dtype)).float()
        if self.positions is not None:
            tokens = tokens + self.positions
        time = self.t_embedder(1 - times)
        condition = F.silu(F.silu(time + F.embedding(labels, self.label_table))).to(self.dtype)
        per_block = self.condition_map(condition)[:, None].chunk(len(self.encoder_blocks), dim=-1)
        for block, modulation in zip(self.encoder_blocks, per_block, strict=True):
            tokens = block(tokens, modulation, self.get_buffer("cos0"), self.get_buffer("sin0"))
        state = F.silu(time[:, None] + tokens)
        if self.projector is not None:
            state = self.projector(state.to(self.dtype)).float()
        return F.silu(state).to(self.dtype)

    def decode_blocks(self, latents: Tensor, modulations: Sequence[Tensor]) -> Tensor:
        """Under modulations [B, L, 6 D₁] of each decoder block and [B, L, 2 D₁] of the final layer."""
        *per_block, final = modulations
        tokens = self.x_embedder(_places(latents).to(self.dtype)).float()
        for block, modulation in zip(self.decoder_blocks, per_block, strict=True):
            tokens = block(tokens, modulation, self.get_buffer("cos1"), self.get_buffer("sin1"))
        shift, scale = final.float().chunk(2, dim=-1)
        channels: Tensor = self.final(modulate(self.final_norm(tokens), shift, scale).to(self.dtype))
        return channels.transpose(1, 2).reshape(latents.shape).float()

    def _place(self, layer: Place) -> Affine:
        return Affine(layer.proj.weight.flatten(1), layer.proj.bias, self.dtype)


def _places(latents: Tensor) -> Tensor:
    """[B, C, n, n] → [B, n², C]."""
    return latents.flatten(2).transpose(1, 2)


def _weights(block: DHBlock) -> BlockWeights:
    attention, mlp = block.attn, block.mlp
    if isinstance(mlp, GatedMLP):
        (gate_weight, up_weight), (gate_bias, up_bias) = mlp.w12.weight.chunk(2), mlp.w12.bias.chunk(2)
        gate, up, down = (gate_weight, gate_bias), (up_weight, up_bias), mlp.w3
    else:
        assert isinstance(mlp, GeluMLP)
        gate, up, down = None, (mlp.fc1.weight, mlp.fc1.bias), mlp.fc2
    normed = hasattr(attention, "q_norm")
    return BlockWeights(
        heads=attention.heads,
        qkv=attention.qkv,
        qk_norms=(NormWeights.of(attention.q_norm), NormWeights.of(attention.k_norm)) if normed else None,
        proj=attention.proj,
        norms=(NormWeights.of(block.norm1), NormWeights.of(block.norm2)),
        gate=gate,
        up=up,
        down=down,
    )


PREPARED = PreparedDiTDH
