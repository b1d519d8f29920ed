"""What every network of the family is: an encoder whose state changes slowly, and a decoder that sees it alone.

`velocity(x, t, y) = decode(x, encode(x, t, y))`. The decoder sees its condition only through an affine map of the
encoder state, its *modulations* `m = W s + b`; they are constant between refreshes, so they are a value of their own
here: `decode(x, s) = decode_modulated(x, modulations(s))`.
"""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor, nn

from ddt_accel.errors import ConfigError
from ddt_accel.networks.config import LatentShape, Source, SplitConfig


class SplitNetwork(nn.Module):
    """Time runs from noise (t = 0) to data (t = 1); the network predicts `v = x_1 − ε`.

    Parameter names are those of the published checkpoints (`load_state_dict(strict=True)`).
    """

    config: SplitConfig
    source: Source | None  # set by load_model

    def forward(self, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        """Velocity [B, C, H, W] of the latents x [B, C, H, W] at times t [B] for labels y [B]."""
        return self.decode(x, self.encode(x, t, y))

    @abstractmethod
    def encode(self, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        """The encoder state [B, L, D]."""

    @property
    @abstractmethod
    def modulation_maps(self) -> list[nn.Linear]:
        """The affine maps of the state that follow each other in its modulations."""

    def modulations(self, state: Tensor) -> Tensor:
        """All that the decoder reads of a state [B, L, D]: [B, L, M]."""
        return torch.cat([affine(state) for affine in self.modulation_maps], dim=-1)

    @property
    def modulation_bias(self) -> Tensor:
        """The modulations [M] of a state of zeros."""
        return torch.cat([affine.bias.detach() for affine in self.modulation_maps])

    @abstractmethod
    def decode_modulated(self, x: Tensor, modulations: Tensor) -> Tensor:
        """Velocity [B, C, H, W] of x [B, C, H, W] under cached modulations [B, L, M]."""

    def decode(self, x: Tensor, state: Tensor) -> Tensor:
        """Velocity [B, C, H, W] of x [B, C, H, W] under an encoder state [B, L, D]."""
        return self.decode_modulated(x, self.modulations(state))

    def computed_tables(self) -> dict[str, Tensor]:
        """Tensors that published files may hold, by their names there, and that follow from the settings."""
        return {}

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        return next(self.parameters()).dtype


def latent_shape_of(model: SplitNetwork, given: LatentShape | None = None) -> LatentShape:
    """[C, H, W] as `given`, else as the model has them; raises ConfigError where neither says."""
    known = given or model.config.fixed_shape or (model.source.latent_shape if model.source else None)
    if known is None:
        raise ConfigError(
            "The model does not say which latents it is for; give --latent-shape C,H,W (in Python latent_shape=)."
        )
    return known
