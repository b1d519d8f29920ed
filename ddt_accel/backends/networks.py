"""The two networks that are exported or compiled, cut as `backends.tensors` says."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F

from ddt_accel.backends.tensors import Cut
from ddt_accel.networks.prepared import PreparedNetwork


class EncoderNetwork(nn.Module):
    """Latents, times and labels in; the decoder's modulations out, or the state: of it blockwise modulations are made
    outside."""

    def __init__(self, model: PreparedNetwork, cut: Cut) -> None:
        super().__init__()
        self.model, self.modulated = model, cut.cache == "modulations" and not cut.blockwise

    def forward(self, latents: Tensor, times: Tensor, labels: Tensor) -> Tensor:
        state = self.model.encode(latents, times, labels)
        return self.model.modulations(state) if self.modulated else state


class DecoderNetwork(nn.Module):
    """Latents and what the encoder has given in, of one refresh or of several with their weights; velocity out, in
    float32. Forecasts are summed in float32."""

    def __init__(self, model: PreparedNetwork, cut: Cut) -> None:
        super().__init__()
        self.model, self.cut = model, cut

    def forward(self, latents: Tensor, *inputs: Tensor) -> Tensor:
        if self.cut.blockwise:
            return self.model.decode_blocks(latents, self._by_block(inputs))
        if self.cut.sources == 0:
            (given,) = inputs
            modulations = given if self.cut.cache == "modulations" else self.model.modulations(given)
        else:
            *cached, weights, constant = inputs
            total = _weighted(cached, weights)
            if self.cut.cache == "state":
                affine = self.model.modulation_map
                assert affine.bias is not None
                whole = weights.sum(1)[:, None] * affine.bias.float()
                total = F.linear(total.to(self.model.dtype), affine.weight).float() + whole[:, None]
            modulations = (total + constant[:, None]).to(self.model.dtype)
        return self.model.decode_modulated(latents, modulations)

    def _by_block(self, inputs: tuple[Tensor, ...]) -> list[Tensor]:
        """The modulations of each block, made where they are needed where the cache is of states."""
        maps, dtype, of_states = self.model.modulation_maps(), self.model.dtype, self.cut.cache == "state"
        if self.cut.sources == 0:
            return [F.linear(inputs[0], *one) for one in maps] if of_states else list(inputs)
        *cached, weights, constant = inputs
        each = len(cached) // self.cut.sources  # tensors of one refresh
        totals = [_weighted(cached[part::each], weights) for part in range(each)]
        if of_states:
            state, whole = totals[0].to(dtype), weights.sum(1)[:, None, None]
            totals = [F.linear(state, weight).float() + whole * bias.float() for weight, bias in maps]
        constants = constant[:, None].split(self.model.config.modulation_widths, dim=-1)
        return [(total + constant).to(dtype) for total, constant in zip(totals, constants, strict=True)]


def _weighted(cached: Sequence[Tensor], weights: Tensor) -> Tensor:
    """`Σ_s weights[:, s] · cached[s]` in float32."""
    total = weights[:, 0, None, None] * cached[0].float()
    for s, one in enumerate(cached[1:], 1):
        total = total + weights[:, s, None, None] * one.float()
    return total
