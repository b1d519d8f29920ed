"""The same network laid out for inference: its weights prepared once, in the precision that they are multiplied in.

Four rearrangements, none of which changes a number but for rounding: the products of SwiGLU's two halves are one, its
hidden features filled up with zeros to whole vectors; the rotated pairs (2m, 2m + 1) of queries and keys lie apart, as
(m, m + d / 2), since the order of a dot product's terms is free; the modulations of all encoder blocks are one product
of the condition, and those of the decoder one product of the state.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ddt_accel.errors import ConfigError
from ddt_accel.networks.ddt import DDT
from ddt_accel.networks.layers import (
    Block,
    FinalLayer,
    attend,
    modulate,
    patchify,
    rotary_table,
    unpatchify,
)

PRECISIONS = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
VECTOR = 32  # features, 64 bytes of 16-bit numbers
SHORT = 128  # tokens
MAX_SCORE = 24.0  # beyond which bfloat16 scores, rounded to 2⁻⁹ of themselves, would spoil their exponentials


class Affine(nn.Module):
    """`x Wᵀ + b` of weights that are not trained."""

    weight: Tensor
    bias: Tensor | None

    def __init__(self, weight: Tensor, bias: Tensor | None, dtype: torch.dtype) -> None:
        super().__init__()
        self.register_buffer("weight", weight.detach().to(dtype).contiguous())
        self.register_buffer("bias", None if bias is None else bias.detach().to(dtype))

    @classmethod
    def stacked(cls, maps: list[nn.Sequential], dtype: torch.dtype) -> Affine:
        """The modulations of several layers as one product."""
        weights, biases = (
            torch.cat([affine.get_parameter(name) for affine in maps]) for name in ("0.weight", "0.bias")
        )
        return cls(weights, biases, dtype)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight, self.bias)


class InferenceBlock(nn.Module):
    """See `layers.Block`; modulations come from outside, as there."""

    norm1: Tensor
    norm2: Tensor
    norm_qk: Tensor

    def __init__(self, block: Block, dtype: torch.dtype, *, written_out: bool, wide_softmax: bool) -> None:
        super().__init__()
        attention, mlp, self.written_out = block.attn, block.mlp, written_out
        self.wide_softmax = wide_softmax
        width, self.heads, self.dtype = attention.proj.in_features, attention.heads, dtype
        depth = width // self.heads
        halves = torch.cat([torch.arange(0, depth, 2), torch.arange(1, depth, 2)])
        query, key, value = attention.qkv.weight.detach().unflatten(0, (3, self.heads, depth))
        self.qkv = Affine(torch.cat([query[:, halves], key[:, halves], value]).flatten(0, 1), None, dtype)
        self.proj = Affine(attention.proj.weight, attention.proj.bias, dtype)
        filling = -mlp.w1.out_features % VECTOR
        gate, up = (F.pad(layer.weight.detach(), (0, 0, 0, filling)) for layer in (mlp.w1, mlp.w3))
        self.w13 = Affine(torch.cat([gate, up]), None, dtype)
        self.w2 = Affine(F.pad(mlp.w2.weight.detach(), (0, filling)), None, dtype)
        self.register_buffer("norm1", block.norm1.weight.detach().float())
        self.register_buffer("norm2", block.norm2.weight.detach().float())
        # [2, 1, d]: over heads.
        scales = torch.stack([attention.q_norm.weight.detach()[halves], attention.k_norm.weight.detach()[halves]])
        norms = scales[:, None].float()
        if written_out:  # Scaled here, not after the product, which engines fuse with softmax only as its neighbour.
            norms = torch.stack([norms[0] * depth**-0.5, norms[1]])
        self.register_buffer("norm_qk", norms)
        # Normalised vectors have length √d, so that no score is above this: where it is small, softmax needs no
        # maximum, and on a CPU two products and an exponential take less than the fused kernel for short sequences.
        bound = depth**0.5 * scales.abs().amax(1).prod().item()
        self.bounded = dtype != torch.float16 and bound <= MAX_SCORE

    def forward(self, x: Tensor, modulations: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """x [B, L, D] in float32; modulations [B, 1 or L, 6D]; cos and sin [L, 1, 1, d / 2]."""
        shift1, scale1, gate1, shift2, scale2, gate2 = modulations.chunk(Block.MODULATIONS, dim=-1)
        x = x + gate1.float() * self._attention(self._modulated(x, self.norm1, shift1, scale1), cos, sin)
        gate, up = self.w13(self._modulated(x, self.norm2, shift2, scale2)).chunk(2, dim=-1)
        out: Tensor = x + gate2.float() * self.w2(F.silu(gate) * up)
        return out

    def _attention(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        b, length, _ = x.shape
        qkv = self.qkv(x).reshape(b, length, 3, self.heads, -1)
        first, second = _normed(qkv[:, :, :2], self.norm_qk).chunk(2, dim=-1)
        # Cast before they are joined: a compiler then writes each half where it belongs, at once and in few bytes.
        turned = (first * cos - second * sin).to(self.dtype), (first * sin + second * cos).to(self.dtype)
        rotated = torch.cat(turned, dim=-1)
        query, key, value = (heads.transpose(1, 2) for heads in (rotated[:, :, 0], rotated[:, :, 1], qkv[:, :, 2]))
        projected: Tensor = self.proj(self._attend(query, key, value).transpose(1, 2).reshape(b, length, -1))
        return projected

    def _attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """On [B, H, L, d]."""
        if self.written_out:
            scores = query @ key.transpose(-1, -2)
            if self.wide_softmax:  # a cast of its own: of softmax(dtype=…) the exported graph casts the result
                scores = scores.float()
            attended: Tensor = scores.softmax(dim=-1).to(self.dtype) @ value
            return attended
        if not self.bounded or query.shape[-2] > SHORT or query.device.type != "cpu":
            return attend(query, key, value)
        weights = ((query @ key.transpose(-1, -2)).float() * query.shape[-1] ** -0.5).exp()
        attended = (weights.to(self.dtype) @ value) / weights.sum(-1, keepdim=True)
        return attended.to(self.dtype)

    def _modulated(self, x: Tensor, weight: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
        return modulate(_normed(x, weight), shift.float(), scale.float()).to(self.dtype)


def _normed(x: Tensor, weight: Tensor) -> Tensor:
    """`layers.RMSNorm`, whose result stays in float32."""
    y = x.float()
    return y * torch.rsqrt(y.square().mean(-1, keepdim=True) + 1e-6) * weight


class InferenceDDT(nn.Module):
    """A DDT for latents [C, H, W] of one size, with its matrix products in "fp32", "fp16" or "bf16".

    Norms, softmax, rotation, modulation and the residual stream are in float32, the timestep embedding entirely. With
    `written_out` attention is two products with a softmax between them, as an exported graph must say it; with
    `wide_softmax=False` that softmax is said to be in the products' type, which engines compute in float32 all the
    same. Weights are shared with the model where they are the same. Raises ConfigError for latents that the patches do
    not fit.
    """

    label_table: Tensor
    cos: Tensor
    sin: Tensor

    def __init__(
        self,
        model: DDT,
        latent_shape: tuple[int, int, int],
        precision: str = "fp32",
        *,
        written_out: bool = False,
        wide_softmax: bool = True,
    ) -> None:
        super().__init__()
        if precision not in PRECISIONS:
            raise ConfigError(f"precision is {precision!r}; choose one of {', '.join(PRECISIONS)}.")
        config, dtype = model.config, PRECISIONS[precision]
        config.num_tokens(latent_shape)
        self.config, self.latent_shape, self.dtype = config, latent_shape, dtype
        self.t_embedder = copy.deepcopy(model.t_embedder).float().requires_grad_(False)
        self.register_buffer("label_table", model.y_embedder.embedding_table.weight.detach().float())
        self.s_embedder, self.x_embedder, self.final = (
            Affine(layer.weight, layer.bias, dtype)
            for layer in (model.s_embedder.proj, model.x_embedder.proj, model.final_layer.linear)
        )
        self.condition_map = Affine.stacked([block.adaLN_modulation for block in model.encoder_blocks], dtype)
        per_block = [block.adaLN_modulation for block in model.decoder_blocks]
        self.modulation_map = Affine.stacked([*per_block, model.final_layer.adaLN_modulation], dtype)
        self.encoder_blocks, self.decoder_blocks = (
            nn.ModuleList(
                InferenceBlock(block, dtype, written_out=written_out, wide_softmax=wide_softmax) for block in blocks
            )
            for blocks in (model.encoder_blocks, model.decoder_blocks)
        )
        rows, columns = (size // config.patch_size for size in latent_shape[1:])
        for name, table in zip(
            ("cos", "sin"), rotary_table(config.hidden_size // config.num_groups, rows, columns), strict=True
        ):
            # [L, 1, 1, d / 2]: over queries and keys, and over heads.
            self.register_buffer(name, table[:, None, None].to(self.label_table.device))

    def encode(self, latents: Tensor, times: Tensor, labels: Tensor) -> Tensor:
        """The encoder state [B, L, D] of float32 latents [B, C, H, W] at times [B] for labels [B]."""
        tokens = self.s_embedder(self._patches(latents)).float()
        time = self.t_embedder(times)
        condition = F.silu(time + F.embedding(labels, self.label_table)).to(self.dtype)
        per_block = self.condition_map(condition)[:, None].chunk(self.config.num_encoder_blocks, dim=-1)
        for block, modulation in zip(self.encoder_blocks, per_block, strict=True):
            tokens = block(tokens, modulation, self.cos, self.sin)
        return F.silu(time[:, None] + tokens).to(self.dtype)

    def modulations(self, state: Tensor) -> Tensor:
        """All of the decoder's modulations [B, L, M] of a state [B, L, D]."""
        modulated: Tensor = self.modulation_map(state)
        return modulated

    def decode_modulated(self, latents: Tensor, modulations: Tensor) -> Tensor:
        """Velocity, float32 [B, C, H, W], of float32 latents [B, C, H, W] under cached modulations."""
        return self.decode_blocks(latents, modulations.split(self.config.modulation_widths, dim=-1))

    def modulation_maps(self) -> list[tuple[Tensor, Tensor]]:
        """Weights [N, D] and bias [N] of each decoder block's modulations, and of the final layer's."""
        weight, bias, widths = self.modulation_map.weight, self.modulation_map.bias, self.config.modulation_widths
        assert bias is not None
        return list(zip(weight.split(widths), bias.split(widths), strict=True))

    def decode_blocks(self, latents: Tensor, modulations: Sequence[Tensor]) -> Tensor:
        """`decode_modulated` under modulations [B, L, 6D] of each decoder block and [B, L, 2D] of the final layer."""
        config, width = self.config, self.config.hidden_size
        *per_block, final = modulations
        tokens = self.x_embedder(self._patches(latents)).float()
        for block, modulation in zip(self.decoder_blocks, per_block, strict=True):
            tokens = block(tokens, modulation, self.cos, self.sin)
        normed = F.layer_norm(tokens, (width,), eps=1e-6)
        shift, scale = final.float().chunk(FinalLayer.MODULATIONS, dim=-1)
        patches = self.final(modulate(normed, shift, scale).to(self.dtype))
        return unpatchify(patches, config.patch_size, latents.shape[-2], latents.shape[-1]).float()

    def _patches(self, latents: Tensor) -> Tensor:
        return patchify(latents, self.config.patch_size).to(self.dtype)
