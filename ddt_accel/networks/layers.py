"""The layers of DDT, with the published parameter names.

Everything here is real arithmetic on static shapes plus a dynamic batch, so that the same code trains, samples and
exports. Shapes: B samples, L tokens, D hidden size, H heads of size d, F channels of an MLP. A complete block has D / d
heads; a narrow one fewer.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ddt_accel.networks.dynamic.masks import BlockMasks

TIMESTEP_FEATURES = 256
TIMESTEP_MAX_PERIOD = 10.0
ROTARY_BASE = 10_000.0
ROTARY_EXTENT = 16.0


def patchify(x: Tensor, patch: int) -> Tensor:
    """[B, C, H, W] → [B, L, C·p²], features in the order (C, p_h, p_w): `unfold` with kernel = stride = p."""
    b, c, h, w = x.shape
    x = x.reshape(b, c, h // patch, patch, w // patch, patch)
    return x.permute(0, 2, 4, 1, 3, 5).reshape(b, (h // patch) * (w // patch), c * patch * patch)


def unpatchify(tokens: Tensor, patch: int, height: int, width: int) -> Tensor:
    """The inverse of `patchify`: [B, L, C·p²] → [B, C, height, width]."""
    b, _, features = tokens.shape
    c = features // (patch * patch)
    tokens = tokens.reshape(b, height // patch, width // patch, c, patch, patch)
    return tokens.permute(0, 3, 1, 4, 2, 5).reshape(b, c, height, width)


def rotary_table(head_dim: int, height: int, width: int) -> tuple[Tensor, Tensor]:
    """Cosines and sines of the 2-D rotary embedding, each [L, head_dim / 2] in float32.

    Positions run over `linspace(0, 16, n)` on each axis; frequency k is `10000^(−4k / head_dim)`; along the last axis
    the x-axis and the y-axis alternate for every frequency.
    """
    x_positions = torch.linspace(0.0, ROTARY_EXTENT, width).repeat(height)
    y_positions = torch.linspace(0.0, ROTARY_EXTENT, height).repeat_interleave(width)
    exponents = torch.arange(0, head_dim, 4)[: head_dim // 4].float() / head_dim
    frequencies = 1.0 / ROTARY_BASE**exponents
    angles = torch.stack([torch.outer(x_positions, frequencies), torch.outer(y_positions, frequencies)], dim=-1)
    angles = angles.flatten(1)
    return angles.cos(), angles.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotates the interleaved pairs (2m, 2m + 1) of [B, L, …, d]; cos and sin are [L, …, d / 2], with ones between."""
    even, odd = x.unflatten(-1, (-1, 2)).unbind(-1)
    return torch.stack([even * cos - odd * sin, even * sin + odd * cos], dim=-1).flatten(-2).type_as(x)


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    return x * (1 + scale) + shift


class Embed(nn.Module):
    def __init__(self, in_features: int, hidden_size: int) -> None:
        super().__init__()
        self.proj = nn.Linear(in_features, hidden_size)

    def forward(self, tokens: Tensor) -> Tensor:
        embedded: Tensor = self.proj(tokens)
        return embedded


class TimestepEmbedder(nn.Module):
    """256 sinusoids of the raw time in [0, 1], cosines first, through an MLP: [B] → [B, D]."""

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(
            nn.Linear(TIMESTEP_FEATURES, hidden_size), nn.SiLU(), nn.Linear(hidden_size, hidden_size)
        )

    def forward(self, t: Tensor) -> Tensor:
        half = TIMESTEP_FEATURES // 2
        k = torch.arange(half, dtype=torch.float32, device=t.device)
        # In the published order of operations, to the last bit.
        angles = t.float()[:, None] * torch.exp(-math.log(TIMESTEP_MAX_PERIOD) * k / half)
        features = torch.cat([angles.cos(), angles.sin()], dim=-1)
        embedded: Tensor = self.mlp(features.to(next(self.mlp.parameters()).dtype))
        return embedded


class LabelEmbedder(nn.Module):
    """One vector per class; index `num_classes` is the null label of the unconditional branch."""

    def __init__(self, num_classes: int, hidden_size: int) -> None:
        super().__init__()
        self.embedding_table = nn.Embedding(num_classes + 1, hidden_size)

    def forward(self, labels: Tensor) -> Tensor:
        embedded: Tensor = self.embedding_table(labels)
        return embedded


class RMSNorm(nn.Module):
    """`weight · x / sqrt(mean(x²) + 1e-6)`, the mean taken in float32."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(features))

    def forward(self, x: Tensor) -> Tensor:
        return rms_norm(x, self.weight)


def rms_norm(x: Tensor, weight: Tensor) -> Tensor:
    """See `RMSNorm`; weights of several axes go with the last ones of x."""
    return weight * F.rms_norm(x.float(), x.shape[-1:], eps=1e-6).type_as(x)


class Attention(nn.Module):
    """Multi-head attention with RMS-normalised, rotated queries and keys."""

    def __init__(self, hidden_size: int, heads: int, head_size: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(hidden_size, 3 * heads * head_size, bias=False)
        self.q_norm = RMSNorm(head_size)
        self.k_norm = RMSNorm(head_size)
        self.proj = nn.Linear(heads * head_size, hidden_size)

    def forward(self, x: Tensor, rotary: tuple[Tensor, Tensor], mask: Tensor | None = None) -> Tensor:
        """x [B, L, D]; a mask [B or 1, H] leaves heads out."""
        b, length, _ = x.shape
        qkv = self.qkv(x).reshape(b, length, 3, self.heads, -1)
        # Queries and keys at once: the numbers are the same, and small networks take as long as they have calls.
        weights = torch.stack([self.q_norm.weight, self.k_norm.weight])[:, None]
        cos, sin = (table[:, None] for table in rotary)
        pair, v = qkv.split((2, 1), dim=2)
        q, k = rotate(rms_norm(pair, weights), cos, sin).unbind(2)
        out = attend(q.transpose(1, 2), k.transpose(1, 2), v.squeeze(2).transpose(1, 2))
        if mask is not None:
            out = out * mask[:, :, None, None].type_as(out)
        projected: Tensor = self.proj(out.transpose(1, 2).reshape(b, length, -1))
        return projected


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Softmax attention on [B, H, L, d], the softmax in float32."""
    # The fused kernel's backward pass on CPUs is several times slower than two matrix products.
    if q.requires_grad and q.device.type == "cpu":
        return attend_written_out(q, k, v)
    return F.scaled_dot_product_attention(q, k, v)


def attend_written_out(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """`attend` as two matrix products."""
    scores: Tensor = q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5
    return scores.float().softmax(dim=-1).type_as(v) @ v


class FeedForward(nn.Module):
    """SwiGLU: `w2(SiLU(w1 x) · w3 x)`, without biases."""

    def __init__(self, hidden_size: int, channels: int) -> None:
        super().__init__()
        self.w1 = nn.Linear(hidden_size, channels, bias=False)
        self.w3 = nn.Linear(hidden_size, channels, bias=False)
        self.w2 = nn.Linear(channels, hidden_size, bias=False)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """x [B, L, D]; a mask [B or 1, F] leaves channels out."""
        hidden = F.silu(self.w1(x)) * self.w3(x)
        if mask is not None:
            # Once, on the product: with both halves masked a closed channel would have no gradient to open it again.
            hidden = hidden * mask[:, None].type_as(hidden)
        out: Tensor = self.w2(hidden)
        return out


class Block(nn.Module):
    """A transformer block whose six modulations come from outside, so that they can be cached."""

    MODULATIONS = 6

    def __init__(self, hidden_size: int, heads: int, head_size: int, channels: int) -> None:
        super().__init__()
        self.norm1 = RMSNorm(hidden_size)
        self.attn = Attention(hidden_size, heads, head_size)
        self.norm2 = RMSNorm(hidden_size)
        self.mlp = FeedForward(hidden_size, channels)
        self.adaLN_modulation = nn.Sequential(nn.Linear(hidden_size, self.MODULATIONS * hidden_size))

    def forward(
        self, x: Tensor, modulations: Tensor, rotary: tuple[Tensor, Tensor], masks: BlockMasks | None = None
    ) -> Tensor:
        """x [B, L, D]; modulations [B, 1 or L, 6D] = `adaLN_modulation(condition)`."""
        shift1, scale1, gate1, shift2, scale2, gate2 = modulations.chunk(self.MODULATIONS, dim=-1)
        heads, channels = (None, None) if masks is None else (masks.heads, masks.channels)
        x = x + gate1 * self.attn(modulate(self.norm1(x), shift1, scale1), rotary, heads)
        if masks is not None and masks.tokens is not None:
            gate2 = gate2 * masks.tokens(x).type_as(x)
        out: Tensor = x + gate2 * self.mlp(modulate(self.norm2(x), shift2, scale2), channels)
        return out


class FinalLayer(nn.Module):
    """LayerNorm, modulation and projection of tokens to patches."""

    MODULATIONS = 2

    def __init__(self, hidden_size: int, out_features: int) -> None:
        super().__init__()
        self.norm_final = nn.LayerNorm(hidden_size, elementwise_affine=False, eps=1e-6)
        self.linear = nn.Linear(hidden_size, out_features)
        self.adaLN_modulation = nn.Sequential(nn.Linear(hidden_size, self.MODULATIONS * hidden_size))

    def forward(self, x: Tensor, modulations: Tensor) -> Tensor:
        shift, scale = modulations.chunk(self.MODULATIONS, dim=-1)
        normed = self.norm_final(x.float()).type_as(x)
        out: Tensor = self.linear(modulate(normed, shift, scale))
        return out
