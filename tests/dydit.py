"""The small DiT of `reference/dydit_small`, its routers, gates and masks made of this package's."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from ddt_accel.networks.dynamic.masks import BlockMasks
from ddt_accel.networks.dynamic.routers import Routers
from ddt_accel.networks.layers import modulate

DEPTH, WIDTH, HEADS, TOKENS, CHANNELS = 4, 64, 4, 16, 256
COSTS = [(4 * WIDTH**2 * TOKENS + 2 * TOKENS**2 * WIDTH, 8 * WIDTH**2 * TOKENS)] * DEPTH


class DiT:
    """A function of weights under their official names."""

    def __init__(self, weights: dict[str, Tensor]) -> None:
        self.weights = weights
        self.routers = Routers.of(weights, groups=HEADS, blocks=DEPTH, hidden_size=WIDTH)

    def linear(self, name: str, x: Tensor) -> Tensor:
        return F.linear(x, self.weights[f"{name}.weight"], self.weights[f"{name}.bias"])

    def time(self, t: Tensor) -> Tensor:
        frequencies = torch.exp(-math.log(10_000) * torch.arange(128, dtype=torch.float32) / 128)
        angles = t.float()[:, None] * frequencies
        features = torch.cat([angles.cos(), angles.sin()], dim=-1)
        return self.linear("t_embedder.mlp.2", F.silu(self.linear("t_embedder.mlp.0", features)))

    def __call__(self, x: Tensor, t: Tensor, y: Tensor, masks: Sequence[BlockMasks] | None = None) -> Tensor:
        projection = (self.weights[f"x_embedder.proj.{part}"] for part in ("weight", "bias"))
        tokens = F.conv2d(x, *projection, stride=2).flatten(2).transpose(1, 2) + self.weights["pos_embed"]
        condition = F.silu(self.time(t) + self.weights["y_embedder.embedding_table.weight"][y])
        for index in range(DEPTH):
            tokens = self.block(index, tokens, condition, masks[index] if masks else None)
        modulations = self.linear("final_layer.adaLN_modulation.1", condition)[:, None]
        shift, scale = modulations.chunk(2, dim=-1)
        drawn = self.linear("final_layer.linear", modulate(norm(tokens), shift, scale))
        drawn = drawn.reshape(len(x), 4, 4, 2, 2, 8)  # rows, columns, then a patch's, then channels
        return drawn.permute(0, 5, 1, 3, 2, 4).reshape(len(x), 8, 8, 8)

    def block(self, index: int, x: Tensor, condition: Tensor, masks: BlockMasks | None) -> Tensor:
        name = f"blocks.{index}"
        modulations = self.linear(f"{name}.adaLN_modulation.1", condition)[:, None]
        shift1, scale1, gate1, shift2, scale2, gate2 = modulations.chunk(6, dim=-1)
        qkv = self.linear(f"{name}.attn.qkv", modulate(norm(x), shift1, scale1))
        q, k, v = qkv.reshape(len(x), TOKENS, 3, HEADS, -1).permute(2, 0, 3, 1, 4)
        heads = F.scaled_dot_product_attention(q, k, v)
        if masks is not None:
            heads = heads * masks.heads[:, :, None, None]
        x = x + gate1 * self.linear(f"{name}.attn.proj", heads.transpose(1, 2).flatten(2))
        hidden = self.linear(f"{name}.mlp.fc1", modulate(norm(x), shift2, scale2))
        if masks is not None:
            assert masks.tokens is not None
            hidden = hidden * masks.channels[:, None]
            gate2 = gate2 * masks.tokens(x)
        return x + gate2 * self.linear(f"{name}.mlp.fc2", F.gelu(hidden, approximate="tanh"))


def norm(x: Tensor) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], eps=1e-6)
