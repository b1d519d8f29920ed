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

    weight: Tensor
    bias: Tensor

    def __init__(self, model: DDT) -> None:
        super().__init__()
        self.model = model
        maps = [*(block.adaLN_modulation for block in model.decoder_blocks), model.final_layer.adaLN_modulation]
        parameters = [parameter.detach() for affine in maps for parameter in affine.parameters()]
        self.register_buffer("weight", torch.cat([parameter for parameter in parameters if parameter.ndim == 2]))
        self.register_buffer("bias", torch.cat([parameter for parameter in parameters if parameter.ndim == 1]))

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
