"""What a network that leaves parts out is trained for: its error, the complete network's, and what it costs.

From DyDiT (Zhao et al., 2024, arXiv 2410.03456), as its code has it: the cost weighs twice, and only the mean over the
batch is held at the target, so that cheap times may pay for dear ones.
"""

from __future__ import annotations

from torch import Tensor

COST_WEIGHT = 2.0
RAMP_FROM, OF_RAMP = 100, 1 / 10  # steps at the complete cost, at most; of a short ramp this part


def target_at(step: int, target: float, ramp: int) -> float:
    """The share of the complete cost that is asked for at a step: from 1 down to `target` over `ramp` steps."""
    if step < min(RAMP_FROM, OF_RAMP * ramp):
        return 1.0
    return 1 - (1 - target) * min(step, ramp) / ramp if ramp else target


def cost_loss(shares: Tensor, target: float) -> Tensor:
    """`2 (mean share − target)²` of the shares [B] that a batch's samples take of the complete cost."""
    return COST_WEIGHT * (shares.mean() - target).square()


def matching_loss(dynamic: Tensor, complete: Tensor, truth: Tensor) -> Tensor:
    """Mean squared errors of the network with parts left out and of the complete one, both against the truth."""
    return (dynamic - truth).square().mean() + (complete - truth).square().mean()
