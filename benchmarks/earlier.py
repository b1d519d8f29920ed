"""What networks did before they were changed for the sake of speed, to measure what that was worth."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ddt_accel.networks.prepared_layers import PreparedBlock


class JoinedWide(PreparedBlock):
    """Rotated halves joined in float32 and cast afterwards, as it was."""

    def _attention(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        b, length, _ = x.shape
        qkv = self.qkv(x).reshape(b, length, 3, self.heads, -1)
        pair = qkv[:, :, :2]
        first, second = (pair.float() if self.qk_norm is None else self.qk_norm(pair)).chunk(2, dim=-1)
        rotated = torch.cat([first * cos - second * sin, first * sin + second * cos], dim=-1).to(self.dtype)
        query, key, value = (heads.transpose(1, 2) for heads in (rotated[:, :, 0], rotated[:, :, 1], qkv[:, :, 2]))
        projected: Tensor = self.proj(self._attend(query, key, value).transpose(1, 2).reshape(b, length, -1))
        return projected


def join_wide(network: nn.Module) -> None:
    for block in network.modules():
        if isinstance(block, PreparedBlock):
            block.__class__ = JoinedWide
