"""The two networks that are exported or compiled, cut as `backends.tensors` says."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from ddt_accel.backends.tensors import Cut
from ddt_accel.networks.inference import InferenceDDT


class EncoderNetwork(nn.Module):
    """Latents, times and labels in; the decoder's modulations out, or the state."""

    def __init__(self, model: InferenceDDT, cut: Cut) -> None:
        super().__init__()
        self.model, self.modulated = model, cut.cache == "modulations"

    def forward(self, latents: Tensor, times: Tensor, labels: Tensor) -> Tensor:
        state = self.model.encode(latents, times, labels)
        return self.model.modulations(state) if self.modulated else state


class DecoderNetwork(nn.Module):
    """Latents and what the encoder has given in, of one refresh or of several with their weights; velocity out, in
    float32. Forecasts are summed in float32."""

    def __init__(self, model: InferenceDDT, cut: Cut) -> None:
        super().__init__()
        self.model, self.cut = model, cut

    def forward(self, latents: Tensor, *inputs: Tensor) -> Tensor:
        if self.cut.sources == 0:
            (given,) = inputs
            modulations = given if self.cut.cache == "modulations" else self.model.modulations(given)
        else:
            *cached, weights, constant = inputs
            total = weights[:, 0, None, None] * cached[0].float()
            for s, one in enumerate(cached[1:], 1):
                total = total + weights[:, s, None, None] * one.float()
            if self.cut.cache == "state":
                affine = self.model.modulation_map
                assert affine.bias is not None
                whole = weights.sum(1)[:, None] * affine.bias.float()
                total = F.linear(total.to(self.model.dtype), affine.weight).float() + whole[:, None]
            modulations = (total + constant[:, None]).to(self.model.dtype)
        return self.model.decode_modulated(latents, modulations)
