"""Gates that are open or closed, and yet can be learned: Gumbel-sigmoid with a straight-through gradient.

From DyDiT (Zhao et al., 2024, arXiv 2410.03456). A gate is open where its logit is above 0. In training noise decides
with it, so that a gate is open with probability `sigmoid(logit)`, whatever the temperature; that only keeps gradients
alive where the logit is large.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

TEMPERATURE = 5.0

# Two independent standard Gumbel variables of a shape.
Draw = Callable[[torch.Size], tuple[Tensor, Tensor]]


def gate(logits: Tensor, draw: Draw | None = None) -> Tensor:
    """Zeros and ones in the shape of `logits`: drawn with `draw`, else 1 where the logit is above 0.

    Drawn, `u = sigmoid((logit + G₁ − G₂) / 5)` opens a gate above ½, and gradients go as if the gate were u.
    """
    if draw is None:
        return (logits > 0).type_as(logits)
    first, second = (noise.to(logits) for noise in draw(logits.shape))
    soft = ((logits + first - second) / TEMPERATURE).sigmoid()
    # The difference is exactly 0: masks stay exactly 0 and 1.
    return (soft > 0.5).type_as(soft) + (soft - soft.detach())


def gumbels(generator: torch.Generator) -> Draw:
    """Draws from a generator on the CPU."""

    def draw(shape: torch.Size) -> tuple[Tensor, Tensor]:
        first, second = (torch.empty(shape).exponential_(generator=generator) for _ in range(2))
        return -first.log(), -second.log()

    return draw
