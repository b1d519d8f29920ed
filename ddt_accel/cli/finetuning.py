"""What `train --from` begins with, and what it tells at its end."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
from rich.table import Table

from ddt_accel.cli.options import typed

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from ddt_accel.networks.config import TrainableConfig
    from ddt_accel.networks.split import SplitNetwork
    from ddt_accel.training.images import ImageSet

IMAGES, RATE = 256_000, 3e-4  # where nothing is said
TARGET = 0.5
_OF_THE_NETWORK = ("family", "hidden_size", "heads", "encoder_blocks", "decoder_blocks", "decoder_width", "patch")


@dataclass(frozen=True, kw_only=True)
class Beginning:
    """A network to go on from, the widths that it is to learn beside its own, what routers are to leave of its cost,
    and the side of its pictures."""

    model: SplitNetwork
    widths: tuple[float, ...]
    target: float | None
    size: int

    @property
    def config(self) -> TrainableConfig:
        from ddt_accel.training.start import trainable_config

        return trainable_config(self.model)

    @property
    def identity(self) -> str:
        """Of the checkpoint."""
        assert self.model.source is not None  # as it was loaded
        return self.model.source.sha256


def beginning(ctx: typer.Context, start: str | None, dynamic: str | None, target: float | None) -> Beginning | None:
    """The checkpoint of --from, checked; None for a network from scratch. Raises ConfigError for what does not fit."""
    from ddt_accel.errors import ConfigError

    if dynamic not in (None, "nested", "routers"):
        raise ConfigError(f"--dynamic is {dynamic!r}; choose nested or routers.")
    if target is not None and dynamic is None:
        raise ConfigError("--target is what --dynamic is to leave of the network; give both, or neither.")
    if start is None:
        if dynamic is not None:
            raise ConfigError("--dynamic fine-tunes a checkpoint; give one with --from.")
        return None
    if shaping := [f"--{name.replace('_', '-')}" for name in _OF_THE_NETWORK if typed(ctx, name)]:
        raise ConfigError(f"{shaping[0]} is the checkpoint's own with --from; leave it out.")
    from ddt_accel.networks.checkpoints import load_model
    from ddt_accel.training.start import alone, in_order, nested, picture_size

    model = alone(load_model(start))
    size = picture_size(model, ctx.params["size"] if typed(ctx, "size") else None)
    widths: tuple[float, ...] = ()
    share = TARGET if target is None else target
    if dynamic == "nested":
        model, widths = nested(model, share)
    if dynamic == "routers":
        model = in_order(model, share)
    return Beginning(model=model, widths=widths, target=share if dynamic == "routers" else None, size=size)


def held_out_table(
    begun: Beginning, path: Path, data: ImageSet, *, batch_size: int, device: torch.device
) -> tuple[Table, dict[str, Any]]:
    """The loss on pictures kept out, by quarter of t: of the checkpoint, and of what was made of it at each width."""
    from ddt_accel.networks.checkpoints import load_model
    from ddt_accel.networks.dynamic.widths import narrow, widths_of
    from ddt_accel.training.held_out import held_out_loss

    made = load_model(path)
    tokens = made.config.num_tokens((3, begun.size, begun.size))
    dynamic = bool(begun.widths) or begun.target is not None
    rows: list[tuple[str, float, SplitNetwork | list[SplitNetwork]]] = [
        ("before", 1.0, begun.model), ("complete" if dynamic else "after", 1.0, made)
    ]  # fmt: skip
    if begun.target is not None:
        rows.append(_as_routed(made, tokens))
    else:
        rows += [(f"width {one:g}", _share(made, tokens, one), narrow(made, one)) for one in widths_of(made)[1:]]
    table = Table(
        title=f"Loss on {len(data.images):,} pictures kept out, by quarter of t from noise (0) to picture (1)"
    )
    table.add_column("network")
    for head in ("blocks' multiply-adds", "0 to 0.25", "to 0.5", "to 0.75", "to 1", "mean"):
        table.add_column(head, justify="right")
    losses: dict[str, Any] = {}
    for name, cost, network in rows:
        quarters = held_out_loss(network, data, batch_size=batch_size, device=device)
        losses[name] = {"multiply_adds": round(cost, 4), "quarters": quarters}
        mean = sum(quarters) / len(quarters)
        table.add_row(name, f"{cost:.0%}", *(f"{loss:.4f}" for loss in (*quarters, mean)))
    return table, losses


def _as_routed(model: SplitNetwork, tokens: int) -> tuple[str, float, list[SplitNetwork]]:
    """What the routers choose in each quarter of t, and what that takes on average."""
    from ddt_accel.networks.dynamic.slicing import narrowable
    from ddt_accel.networks.dynamic.widths import narrow, widths_by_quarter

    widths = widths_by_quarter(narrowable(model.config))
    shares = [_share(model, tokens, width) for width in widths]
    networks = [model if width == 1 else narrow(model, width) for width in widths]
    return "as routed", sum(shares) / len(shares), networks


def _share(model: SplitNetwork, tokens: int, width: float) -> float:
    """Of the complete blocks' multiply-adds."""
    from ddt_accel.networks.dynamic.slicing import narrowable
    from ddt_accel.networks.dynamic.widths import width_costs

    return width_costs(narrowable(model.config), tokens, width, width)


def routed_plot(path: Path, averages: Mapping[str, Tensor]) -> str:
    """How many heads and channels the routers of the network at `path`, of which these are the averages, leave on over
    t in encoder and decoder."""
    from ddt_accel.networks.checkpoints import load_model
    from ddt_accel.networks.dynamic.routers import Routers
    from ddt_accel.networks.dynamic.routing import masks_over_time
    from ddt_accel.networks.dynamic.slicing import narrowable
    from ddt_accel.report.figures import routed_shares

    model = load_model(path)
    config = narrowable(model.config)
    routers = Routers.of(averages, config.num_groups, config.transformer_blocks, config.hidden_size)
    encoder, shares = config.encoder_blocks, {}
    for kind, masks in zip(("heads", "channels"), masks_over_time(model, routers.cpu()), strict=True):
        for name, blocks in (("encoder", masks[:, :encoder]), ("decoder", masks[:, encoder:])):
            if blocks.shape[1]:
                shares[f"{kind}, {name}"] = blocks.mean((1, 2)).double().numpy()
    return routed_shares(shares)
