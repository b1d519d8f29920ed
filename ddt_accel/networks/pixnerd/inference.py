"""PixNerd laid out for inference.

The columns of a patch's weights are normalised after the products with them, `(y A) / ‖A‖`, so that what is cached
stays as it is, affine in the state; what a pixel is told of its place is a table.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ddt_accel.networks.condition import PreparedCondition
from ddt_accel.networks.config import LatentShape
from ddt_accel.networks.layers import patchify, unpatchify
from ddt_accel.networks.pixnerd.network import PixNerd, by_unit_columns
from ddt_accel.networks.prepared import Affine, Arithmetic
from ddt_accel.networks.prepared_layers import NormWeights, PreparedNorm


class PreparedPixNerd(PreparedCondition):
    """See `PreparedNetwork`."""

    colours: Tensor
    places: Tensor

    def __init__(self, model: PixNerd, latent_shape: LatentShape, arithmetic: Arithmetic) -> None:
        super().__init__(model, latent_shape, arithmetic)
        embedder, waves = cast(nn.Linear, model.x_embedder.embedder[0]), model.get_buffer("_waves")
        with torch.no_grad():
            colours, place = embedder.weight.float().split([latent_shape[0], waves.shape[-1]], dim=1)
            self.register_buffer("colours", colours.clone())  # [h, C], in float32: the product is over C terms
            self.register_buffer("places", F.linear(waves.float(), place, embedder.bias.float()))  # [p², h]
        self.norms = nn.ModuleList(PreparedNorm(NormWeights.of(block.norm)) for block in model.decoder_blocks)
        self.final_norm = PreparedNorm(NormWeights.of(model.final_layer.norm))
        self.final = Affine(model.final_layer.linear.weight, model.final_layer.linear.bias, self.dtype)

    def decode_blocks(self, latents: Tensor, modulations: Sequence[Tensor]) -> Tensor:
        """Under the weights [B, L, 2 r h²] of each decoder block."""
        patches = patchify(latents, self.patch).unflatten(-1, (latents.shape[1], -1))
        pixels = F.linear(patches.transpose(-1, -2), self.colours) + self.places  # [B, L, p², h]
        width = pixels.shape[-1]
        for norm, weights in zip(self.norms, modulations, strict=True):
            first, second = weights.chunk(2, dim=-1)
            hidden = by_unit_columns(norm(pixels).to(self.dtype), first.unflatten(-1, (width, -1)))
            drawn = by_unit_columns(F.silu(hidden).to(self.dtype), second.unflatten(-1, (-1, width)))
            pixels = pixels + drawn
        out = self.final(self.final_norm(pixels).to(self.dtype)).transpose(-1, -2).flatten(-2)
        return unpatchify(out, self.patch, latents.shape[-2], latents.shape[-1]).float()


PREPARED = PreparedPixNerd
