"""Learning with routers which heads and channels run when.

A batch goes through the complete network, and through the one that the routers leave, drawn anew for each sample. What
that costs is held at the target on average over time, so that cheap times may pay for dear ones.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor

from ddt_accel.networks.condition import ConditionEncoder
from ddt_accel.networks.dynamic.gates import gumbels
from ddt_accel.networks.dynamic.masks import BlockMasks, cost_share
from ddt_accel.networks.dynamic.routers import OPEN, Routers
from ddt_accel.networks.dynamic.slicing import narrowable
from ddt_accel.networks.split import SplitNetwork
from ddt_accel.training.dynamic_loss import cost_loss

CLOSING = 1 / 2  # of the ramp: in so many steps a router can close a gate that started open


def fresh_routers(model: SplitNetwork) -> Routers:
    """Of a complete network, all open; not of tokens."""
    config = narrowable(model.config)
    return Routers.fresh(config.hidden_size, config.num_groups, config.transformer_blocks)


@torch.no_grad()
def router_rate(model: SplitNetwork, ramp: int) -> float:
    """The peak learning rate of routers, for a ramp of so many steps.

    A step of AdamW moves every weight by about the rate, so a logit by `rate · (‖e‖₁ + 1)` for the timestep embedding
    e. At the network's own rate a gate would stay open for longer than the run.
    """
    times = torch.linspace(0, 1, 101, device=model.device)
    size = float(cast(ConditionEncoder, model).t_embedder(times).abs().sum(-1).mean())
    return OPEN / ((1 + size) * max(1.0, CLOSING * ramp))


class RoutedPass:
    """One pass through what the routers leave: a velocity like the network's, and the loss of what that costs.

    The cost is that of times of its own, evenly spread over t as sampling takes them, not of those that a batch of
    pictures is drawn at.
    """

    def __init__(self, model: SplitNetwork, routers: Routers, generator: torch.Generator, target: float) -> None:
        self.model, self.routers = cast(ConditionEncoder, model), routers
        self.generator, self.target = generator, target
        self._taken: tuple[int, int] | None = None  # samples and tokens

    def __call__(self, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        """Velocity [B, C, H, W]."""
        self._taken = len(x), self.model.config.num_tokens((x.shape[1], x.shape[2], x.shape[3]))
        return self.model.masked(x, t, y, self._masks(t))

    def cost(self) -> Tensor:
        """The loss, at as many times as the pass had samples."""
        assert self._taken is not None  # it has been run
        count, tokens = self._taken
        spread = (torch.arange(count) + torch.rand(count, generator=self.generator)) / count
        shares = cost_share(
            self._masks(spread.to(self.model.device)), narrowable(self.model.config).block_costs(tokens)
        )
        return cost_loss(shares, self.target)

    def _masks(self, t: Tensor) -> list[BlockMasks]:
        with torch.autocast(t.device.type, enabled=False):  # a logit's sixteen bits would be coarse
            embedded = self.model.t_embedder(t)
            return self.routers.masks(embedded, narrowable(self.model.config).channels[0], gumbels(self.generator))
