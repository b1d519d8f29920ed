"""A network laid out for inference: its weights prepared once, in the precision that they are multiplied in.

What is rearranged changes no number but for rounding; `prepared_layers` and each family's `inference` say what it is.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ddt_accel.errors import ConfigError
from ddt_accel.networks.config import LatentShape, SplitConfig
from ddt_accel.networks.split import SplitNetwork

PRECISIONS = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


@dataclass(frozen=True, kw_only=True)
class Arithmetic:
    """In what numbers a prepared network computes, and how it writes attention.

    Matrix products are in `dtype`; norms, softmax, rotation, modulation and the residual stream in float32, the
    timestep embedding entirely. With `written_out` attention is two products with a softmax between them, as an
    exported graph must say it; without `wide_softmax` that one is said to be in the products' type, which engines
    compute in float32 all the same.
    """

    dtype: torch.dtype
    written_out: bool = False
    wide_softmax: bool = True

    @classmethod
    def of(cls, precision: str, *, written_out: bool = False, wide_softmax: bool = True) -> Arithmetic:
        """By the name of a precision; raises ConfigError where there is none of it."""
        if precision not in PRECISIONS:
            raise ConfigError(f"precision is {precision!r}; choose one of {', '.join(PRECISIONS)}.")
        return cls(dtype=PRECISIONS[precision], written_out=written_out, wide_softmax=wide_softmax)


class Affine(nn.Module):
    """`x Wᵀ + b` of weights that are not trained."""

    weight: Tensor
    bias: Tensor | None

    def __init__(self, weight: Tensor, bias: Tensor | None, dtype: torch.dtype) -> None:
        super().__init__()
        self.register_buffer("weight", weight.detach().to(dtype).contiguous())
        self.register_buffer("bias", None if bias is None else bias.detach().to(dtype))

    @classmethod
    def stacked(cls, maps: Sequence[nn.Linear], dtype: torch.dtype) -> Affine:
        """Several maps of the same input as one product."""
        return cls(torch.cat([one.weight for one in maps]), torch.cat([one.bias for one in maps]), dtype)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight, self.bias)


class PreparedNetwork(nn.Module):
    """A split network for latents [C, H, W] of one size; weights are shared with the model where they are the same.

    Raises ConfigError for latents that do not fit it.
    """

    def __init__(self, model: SplitNetwork, latent_shape: LatentShape, arithmetic: Arithmetic) -> None:
        super().__init__()
        model.config.num_tokens(latent_shape)
        self.config: SplitConfig = model.config
        self.latent_shape, self.dtype = latent_shape, arithmetic.dtype
        self.modulation_map = Affine.stacked(model.modulation_maps, arithmetic.dtype)

    @abstractmethod
    def encode(self, latents: Tensor, times: Tensor, labels: Tensor) -> Tensor:
        """The encoder state [B, L, D] of float32 latents [B, C, H, W] at times [B] for labels [B]."""

    def modulations(self, state: Tensor) -> Tensor:
        """All of the decoder's modulations [B, L, M] of a state [B, L, D]."""
        modulated: Tensor = self.modulation_map(state)
        return modulated

    def modulation_maps(self) -> list[tuple[Tensor, Tensor]]:
        """Weights [N, D] and bias [N] of each part of the modulations."""
        weight, bias, widths = self.modulation_map.weight, self.modulation_map.bias, self.config.modulation_widths
        assert bias is not None
        return list(zip(weight.split(widths), bias.split(widths), strict=True))

    def decode_modulated(self, latents: Tensor, modulations: Tensor) -> Tensor:
        """Velocity, float32 [B, C, H, W], of float32 latents [B, C, H, W] under cached modulations."""
        return self.decode_blocks(latents, modulations.split(self.config.modulation_widths, dim=-1))

    @abstractmethod
    def decode_blocks(self, latents: Tensor, modulations: Sequence[Tensor]) -> Tensor:
        """`decode_modulated` under the parts of the modulations, [B, L, N] each."""
