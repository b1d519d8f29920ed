"""Learning with routers which heads and channels run when.

A batch goes through the complete network, and through the one that the routers leave, drawn anew for each sample; what
that costs is held at the target over the batch, so that cheap times may pay for dear ones.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor

from ddt_accel.networks.condition import ConditionEncoder
from ddt_accel.networks.dynamic.gates import Draw
from ddt_accel.networks.dynamic.masks import cost_share
from ddt_accel.networks.dynamic.routers import OPEN, Routers
from ddt_accel.networks.dynamic.slicing import narrowable
from ddt_accel.networks.split import SplitNetwork
from ddt_accel.training.dynamic_loss import cost_loss

# The ramp takes a quarter of the steps, and in half of that a router can close a gate that started open.
RAMP, CLOSING = 1 / 4, 1 / 8


def fresh_routers(model: SplitNetwork) -> Routers:
    """Of a complete network, all open; not of tokens."""
    config = narrowable(model.config)
    return Routers.fresh(config.hidden_size, config.num_groups, config.transformer_blocks)


@torch.no_grad()
def router_rate(model: SplitNetwork, steps: int) -> float:
    """The peak learning rate of routers.

    A step of AdamW moves every weight by about the rate, so a logit by `rate · (‖e‖₁ + 1)` for the timestep embedding
    e. At the network's own rate a gate would stay open for longer than the run.
    """
    times = torch.linspace(0, 1, 101, device=model.device)
    size = cast(ConditionEncoder, model).t_embedder(times).abs().sum(-1).mean().item()
    return OPEN / ((1 + size) * CLOSING * steps)


class RoutedPass:
    """One pass through what the routers leave; a velocity like the network's, and what it cost afterwards."""

    def __init__(self, model: SplitNetwork, routers: Routers, draw: Draw, target: float) -> None:
        self.model, self.routers = cast(ConditionEncoder, model), routers
        self.draw, self.target = draw, target
        self.shares: Tensor | None = None

    def __call__(self, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        """Velocity [B, C, H, W]."""
        config = narrowable(self.model.config)
        with torch.autocast(x.device.type, enabled=False):  # a logit's sixteen bits would be coarse
            masks = self.routers.masks(self.model.t_embedder(t), config.channels[0], self.draw)
        tokens = self.model.config.num_tokens((x.shape[1], x.shape[2], x.shape[3]))
        self.shares = cost_share(masks, config.block_costs(tokens))
        return self.model.masked(x, t, y, masks)

    def cost(self) -> Tensor:
        """The loss of what the pass cost."""
        assert self.shares is not None  # it has been run
        return cost_loss(self.shares, self.target)
