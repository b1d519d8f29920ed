"""The two networks that are exported, cut at the modulations."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ddt_accel.networks.ddt import DDT


class EncoderNetwork(nn.Module):
    """Latents, times and labels in; the decoder's modulations out.

    The affine maps from the state to the modulations of all decoder blocks are one matrix product here.
    """

    def __init__(self, model: DDT) -> None:
        super().__init__()
        self.model = model
        maps = [block.adaLN_modulation[0] for block in model.decoder_blocks] + [model.final_layer.adaLN_modulation[0]]
        self.register_buffer("weight", torch.cat([layer.weight for layer in maps]))
        self.register_buffer("bias", torch.cat([layer.bias for layer in maps]))

    def forward(self, latents: Tensor, times: Tensor, labels: Tensor) -> Tensor:
        state = self.model.encode(latents.type_as(self.weight), times, labels)
        return F.linear(state, self.weight, self.bias)


class DecoderNetwork(nn.Module):
    """Latents and modulations in; velocity out, in float32."""

    def __init__(self, model: DDT) -> None:
        super().__init__()
        self.model = model

    def forward(self, latents: Tensor, modulations: Tensor) -> Tensor:
        return self.model.decode_modulated(latents.type_as(modulations), modulations).float()


def in_precision(model: DDT, precision: str) -> DDT:
    """A copy whose matrix products are in `precision`.

    Norms, softmax and rotation are computed in float32 by the layers themselves; the timestep embedding stays float32.
    """
    reduced = copy.deepcopy(model).cpu()
    if precision == "fp16":
        reduced.half()
        reduced.t_embedder.float()
    return reduced
