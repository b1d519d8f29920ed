"""What of a transformer block takes part: some of its heads, some channels of its MLP, some tokens of that.

Heads do not meet before the attention's last map, channels of SwiGLU not before the MLP's. So a mask on either is the
same as leaving out their rows and columns; `slicing` does that.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


class TokenGate:
    """Which tokens a block's MLP takes: asked when the block gets there, and remembered for the cost."""

    def __init__(self, decide: Callable[[Tensor], Tensor]) -> None:
        self._decide = decide
        self.taken: Tensor | None = None  # [B, L, 1], once it was asked

    def __call__(self, x: Tensor) -> Tensor:
        """The mask [B, L, 1] for the residual stream after attention [B, L, D]."""
        self.taken = self._decide(x)
        return self.taken


@dataclass(frozen=True, kw_only=True)
class BlockMasks:
    """Zeros and ones: `heads` [B or 1, H], `channels` [B or 1, F], and `tokens`, where not all are taken.

    A token that the MLP does not take keeps its residual as it is.
    """

    heads: Tensor
    channels: Tensor
    tokens: TokenGate | None = None


def spread(groups: Tensor, channels: int) -> Tensor:
    """A mask of groups [B, G] over `channels` in order: [B, channels].

    Groups follow each other and are as large as each other, to one channel where they do not divide the channels.
    """
    return groups[..., group_of_each(channels, groups.shape[-1]).to(groups.device)]


def group_of_each(channels: int, groups: int) -> Tensor:
    """[channels]: which group each is in."""
    return torch.arange(channels) * groups // channels


def cost_share(masks: Sequence[BlockMasks], costs: Sequence[tuple[float, float]]) -> Tensor:
    """What blocks cost under `masks`, as a part of what they cost complete: [B or 1].

    `costs` are each block's multiply-adds in attention and in the MLP. Attention as a whole, scores included, goes with
    the heads; the MLP goes with channels times tokens, of those that were asked for them.
    """
    spent = torch.zeros(())
    for mask, (attention, mlp) in zip(masks, costs, strict=True):
        taken = mask.tokens.taken if mask.tokens is not None else None
        tokens = 1.0 if taken is None else taken.flatten(1).mean(-1)
        spent = spent + attention * mask.heads.mean(-1) + mlp * mask.channels.mean(-1) * tokens
    return spent / sum(attention + mlp for attention, mlp in costs)
