"""RAE's DiT-DH (Zheng et al., 2025, arXiv 2510.11690): a narrow, deep encoder under a wide, shallow decoder.

The published network's time runs from data (0) to noise (1) and its velocity is noise − data; both are turned here, at
its border, so that this is a `SplitNetwork` like any other.
"""

from __future__ import annotations

import math
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ddt_accel.networks.layers import LabelEmbedder, attend, modulate, rotate
from ddt_accel.networks.rae.config import COMPUTED, FREQUENCIES, DiTDHConfig
from ddt_accel.networks.split import SplitNetwork

EPS = 1e-6
ROTARY_BASE = 10_000.0


class DiTDH(SplitNetwork):
    """See `SplitNetwork`. The state is `SiLU(projector(SiLU(temb + tokens)))`, in which the modulations are affine."""

    config: DiTDHConfig

    def __init__(self, config: DiTDHConfig) -> None:
        super().__init__()
        self.config, self.source = config, None
        (wide, own), (encoder, decoder) = config.hidden_size, config.depth
        self.s_embedder = Place(config.in_channels, wide)
        self.x_embedder = Place(config.in_channels, own)
        self.t_embedder = FourierEmbedder(wide)
        classes = config.num_classes + (config.null_label is not None)
        self.y_embedder = LabelEmbedder(classes - 1, wide)
        if config.use_pos_embed:
            self.pos_embed = nn.Parameter(torch.zeros(1, config.input_size**2, wide))
        self.s_projector = nn.Linear(wide, own) if wide != own else None
        self.blocks = nn.ModuleList(
            [DHBlock(config, 0) for _ in range(encoder)] + [DHBlock(config, 1) for _ in range(decoder)]
        )
        self.final_layer = DHFinalLayer(config)
        for part in (0, 1):
            head = config.hidden_size[part] // config.num_heads[part]
            for name, table in zip(("cos", "sin"), rows_and_columns(head, config.input_size), strict=True):
                self.register_buffer(f"_{name}{part}", table[:, None], persistent=False)

    def encode(self, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        """The encoder state [B, L, D₁]; t runs from noise (0) to data (1)."""
        self.config.num_tokens((x.shape[1], x.shape[2], x.shape[3]))
        tokens = self.s_embedder(x)
        if self.config.use_pos_embed:
            tokens = tokens + self.pos_embed
        time = self.t_embedder(1 - t)[:, None].type_as(tokens)
        # The published blocks apply SiLU to a condition that has been through it.
        condition = F.silu(F.silu(time + self.y_embedder(y)[:, None]))
        for block in self.encoder_blocks:
            affine = cast(nn.Linear, block.adaLN_modulation[1])
            tokens = block(tokens, affine(condition), self._rotary(0))
        state = F.silu(time + tokens)
        return F.silu(state if self.s_projector is None else self.s_projector(state))

    @property
    def modulation_maps(self) -> list[nn.Linear]:
        layers: list[DHBlock | DHFinalLayer] = [*self.decoder_blocks, self.final_layer]
        return [cast(nn.Linear, layer.adaLN_modulation[1]) for layer in layers]

    def decode_modulated(self, x: Tensor, modulations: Tensor) -> Tensor:
        """Velocity [B, C, n, n] of x [B, C, n, n] under modulations [B, L, (6 · decoder blocks + 2) · D₁]."""
        *per_block, final = modulations.split(self.config.modulation_widths, dim=-1)
        tokens = self.x_embedder(x)
        for block, modulation in zip(self.decoder_blocks, per_block, strict=True):
            tokens = block(tokens, modulation, self._rotary(1))
        drawn: Tensor = self.final_layer(tokens, final)
        return -drawn.transpose(1, 2).reshape(x.shape)

    @property
    def encoder_blocks(self) -> list[DHBlock]:
        return cast(list[DHBlock], list(self.blocks)[: self.config.depth[0]])

    @property
    def decoder_blocks(self) -> list[DHBlock]:
        return cast(list[DHBlock], list(self.blocks)[self.config.depth[0] :])

    def computed_tables(self) -> dict[str, Tensor]:
        """The rotary tables, in which every value stands twice."""
        tables = [table[:, 0].repeat_interleave(2, -1) for part in (0, 1) for table in self._rotary(part)]
        return dict(zip(COMPUTED, tables, strict=True))

    def _rotary(self, part: int) -> tuple[Tensor, Tensor]:
        return self.get_buffer(f"_cos{part}"), self.get_buffer(f"_sin{part}")


def rows_and_columns(head_size: int, side: int) -> tuple[Tensor, Tensor]:
    """Cosines and sines of the rotary embedding, each [n², d / 2] in float32.

    The first half of a head turns by the row, the second by the column, over integer positions 0 … n − 1 with
    frequencies `10000^(−4k / d)`.
    """
    frequencies = 1.0 / ROTARY_BASE ** (torch.arange(0, head_size // 2, 2).float() / (head_size // 2))
    angles = torch.outer(torch.arange(side).float(), frequencies)
    angles = torch.cat([angles.repeat_interleave(side, 0), angles.repeat(side, 1)], dim=-1)
    return angles.cos(), angles.sin()


class Place(nn.Module):
    """One linear map of the channels of every place, kept as a 1 × 1 convolution: [B, C, n, n] → [B, n², D]."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(channels, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x.flatten(2).transpose(1, 2), self.proj.weight.flatten(1), self.proj.bias)


class FourierEmbedder(nn.Module):
    """Sines and cosines of the time at frequencies from the file, through an MLP: [B] → [B, D]."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.W = nn.Parameter(torch.randn(FREQUENCIES), requires_grad=False)
        self.mlp = nn.Sequential(nn.Linear(2 * FREQUENCIES, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, t: Tensor) -> Tensor:
        angles = t.float()[:, None] * self.W.float() * 2 * math.pi
        features = torch.cat([angles.sin(), angles.cos()], dim=-1)
        embedded: Tensor = self.mlp(features.to(next(self.mlp.parameters()).dtype))
        return embedded


class DHBlock(nn.Module):
    """A transformer block of the encoder (part 0) or of the decoder (part 1); its modulations come from outside."""

    def __init__(self, config: DiTDHConfig, part: int) -> None:
        super().__init__()
        width = config.hidden_size[part]
        self.norm1, self.norm2 = norm(config, width), norm(config, width)
        self.attn = DHAttention(config, width, config.num_heads[part])
        self.mlp = (GatedMLP if config.use_swiglu else GeluMLP)(width, config.mlp_width(part))
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 6 * width))

    def forward(self, x: Tensor, modulations: Tensor, rotary: tuple[Tensor, Tensor]) -> Tensor:
        """x [B, L, D]; modulations [B, 1 or L, 6D]."""
        shift1, scale1, gate1, shift2, scale2, gate2 = modulations.chunk(6, dim=-1)
        x = x + gate1 * self.attn(modulate(self.norm1(x), shift1, scale1), rotary)
        out: Tensor = x + gate2 * self.mlp(modulate(self.norm2(x), shift2, scale2))
        return out


def norm(config: DiTDHConfig, width: int) -> nn.Module:
    """The norm of blocks and final layer."""
    return FloatRMSNorm(width) if config.use_rmsnorm else nn.LayerNorm(width, eps=EPS, elementwise_affine=False)


class FloatRMSNorm(nn.Module):
    """`weight · x / sqrt(mean(x²) + 1e-6)`, all of it in float32."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x.float(), self.weight.shape, self.weight.float(), EPS).type_as(x)


class DHAttention(nn.Module):
    """Multi-head attention with rotated queries and keys, which may be normalised."""

    def __init__(self, config: DiTDHConfig, width: int, heads: int) -> None:
        super().__init__()
        self.heads, head = heads, width // heads
        self.qkv = nn.Linear(width, 3 * width)
        if config.use_qknorm:
            kind = FloatRMSNorm if config.use_rmsnorm else nn.LayerNorm
            self.q_norm, self.k_norm = kind(head), kind(head)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor, rotary: tuple[Tensor, Tensor]) -> Tensor:
        b, length, _ = x.shape
        q, k, v = self.qkv(x).reshape(b, length, 3, self.heads, -1).unbind(2)
        if hasattr(self, "q_norm"):
            q, k = self.q_norm(q), self.k_norm(k)
        q, k = rotate(q, *rotary), rotate(k, *rotary)
        out = attend(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2))
        projected: Tensor = self.proj(out.transpose(1, 2).reshape(b, length, -1))
        return projected


class GatedMLP(nn.Module):
    """SwiGLU, both input products in one; the first half is the gate."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.w12 = nn.Linear(width, 2 * inner)
        self.w3 = nn.Linear(inner, width)

    def forward(self, x: Tensor) -> Tensor:
        gate, up = self.w12(x).chunk(2, dim=-1)
        out: Tensor = self.w3(F.silu(gate) * up)
        return out


class GeluMLP(nn.Module):
    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, inner)
        self.fc2 = nn.Linear(inner, width)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.fc2(F.gelu(self.fc1(x), approximate="tanh"))
        return out


class DHFinalLayer(nn.Module):
    """Norm, modulation and projection of tokens to channels."""

    def __init__(self, config: DiTDHConfig) -> None:
        super().__init__()
        width = config.hidden_size[1]
        self.norm_final = norm(config, width)
        self.linear = nn.Linear(width, config.in_channels)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 2 * width))

    def forward(self, x: Tensor, modulations: Tensor) -> Tensor:
        shift, scale = modulations.chunk(2, dim=-1)
        out: Tensor = self.linear(modulate(self.norm_final(x), shift, scale))
        return out


NETWORK = DiTDH
