"""DDT laid out for inference."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F

from ddt_accel.networks.condition import PreparedCondition, prepared_block
from ddt_accel.networks.config import LatentShape
from ddt_accel.networks.ddt.network import DDT
from ddt_accel.networks.layers import FinalLayer, modulate, patchify, unpatchify
from ddt_accel.networks.prepared import Affine, Arithmetic


class PreparedDDT(PreparedCondition):
    """See `PreparedNetwork`."""

    def __init__(self, model: DDT, latent_shape: LatentShape, arithmetic: Arithmetic) -> None:
        super().__init__(model, latent_shape, arithmetic)
        self.x_embedder, self.final = (
            Affine(layer.weight, layer.bias, self.dtype) for layer in (model.x_embedder.proj, model.final_layer.linear)
        )
        self.decoder_blocks = nn.ModuleList(prepared_block(block, arithmetic) for block in model.decoder_blocks)

    def decode_blocks(self, latents: Tensor, modulations: Sequence[Tensor]) -> Tensor:
        """Under modulations [B, L, 6D] of each decoder block and [B, L, 2D] of the final layer."""
        *per_block, final = modulations
        tokens = self.x_embedder(patchify(latents, self.patch).to(self.dtype)).float()
        for block, modulation in zip(self.decoder_blocks, per_block, strict=True):
            tokens = block(tokens, modulation, self.cos, self.sin)
        normed = F.layer_norm(tokens, tokens.shape[-1:], eps=1e-6)
        shift, scale = final.float().chunk(FinalLayer.MODULATIONS, dim=-1)
        patches = self.final(modulate(normed, shift, scale).to(self.dtype))
        return unpatchify(patches, self.patch, latents.shape[-2], latents.shape[-1]).float()


PREPARED = PreparedDDT
