"""The two networks that are exported, cut as `backends.tensors` says."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ddt_accel.backends.tensors import Cut
from ddt_accel.networks.ddt import DDT


def modulation_map(model: DDT) -> tuple[Tensor, Tensor]:
    """W [M, D] and b [M] of all the decoder's modulations, `m = W s + b`: one matrix product."""
    maps = [*(block.adaLN_modulation for block in model.decoder_blocks), model.final_layer.adaLN_modulation]
    parameters = [parameter.detach() for affine in maps for parameter in affine.parameters()]
    weight = torch.cat([parameter for parameter in parameters if parameter.ndim == 2])
    return weight, torch.cat([parameter for parameter in parameters if parameter.ndim == 1])


class EncoderNetwork(nn.Module):
    """Latents, times and labels in; the decoder's modulations out, or the state."""

    weight: Tensor
    bias: Tensor

    def __init__(self, model: DDT, cut: Cut) -> None:
        super().__init__()
        self.model, self.dtype = model, model.final_layer.linear.weight.dtype
        self.modulated = cut.cache == "modulations"
        if self.modulated:
            weight, bias = modulation_map(model)
            self.register_buffer("weight", weight)
            self.register_buffer("bias", bias)

    def forward(self, latents: Tensor, times: Tensor, labels: Tensor) -> Tensor:
        state = self.model.encode(latents.to(self.dtype), times, labels)
        return F.linear(state, self.weight, self.bias) if self.modulated else state


class DecoderNetwork(nn.Module):
    """Latents and what the encoder has given in, of one refresh or of several with their weights; velocity out, in
    float32. Forecasts are summed in float32."""

    weight: Tensor
    bias: Tensor

    def __init__(self, model: DDT, cut: Cut) -> None:
        super().__init__()
        self.model, self.cut, self.dtype = model, cut, model.final_layer.linear.weight.dtype
        if cut.cache == "state":
            weight, bias = modulation_map(model)
            self.register_buffer("weight", weight)
            self.register_buffer("bias", bias)

    def forward(self, latents: Tensor, *inputs: Tensor) -> Tensor:
        if self.cut.sources == 0:
            (given,) = inputs
            modulations = given if self.cut.cache == "modulations" else F.linear(given, self.weight, self.bias)
        else:
            *cached, weights, constant = inputs
            total = weights[:, 0, None, None] * cached[0].float()
            for s, one in enumerate(cached[1:], 1):
                total = total + weights[:, s, None, None] * one.float()
            if self.cut.cache == "state":
                whole = weights.sum(1)[:, None] * self.bias.float()
                total = F.linear(total.to(self.dtype), self.weight).float() + whole[:, None]
            modulations = (total + constant[:, None]).to(self.dtype)
        return self.model.decode_modulated(latents.to(self.dtype), modulations).float()


def in_precision(model: DDT, precision: str) -> DDT:
    """The model on the CPU with its matrix products in `precision`; a copy where that is another one.

    Norms, softmax and rotation are computed in float32 by the layers themselves; the timestep embedding stays float32.
    """
    parameter = model.final_layer.linear.weight
    if precision == "fp32" and (parameter.device.type, parameter.dtype) == ("cpu", torch.float32):
        return model
    reduced = copy.deepcopy(model).cpu()
    if precision == "fp32":
        reduced.float()
    else:
        reduced.to({"fp16": torch.float16, "bf16": torch.bfloat16}[precision])
        reduced.t_embedder.float()
    return reduced
