"""Inner products of large vectors, a part of them at a time."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

# They are accumulated in float64, this many values at a time.
_CHUNK = 50 << 20


def inner_products(states: Tensor, *, unit: bool = False) -> Tensor:
    """[E, E] float64: Σ over tokens of ⟨s_i, s_j⟩ for states [E, T, D]; of cosines, where they are made `unit`."""
    total = torch.zeros((len(states), len(states)), dtype=torch.float64, device=states.device)
    for chunk in states.split(max(1, _CHUNK // (len(states) * states.shape[-1])), dim=1):
        wide = chunk.double()
        if unit:
            wide = F.normalize(wide, dim=-1)
        rows = wide.flatten(1)
        total += rows @ rows.T
    return total
