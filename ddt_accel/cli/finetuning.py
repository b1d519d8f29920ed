"""What `train --from` begins with, and what it tells at its end."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
from rich.table import Table

from ddt_accel.cli.options import typed

if TYPE_CHECKING:
    import torch

    from ddt_accel.networks.config import TrainableConfig
    from ddt_accel.networks.split import SplitNetwork
    from ddt_accel.training.images import ImageSet

IMAGES, RATE = 256_000, 3e-4  # where nothing is said
TARGET = 0.5
_OF_THE_NETWORK = ("family", "hidden_size", "heads", "encoder_blocks", "decoder_blocks", "decoder_width", "patch")


@dataclass(frozen=True, kw_only=True)
class Beginning:
    """A network to go on from, the widths that it is to learn beside its own, and the side of its pictures."""

    model: SplitNetwork
    widths: tuple[float, ...]
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

    if dynamic not in (None, "nested"):
        raise ConfigError(f"--dynamic is {dynamic!r}; nested is what there is.")
    if target is not None and dynamic is None:
        raise ConfigError("--target is the narrowest width of --dynamic nested; give both, or neither.")
    if start is None:
        if dynamic is not None:
            raise ConfigError("--dynamic fine-tunes a checkpoint; give one with --from.")
        return None
    if shaping := [f"--{name.replace('_', '-')}" for name in _OF_THE_NETWORK if typed(ctx, name)]:
        raise ConfigError(f"{shaping[0]} is the checkpoint's own with --from; leave it out.")
    from ddt_accel.networks.checkpoints import load_model
    from ddt_accel.training.start import nested, picture_size

    model = load_model(start)
    size = picture_size(model, ctx.params["size"] if typed(ctx, "size") else None)
    widths: tuple[float, ...] = ()
    if dynamic is not None:
        model, widths = nested(model, TARGET if target is None else target)
    return Beginning(model=model, widths=widths, size=size)


def held_out_table(
    begun: Beginning, path: Path, data: ImageSet, *, batch_size: int, device: torch.device
) -> tuple[Table, dict[str, Any]]:
    """The loss on pictures kept out, by quarter of t: of the checkpoint, and of what was made of it at each width."""
    from ddt_accel.networks.checkpoints import load_model
    from ddt_accel.networks.dynamic.slicing import narrowable
    from ddt_accel.networks.dynamic.widths import narrow, width_costs
    from ddt_accel.training.held_out import held_out_loss

    made = load_model(path)
    tokens = made.config.num_tokens((3, begun.size, begun.size))
    rows = [("before", 1.0, begun.model)]
    for width in begun.widths or (1.0,):
        if width == 1:
            rows.append(("complete" if begun.widths else "after", 1.0, made))
        else:
            cost = width_costs(narrowable(made.config), tokens, width, width)
            rows.append((f"width {width:g}", cost, narrow(made, width)))
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
