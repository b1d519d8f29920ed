"""Coordinates in which descent is well conditioned.

Neighbouring velocities are nearly equal, and so are neighbouring states: what one weight of a row gives, another can
take away with hardly an effect, and what is worth fitting are their small differences, which descent in the weights
themselves finds last. So the inputs of every row are made orthogonal, from the latest back (Gram–Schmidt, which for
velocities on an even grid comes near backward differences), and descent goes along those.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ddt_accel.errors import NumericsError
from ddt_accel.fitting.scalars import Scalars
from ddt_accel.fitting.trajectory import fitted_trajectory
from ddt_accel.networks.split import SplitNetwork

# A unit along what is new in an input, of length r, changes what the row gives by r to this power. With 1, that is a
# unit of the input's own weight; with 0, all coordinates change it alike. Trials were best in between.
EXPONENT = 0.5
# Where less than this is new in an input, it is left out: what tells it from the others is rounding.
LEAST = 1e-3
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
        cls,
        model: SplitNetwork,
        scalars: Scalars,
        inputs: Iterable[tuple[Tensor, Tensor]],
        *,
        autocast: bool = False,
        guide: SplitNetwork | None = None,
        narrow: Mapping[float, SplitNetwork] | None = None,
    ) -> Coordinates:
        """Those of the present trajectories of some images: noise [B, C, H, W] and labels [B] of each batch.

        A row that both guidance branches share is taken by the conditional one's states. Raises NumericsError where a
        trajectory is not finite.
        """
        count, sides = scalars.count, range(len(scalars.forecasts))
        of_velocities, of_states = np.zeros((count, count)), np.zeros((len(sides), count, count))
        for noise, labels in inputs:
            with torch.no_grad():
                passed = fitted_trajectory(model, scalars, noise, labels, autocast=autocast, guide=guide, narrow=narrow)
            _add_products(of_velocities, dict(enumerate(passed.velocities)))
            for side in sides:
                states = {r: state for (own, r), state in passed.modulations.items() if own == side}
                if scalars.means_of(side) is not None:  # forecasts are of what differs from them
                    means = scalars.source_means_of(side)
                    states = {r: state - means[r] for r, state in states.items()}
                _add_products(of_states[side], states)
        if not (np.isfinite(of_velocities).all() and np.isfinite(of_states).all()):
            raise NumericsError("The trajectory to start from leaves the finite numbers; start from another one.")
        integrator = np.stack([row_basis(of_velocities, range(k + 1)) for k in range(count)])
        forecasts = np.zeros((len(sides), count, count, count))
        for k, evaluation in enumerate(scalars.program.evaluations):
            for side, branch in zip(sides, evaluation.branches, strict=False):
                if branch.corrected or not branch.encode:
                    forecasts[side, k] = row_basis(of_states[side], [r for r, _ in branch.forecast])
        bases = zip(COORDINATED, (integrator, forecasts), strict=True)
        return cls({name: torch.from_numpy(basis).to(scalars.gaps.device) for name, basis in bases})

    def gradient(self, name: str, gradient: Tensor) -> Tensor:
        """With respect to the coordinates, from that with respect to the weights."""
        basis = self.bases.get(name)
        return gradient if basis is None else torch.einsum("...ij,...i->...j", basis, gradient)

    def change(self, name: str, step: Tensor) -> Tensor:
        """Of the weights, by a step in the coordinates."""
        basis = self.bases.get(name)
        return step if basis is None else torch.einsum("...ij,...j->...i", basis, step)


def _add_products(gram: NDArray[np.float64], inputs: dict[int, Tensor]) -> None:
    """Adds the inputs' inner products to `gram` [E, E], at their indices."""
    for k, one in inputs.items():
        wide = one.flatten().double()
        for j, other in inputs.items():
            if j <= k:
                product = float(wide @ other.flatten().double())
                gram[k, j] += product
                if j < k:
                    gram[j, k] += product


def row_basis(gram: NDArray[np.float64], inputs: Sequence[int]) -> NDArray[np.float64]:
    """Of a row that draws on `inputs`, ascending: [E, E], column j by what is new in input j. `gram` [E, E] has the
    inner products of all inputs; lengths are relative to the longest of the row."""
    basis, directions = np.zeros_like(gram), list[NDArray[np.float64]]()
    longest = max((gram[j, j] for j in inputs), default=0.0)
    if longest == 0:
        return basis
    products = gram / longest
    for j in reversed(inputs):
        new = np.zeros(len(gram))
        new[j] = 1.0
        for direction in directions:
            new -= (direction @ products @ new) * direction
        length = math.sqrt(max(float(new @ products @ new), 0.0))
        if length > LEAST:
            directions.append(new / length)
            basis[:, j] = new / length * length**EXPONENT
    return basis
