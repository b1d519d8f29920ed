"""Coordinates in which descent is well conditioned.

Neighbouring velocities are nearly equal, and so are neighbouring states: what one weight of a row gives, another can
take away with hardly an effect, and what is worth fitting are their small differences, which descent in the weights
themselves finds last. So the inputs of every row are made orthogonal, from the latest back (Gram–Schmidt, which for
velocities on an even grid comes near backward differences), and descent goes along those.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ddt_accel.fitting.scalars import Scalars
from ddt_accel.fitting.trajectory import fitted_trajectory
from ddt_accel.networks.ddt import DDT

# A step along a direction that is a part r of its input, relative to the latest, moves what a row gives by r to this
# power. With 1, weights move alike, with 0 latents do; in between descent was fastest.
EXPONENT = 0.5
# Least part of an input that counts as a direction of its own; what is less is rounding.
LEAST = 1e-4
# The parameters of `Scalars` whose rows are linear in their inputs.
COORDINATED = ("integrator", "forecasts")


class Coordinates:
    """Linear maps from coordinates to the weights of every row, for the parameters in `COORDINATED`.

    `bases` are by name, [E, E, E] and [branches, E, E, E]: of every row, weights by coordinates; 0 where a row has no
    weight to fit. A parameter without a basis is its own coordinates.
    """

    def __init__(self, bases: dict[str, Tensor]) -> None:
        self.bases = bases

    @classmethod
    def along(
        cls, model: DDT, scalars: Scalars, noise: Tensor, labels: Tensor, *, autocast: bool = False
    ) -> Coordinates:
        """Those of the present trajectory of some images: `noise` [B, C, H, W], `labels` [B]."""
        with torch.no_grad():
            passed = fitted_trajectory(model, scalars, noise, labels, autocast=autocast)
        gram = _gram(dict(enumerate(passed.velocities)), scalars.count)
        integrator = torch.stack([row_basis(gram, range(k + 1)) for k in range(scalars.count)])
        forecasts = []
        for side in range(len(scalars.forecasts)):
            states = {r: state for (own, r), state in passed.modulations.items() if own == side}
            if scalars.means is not None:  # forecasts are of what differs from them
                states = {r: state - scalars.means[r] for r, state in states.items()}
            gram, rows = _gram(states, scalars.count), []
            for evaluation in scalars.program.evaluations:
                forecast = [branch.forecast for branch in evaluation.branches[side : side + 1] if not branch.encode]
                rows.append(row_basis(gram, [r for row in forecast for r, _ in row]))
            forecasts.append(torch.stack(rows))
        bases = zip(COORDINATED, (integrator, torch.stack(forecasts)), strict=True)
        return cls({name: basis.to(scalars.gaps.device) for name, basis in bases})

    def gradient(self, name: str, gradient: Tensor) -> Tensor:
        """With respect to the coordinates, from that with respect to the weights."""
        basis = self.bases.get(name)
        return gradient if basis is None else torch.einsum("...ij,...i->...j", basis, gradient)

    def change(self, name: str, step: Tensor) -> Tensor:
        """Of the weights, by a step in the coordinates."""
        basis = self.bases.get(name)
        return step if basis is None else torch.einsum("...ij,...j->...i", basis, step)


def _gram(inputs: dict[int, Tensor], count: int) -> Tensor:
    """Inner products [count, count] of those that there are, float64."""
    flat = {k: value.flatten() for k, value in inputs.items()}
    gram = torch.zeros(count, count, dtype=torch.float64)
    for k, one in flat.items():
        for j, other in flat.items():
            if j <= k:
                gram[j, k] = gram[k, j] = float(one.double() @ other.double())
    return gram


def row_basis(gram: Tensor, inputs: Sequence[int]) -> Tensor:
    """Of a row that draws on `inputs`, in ascending order: [count, count], 0 elsewhere. `gram` [count, count] has their
    inner products."""
    basis = torch.zeros_like(gram)
    if not inputs or gram[inputs[-1], inputs[-1]] == 0:
        return basis
    latest_first = torch.tensor(inputs).flip(0)
    own = gram[latest_first][:, latest_first] / gram[latest_first[0], latest_first[0]]
    lower = torch.linalg.cholesky(own + LEAST**2 * torch.eye(len(own), dtype=own.dtype))
    # The inputs are L u, with u orthogonal, so that the weights w give (wᵀ L) u: along L⁻ᵀ, one u alone changes.
    scale = torch.diag(lower.diagonal() ** EXPONENT)
    basis[latest_first[:, None], latest_first] = torch.linalg.solve_triangular(lower.mT, scale, upper=True)
    return basis
