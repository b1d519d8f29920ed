"""The layers of transformers laid out for inference.

The products of SwiGLU's two halves are one, its hidden features filled up with zeros to whole vectors; the rotated
pairs (2m, 2m + 1) of queries and keys lie apart, as (m, m + d / 2), since the order of a dot product's terms is free.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ddt_accel.networks.layers import attend, modulate
from ddt_accel.networks.prepared import Affine, Arithmetic

VECTOR = 32  # features, 64 bytes of 16-bit numbers
SHORT = 128  # tokens
MAX_SCORE = 24.0  # beyond which bfloat16 scores, rounded to 2⁻⁹ of themselves, would spoil their exponentials
MODULATIONS = 6  # shift, scale and gate of attention, then of the MLP


@dataclass(frozen=True, kw_only=True)
class NormWeights:
    """A norm over the last axis: of mean squares, or `centred` as LayerNorm is; weights as far as it has any."""

    weight: Tensor | None
    bias: Tensor | None = None
    eps: float = 1e-6
    centred: bool = False

    @classmethod
    def of(cls, norm: nn.Module) -> NormWeights:
        """Of a norm of this package, or of PyTorch's LayerNorm."""
        weight, bias = getattr(norm, "weight", None), getattr(norm, "bias", None)
        if isinstance(norm, nn.LayerNorm):
            return cls(weight=weight, bias=bias, eps=norm.eps, centred=True)
        return cls(weight=weight)


@dataclass(frozen=True, kw_only=True)
class BlockWeights:
    """What a transformer block multiplies by, whatever its family calls it.

    `qkv` has rows (3, H, d), its pairs (2m, 2m + 1) rotated together. `gate` and `up` are the halves of SwiGLU, which
    has weight and bias; without a `gate` the MLP is `down(GELU(up x))`, GELU by its tanh.
    """

    heads: int
    qkv: nn.Linear
    qk_norms: tuple[NormWeights, NormWeights] | None
    proj: nn.Linear
    norms: tuple[NormWeights, NormWeights]
    gate: tuple[Tensor, Tensor | None] | None
    up: tuple[Tensor, Tensor | None]
    down: nn.Linear


class PreparedNorm(nn.Module):
    """A norm whose result stays in float32."""

    weight: Tensor | None
    bias: Tensor | None

    def __init__(self, weights: NormWeights) -> None:
        super().__init__()
        self.eps, self.centred = weights.eps, weights.centred
        for name, value in (("weight", weights.weight), ("bias", weights.bias)):
            self.register_buffer(name, None if value is None else value.detach().float())

    def forward(self, x: Tensor) -> Tensor:
        y = x.float()
        if self.centred:
            y = F.layer_norm(y, y.shape[-1:], eps=self.eps)
        else:
            y = y * torch.rsqrt(y.square().mean(-1, keepdim=True) + self.eps)
        y = y if self.weight is None else y * self.weight
        return y if self.bias is None else y + self.bias

    def halves(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The two halves of the result along its last axis, by sums over a half instead of the whole.

        What turns the halves against each other runs over as many features, so that a compiler makes one kernel of
        both. Of more than 64 features PyTorch's makes a loop, which on an H200 took twice as long as attention itself.
        """
        first, second = x.float().chunk(2, dim=-1)
        features = x.shape[-1]
        if self.centred:
            mean = (first + second).sum(-1, keepdim=True) / features
            first, second = first - mean, second - mean
        squares = (first.square() + second.square()).sum(-1, keepdim=True)
        scale = torch.rsqrt(squares / features + self.eps)
        first, second = first * scale, second * scale
        for value, apply in ((self.weight, torch.mul), (self.bias, torch.add)):
            if value is not None:
                before, after = value.chunk(2, dim=-1)
                first, second = apply(first, before), apply(second, after)
        return first, second


class PreparedBlock(nn.Module):
    """A transformer block; modulations come from outside."""

    def __init__(self, weights: BlockWeights, arithmetic: Arithmetic) -> None:
        super().__init__()
        self.heads, self.dtype, self.wide_softmax = weights.heads, arithmetic.dtype, arithmetic.wide_softmax
        self.written_out = arithmetic.written_out
        depth = weights.proj.in_features // self.heads
        pairs = torch.cat([torch.arange(0, depth, 2), torch.arange(1, depth, 2)])
        self.qk_norm, bound = None, float("inf")
        if weights.qk_norms is not None:
            both, bound = _stacked(weights.qk_norms, pairs, depth**-0.5 if self.written_out else 1.0)
            self.qk_norm = PreparedNorm(both)
        # Queries are scaled before the product, not after it: engines fuse that with softmax only as its neighbour.
        scale = depth**-0.5 if self.written_out and self.qk_norm is None else 1.0
        weight, bias = (_apart(value, self.heads, pairs, scale) for value in _of(weights.qkv))
        assert weight is not None
        self.qkv = Affine(weight, bias, self.dtype)
        self.proj = Affine(*_of(weights.proj), self.dtype)
        filling = -weights.down.in_features % VECTOR
        self.gated = weights.gate is not None
        halves = [weights.up] if weights.gate is None else [weights.gate, weights.up]
        biases = [F.pad(bias.detach(), (0, filling)) for _, bias in halves if bias is not None]
        self.w13 = Affine(
            torch.cat([F.pad(weight.detach(), (0, 0, 0, filling)) for weight, _ in halves]),
            torch.cat(biases) if biases else None,
            self.dtype,
        )
        self.w2 = Affine(F.pad(weights.down.weight.detach(), (0, filling)), weights.down.bias, self.dtype)
        self.norm1, self.norm2 = (PreparedNorm(norm) for norm in weights.norms)
        # Where no score is large softmax needs no maximum, and on a CPU two products and an exponential take less than
        # the fused kernel for short sequences.
        self.bounded = self.dtype != torch.float16 and bound <= MAX_SCORE

    def forward(self, x: Tensor, modulations: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """x [B, L, D] in float32; modulations [B, 1 or L, 6D]; cos and sin [L, 1, 1, d / 2]."""
        shift1, scale1, gate1, shift2, scale2, gate2 = modulations.chunk(MODULATIONS, dim=-1)
        x = x + gate1.float() * self._attention(self._modulated(self.norm1(x), shift1, scale1), cos, sin)
        hidden = self.w13(self._modulated(self.norm2(x), shift2, scale2))
        if self.gated:
            gate, up = hidden.chunk(2, dim=-1)
            hidden = F.silu(gate) * up
        else:
            hidden = F.gelu(hidden, approximate="tanh")
        out: Tensor = x + gate2.float() * self.w2(hidden)
        return out

    def _attention(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        b, length, _ = x.shape
        qkv = self.qkv(x).reshape(b, length, 3, self.heads, -1)
        pair = qkv[:, :, :2]
        if self.qk_norm is None:
            first, second = pair.float().chunk(2, dim=-1)
        elif self.written_out:  # what runs exported graphs knows norms by how they are usually written
            first, second = self.qk_norm(pair).chunk(2, dim=-1)
        else:
            first, second = self.qk_norm.halves(pair)
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

    def _modulated(self, normed: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
        return modulate(normed, shift.float(), scale.float()).to(self.dtype)


def _of(layer: nn.Linear) -> tuple[Tensor, Tensor | None]:
    return layer.weight, layer.bias


def _apart(rows: Tensor | None, heads: int, pairs: Tensor, scale: float) -> Tensor | None:
    """The rows (3, H, d) of queries, keys and values with the pairs apart and queries scaled."""
    if rows is None:
        return None
    query, key, value = rows.detach().unflatten(0, (3, heads, -1))
    return torch.cat([query[:, pairs] * scale, key[:, pairs], value]).flatten(0, 1)


def _stacked(norms: tuple[NormWeights, NormWeights], pairs: Tensor, scale: float) -> tuple[NormWeights, float]:
    """Both norms as one, [2, 1, d] over heads, that of queries scaled; and the largest score that they allow.

    Normalised vectors have length √d, before weights.
    """
    (query, key), depth = norms, len(pairs)

    def both(first: Tensor | None, second: Tensor | None) -> Tensor | None:
        if first is None or second is None:
            return None
        return torch.stack([first.detach()[pairs].float() * scale, second.detach()[pairs].float()])[:, None]

    stacked = NormWeights(
        weight=both(query.weight, key.weight), bias=both(query.bias, key.bias), eps=query.eps, centred=query.centred
    )
    if stacked.weight is None or stacked.bias is not None:
        return stacked, float("inf")
    return stacked, depth**0.5 / scale * stacked.weight.abs().amax(-1).prod().item()
