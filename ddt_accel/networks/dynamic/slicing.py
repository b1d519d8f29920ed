"""Networks of which parts are left out: what remains is an ordinary network of the family.

It has fewer heads, and fewer channels in its MLPs, and its configuration says how many each block has. So whatever
takes a network takes it: backends, exports, calibrations.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from ddt_accel.errors import ConfigError
from ddt_accel.networks.config import ConditionConfig, SplitConfig, swiglu_width
from ddt_accel.networks.dynamic.masks import BlockMasks
from ddt_accel.networks.families import published_of, unfilled
from ddt_accel.networks.split import SplitNetwork


def narrowable(config: SplitConfig) -> ConditionConfig:
    """The settings of a network whose blocks are DDT's, complete; raises ConfigError for any other."""
    if not isinstance(config, ConditionConfig):
        raise ConfigError(
            f"Heads and channels can be left out of blocks of DDT and PixNerd, and this network is one of "
            f"{published_of(config).TITLE}; give one of theirs."
        )
    return config


def taken(model: SplitNetwork, heads: Sequence[Tensor], channels: Sequence[Tensor]) -> SplitNetwork:
    """A network with these heads and channels alone, in this order: indices for each transformer block.

    With all of them it is the same network in another order. It shares memory where its weights are the same, or the
    first of them: do not train it. Raises ConfigError for networks with other blocks, and where nothing is left of a
    block's heads or channels.
    """
    config = narrowable(model.config)
    counts = [tuple(len(one) for one in kinds) for kinds in (heads, channels)]
    if 0 in counts[0] + counts[1]:
        raise ConfigError("A block has no head or no channel left; leave at least one of each.")
    complete = all(len(one) == config.num_groups for one in heads) and all(
        len(one) == swiglu_width(config.hidden_size) for one in channels
    )
    # The order is another one, so that routes would name others.
    kept = replace(config, block_routes=None) if complete else config.narrowed(*counts)  # type: ignore[type-var]
    tensors = {name: tensor.detach() for name, tensor in model.state_dict().items()}
    for index, kept_of_block in enumerate(zip(heads, channels, strict=True)):
        of_heads, of_channels = map(_selection, kept_of_block)
        block = f"blocks.{index}"
        rows, columns = f"{block}.attn.qkv.weight", f"{block}.attn.proj.weight"
        by_head = tensors[rows].unflatten(0, (3, -1, config.head_size))  # rows are (q, k, v) × head × d
        tensors[rows] = by_head[:, of_heads].flatten(0, 2)
        tensors[columns] = tensors[columns].unflatten(1, (-1, config.head_size))[:, of_heads].flatten(1)
        for name in ("w1", "w3"):
            tensors[f"{block}.mlp.{name}.weight"] = tensors[f"{block}.mlp.{name}.weight"][of_channels]
        tensors[f"{block}.mlp.w2.weight"] = tensors[f"{block}.mlp.w2.weight"][:, of_channels]
    network = unfilled(kept)  # type: ignore[arg-type]  # a protocol cannot say that a class has it
    network.load_state_dict(tensors, assign=True)
    for name, buffer in model.named_buffers():  # which no width changes
        module, _, own = name.rpartition(".")
        network.get_submodule(module).register_buffer(own, buffer, persistent=name in tensors)
    return network.to(device=model.device, dtype=model.dtype).train(model.training)


def _selection(indices: Tensor) -> Tensor | slice:
    """Of the first ones a slice, which is a view."""
    count = len(indices)
    return slice(count) if torch.equal(indices, torch.arange(count, device=indices.device)) else indices


def unmasked(model: SplitNetwork, masks: Sequence[BlockMasks]) -> SplitNetwork:
    """A network without what is masked everywhere; masks are of one time, [1, H] and [1, F], and take all tokens.

    It is equal to the masked network to rounding. Raises ConfigError as `taken` does.
    """
    heads = [mask.heads[0].nonzero().flatten() for mask in masks]
    channels = [mask.channels[0].nonzero().flatten() for mask in masks]
    return taken(model, heads, channels)


def ranked(model: SplitNetwork) -> SplitNetwork:
    """The same network, its heads and channels in the order of their magnitude, the largest first.

    A head's is that of the map that it applies to values, `‖proj_h V_h‖`; a channel's the product of the norms of its
    weights. Both are independent of how a scale is shared between the factors.
    """
    config = narrowable(model.config)
    heads, channels = [], []
    for index in range(config.transformer_blocks):
        block = model.get_submodule(f"blocks.{index}")
        qkv, proj, w1, w3, w2 = (
            block.get_parameter(f"{name}.weight").detach().double()
            for name in ("attn.qkv", "attn.proj", "mlp.w1", "mlp.w3", "mlp.w2")
        )
        values = qkv.unflatten(0, (3, -1, config.head_size))[2]  # [H, d, D]
        outward = proj.unflatten(1, (-1, config.head_size)).transpose(0, 1)  # [H, D, d]
        heads.append(_descending(torch.linalg.matrix_norm(outward @ values)))
        channels.append(_descending(w1.norm(dim=1) * w3.norm(dim=1) * w2.norm(dim=0)))
    return taken(model, heads, channels)


def _descending(magnitudes: Tensor) -> Tensor:
    return magnitudes.argsort(descending=True, stable=True)
