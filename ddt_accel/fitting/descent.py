"""Adam along coordinates, its rate rising at first and then falling to 0 by a cosine."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from ddt_accel.errors import NumericsError
from ddt_accel.fitting.coordinates import Coordinates

# Iterations until the learning rate is reached: Adam's first steps are of full length in every direction, whatever the
# gradient is worth.
WARM_UP = 10
MOMENTS = ("step", "exp_avg", "exp_avg_sq")
# The share of its rate that a descent goes on with after it led away.
SLOWER = 0.25


class Descent:
    """Moves `parameters` by their gradients, `iterations` times in all."""

    def __init__(
        self, parameters: Mapping[str, Tensor], coordinates: Coordinates, *, learning_rate: float, iterations: int
    ) -> None:
        self.parameters, self.coordinates = parameters, coordinates
        self.learning_rate, self.iterations, self.iteration = learning_rate, iterations, 0
        self.began = 0  # the iteration at which it began, or began anew
        # What the optimiser sees: where the parameters are in coordinates, counted from where they just were.
        self._moves = {name: torch.zeros_like(value, requires_grad=True) for name, value in parameters.items()}
        self._optimizer = torch.optim.Adam(self._moves.values(), betas=(0.9, 0.95))

    def step(self) -> None:
        """One step down the parameters' gradients, which are cleared."""
        gradients = {
            name: torch.zeros_like(value) if value.grad is None else value.grad
            for name, value in self.parameters.items()
        }
        for value in self.parameters.values():
            value.grad = None
        if not all(torch.isfinite(gradient).all() for gradient in gradients.values()):
            raise NumericsError(
                f"The gradient is not finite at iteration {self.iteration}; lower the learning rate, or fit in float32."
            )
        for name, gradient in gradients.items():
            self._moves[name].grad = self.coordinates.gradient(name, gradient)
        warmth = min(1.0, (self.iteration + 1 - self.began) / WARM_UP)
        decay = 0.5 * (1 + math.cos(math.pi * self.iteration / self.iterations))
        for group in self._optimizer.param_groups:
            group["lr"] = self.learning_rate * warmth * decay
        with torch.no_grad():
            for move in self._moves.values():
                move.zero_()
            self._optimizer.step()
            for name, value in self.parameters.items():
                value += self.coordinates.change(name, self._moves[name])
        self.iteration += 1

    def slow_down(self) -> None:
        """Begins anew where the parameters are, at a lower rate."""
        self.learning_rate *= SLOWER
        self.began = self.iteration
        self._optimizer.state.clear()

    def state(self) -> dict[str, Tensor]:
        """All that the coming steps depend on, beside the parameters, the rate and the iterations."""
        kept = {f"basis.{name}": basis for name, basis in self.coordinates.bases.items()}
        for name, move in self._moves.items():
            kept.update({f"{moment}.{name}": value for moment, value in self._optimizer.state[move].items()})
        return kept

    def restore(self, state: dict[str, Tensor], iteration: int, began: int, learning_rate: float) -> None:
        """Continues from `state()` after so many iterations; raises KeyError where something is missing."""
        self.iteration, self.began, self.learning_rate = iteration, began, learning_rate
        if iteration == began:
            return  # with nothing behind it
        for name, move in self._moves.items():
            self._optimizer.state[move] = {moment: state[f"{moment}.{name}"] for moment in MOMENTS}
