"""What a few weights should be so that latents come closest to where they should be, every image counting alike.

A residual r − Σ_j b_j u_j that is linear in the weights b leaves the least

    Σ_i log ‖r^i − Σ_j b_j u_j^i‖²     over images i

by reweighted least squares: image i counts by the inverse of the error that the last round left it.
"""

from __future__ import annotations

import torch
from torch import Tensor

ROUNDS = 4


def system(inputs: Tensor, residual: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """UᵀU [B, J, J], Uᵀr [B, J] and rᵀr [B] of each image, in float64 on the CPU, for inputs u [J, B, …] and a residual
    r [B, …]."""
    u, r = inputs.flatten(2).double().transpose(0, 1), residual.flatten(1).double()
    return (u @ u.mT).cpu(), torch.einsum("bjd,bd->bj", u, r).cpu(), r.square().sum(1).cpu()


def least_log(gram: Tensor, right: Tensor, square: Tensor, *, ridge: float) -> Tensor:
    """The weights [J] of least sum of logs, for systems of all images.

    The square of a weight counts `ridge` times that of its last input.
    """
    weights = torch.zeros_like(right[0])
    for _ in range(ROUNDS):
        left = square - 2 * right @ weights + torch.einsum("i,bij,j->b", weights, gram, weights)
        importance = 1 / left.clamp_min(1e-12 * square.clamp_min(1e-30))
        importance = importance / importance.sum()
        matrix = torch.einsum("b,bij->ij", importance, gram)
        matrix += (ridge * matrix[-1, -1] + 1e-30) * torch.eye(len(weights), dtype=matrix.dtype)
        weights = torch.linalg.solve(matrix, importance @ right)
    return weights
