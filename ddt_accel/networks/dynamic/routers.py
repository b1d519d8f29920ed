"""Who decides what of a block takes part: DyDiT's routers (Zhao et al., 2024, arXiv 2410.03456).

Heads and groups of channels are decided by the time alone, so that a table over the steps of a trajectory is known
beforehand. The router reads the timestep embedding itself, before SiLU and without the label. Tokens are decided by
their own residual. Parameters have DyDiT's names.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from ddt_accel.errors import CheckpointError
from ddt_accel.networks.dynamic.gates import Draw, gate
from ddt_accel.networks.dynamic.masks import BlockMasks, TokenGate, spread

OPEN = 15.0  # logits at the start: closed once in three million draws
OPEN_TOKENS = 35.0
TOKEN_WIDTH = 16  # of a token router's hidden layer, as a part of the network's


class TimeRouter(nn.Module):
    """Gates of G groups by the timestep embedding. Without a gate of its own the first group is always on."""

    def __init__(self, hidden_size: int, groups: int, *, gates: int | None = None) -> None:
        super().__init__()
        self.groups = groups
        self.router = nn.Linear(hidden_size, groups - 1 if gates is None else gates)
        nn.init.xavier_uniform_(self.router.weight)
        nn.init.constant_(self.router.bias, OPEN)

    def forward(self, time: Tensor, draw: Draw | None = None) -> Tensor:
        """The mask [B, G] for embeddings [B, D]; `draw` as `gate` takes it."""
        gates = gate(self.router(time), draw)
        always = gates.new_ones(len(gates), self.groups - gates.shape[-1])
        return torch.cat([always, gates], dim=-1)


class TokenRouter(nn.Module):
    """Gates of tokens by the residual stream [B, L, D]."""

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        inner = max(1, hidden_size // TOKEN_WIDTH)
        first, last = nn.Linear(hidden_size, inner), nn.Linear(inner, 1)
        for layer, bias in ((first, 0.0), (last, OPEN_TOKENS)):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.constant_(layer.bias, bias)
        self.mlp_head = nn.Sequential(first, nn.ReLU(), last)

    def forward(self, x: Tensor, draw: Draw | None = None) -> Tensor:
        """The mask [B, L, 1]."""
        return gate(self.mlp_head(x), draw)

    def best(self, x: Tensor, count: int) -> Tensor:
        """The mask [B, L, 1] of the `count` tokens of each sample with the largest logits; shapes stay static."""
        logits: Tensor = self.mlp_head(x)
        chosen = logits.topk(count, dim=1, sorted=False).indices
        return torch.zeros_like(logits).scatter(1, chosen, 1.0)


class BlockRouters(nn.Module):
    """The routers of one block; those of tokens are for the encoder alone."""

    def __init__(self, heads: TimeRouter, channels: TimeRouter, tokens: TokenRouter | None) -> None:
        super().__init__()
        self.attn_rate, self.mlp_rate = heads, channels
        if tokens is not None:
            self.token_selection = tokens


class Routers(nn.Module):
    """Routers of all blocks of a network, the encoder's first; `blocks.<i>.attn_rate.router.weight` and so on."""

    def __init__(self, blocks: list[BlockRouters]) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)

    @classmethod
    def fresh(cls, hidden_size: int, groups: int, blocks: int, *, with_tokens: int = 0) -> Routers:
        """All of them open; the first `with_tokens` blocks have routers of tokens, too."""
        return cls(
            [
                BlockRouters(
                    TimeRouter(hidden_size, groups),
                    TimeRouter(hidden_size, groups),
                    TokenRouter(hidden_size) if index < with_tokens else None,
                )
                for index in range(blocks)
            ]
        )

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor], groups: int, blocks: int, hidden_size: int) -> Routers:
        """From a checkpoint's tensors, in either layout: `groups − 1` gates, or as the older code has it, `groups`.

        Raises CheckpointError where routers are missing, have other sizes, or hold what is no number.
        """
        made = []
        for index in range(blocks):
            kinds = {}
            for kind in ("attn_rate", "mlp_rate"):
                name = f"blocks.{index}.{kind}.router.weight"
                if name not in tensors or f"blocks.{index}.{kind}.router.bias" not in tensors:
                    raise CheckpointError(f"The checkpoint lacks the router {name}; give one that has all.")
                gates = len(tensors[name]) if tensors[name].ndim else 0
                if gates not in (groups - 1, groups):
                    raise CheckpointError(
                        f"The router {name} has {gates} gates for {groups} groups; {groups - 1} or {groups} are read."
                    )
                kinds[kind] = TimeRouter(hidden_size, groups, gates=gates)
            routed = f"blocks.{index}.token_selection.mlp_head.0.weight" in tensors
            tokens = TokenRouter(hidden_size) if routed else None
            made.append(BlockRouters(kinds["attn_rate"], kinds["mlp_rate"], tokens))
        routers = cls(made)
        expected = routers.state_dict()
        for name, tensor in expected.items():
            found = tensors.get(name)
            if found is None:
                raise CheckpointError(f"The checkpoint lacks the router {name}; give one that has all.")
            if found.shape != tensor.shape or not found.is_floating_point() or not found.isfinite().all():
                raise CheckpointError(
                    f"The router {name} is {found.dtype}{list(found.shape)}; expected {list(tensor.shape)} numbers, "
                    "all finite."
                )
        routers.load_state_dict({name: tensors[name].float() for name in expected})
        return routers

    def table(self, time: Tensor) -> tuple[Tensor, Tensor]:
        """Masks of heads and of groups, each [T, blocks, G], for timestep embeddings [T, D]: known before sampling."""
        kinds = ([block.get_submodule(kind) for block in self.blocks] for kind in ("attn_rate", "mlp_rate"))
        heads, groups = (torch.stack([router(time) for router in routers], dim=1) for routers in kinds)
        return heads, groups

    def masks(
        self, time: Tensor, channels: int, draw: Draw | None = None, *, keep: int | None = None
    ) -> list[BlockMasks]:
        """What takes part at timestep embeddings [B, D], in blocks with `channels` in their MLPs.

        `draw` gives noise in training. Token routers gate by noise or by their logits, or with `keep` take that many
        tokens of each sample.
        """
        return [
            BlockMasks(
                heads=block.get_submodule("attn_rate")(time, draw),
                channels=spread(block.get_submodule("mlp_rate")(time, draw), channels),
                tokens=_token_gate(block, draw, keep),
            )
            for block in self.blocks
        ]


def _token_gate(block: nn.Module, draw: Draw | None, keep: int | None) -> TokenGate | None:
    router = getattr(block, "token_selection", None)
    if router is None:
        return None
    return TokenGate(lambda x: router(x, draw) if keep is None else router.best(x, keep))
