"""`narrow`."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer

from ddt_accel.cli.console import emit
from ddt_accel.cli.options import JsonOption, ModelOption, WeightsOption


def narrow(
    out: Annotated[Path, typer.Option(help="The file to write.")],
    model: ModelOption = None,
    width: Annotated[float, typer.Option(help="Share of the heads and of the MLPs' channels that is left.")] = 0.5,
    decoder_width: Annotated[
        float | None, typer.Option(help="The same in the decoder, where it is another.", show_default=False)
    ] = None,
    weights: WeightsOption = None,
    json: JsonOption = False,
) -> None:
    """Take one width out of a network with several: a checkpoint like any other, smaller and faster."""
    from ddt_accel.artifacts import check_writable
    from ddt_accel.errors import ConfigError
    from ddt_accel.networks.checkpoints import load_model
    from ddt_accel.networks.dynamic.widths import narrow as narrowed
    from ddt_accel.networks.saving import save_network
    from ddt_accel.networks.split import latent_shape_of

    if model is None:
        raise ConfigError(
            "--model is missing; give a network with several widths, as `train --dynamic nested` makes it."
        )
    check_writable(out)
    complete = load_model(model, weights=weights or "ema")
    network = narrowed(complete, width, decoder_width)
    save_network(network, out)
    shape = latent_shape_of(complete)
    before, after = (one.config.multiply_adds(shape) for one in (complete, network))
    encoder, decoder = after.encoder / before.encoder, after.decoder / before.decoder
    emit(
        {"model": str(out), "encoder": encoder, "decoder": decoder},
        as_json=json,
        text=f"{network.config.description}: {encoder:.0%} of the encoder's multiply-adds, {decoder:.0%} of the "
        f"decoder's → {out}\nNext: ddt-accel optimize --quick --model {shlex.quote(str(out))}",
    )
