"""From the options of commands that draw to open networks, in this process or in another one."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Self

import typer

from ddt_accel.cli.console import say

if TYPE_CHECKING:
    from ddt_accel.backends.rae_decoder import RAEDecoder
    from ddt_accel.backends.vae import LatentDecoder
    from ddt_accel.cli.networks import Opened
    from ddt_accel.workspace import Workspace

DecoderOption = Annotated[
    str | None,
    typer.Option(
        "--decoder",
        "--vae",
        help="Makes pictures of latents: the folder or Hugging Face repository of an autoencoder, Stable Diffusion's "
        "or RAE's, or RAE's YAML.",
    ),
]
DecodeBatchOption = Annotated[
    int | None, typer.Option("--decode-batch", min=1, help="Latents that --decoder takes at a time.")
]


@dataclass(frozen=True, kw_only=True)
class NetworkSettings:
    """What it takes to open the networks; paths are absolute where another process may have another folder."""

    workspace: Path
    said: dict[str, Any]  # about the model, as `Workspace.load_model` takes it
    backend: str
    export_folder: Path | None
    device: str
    threads: int | None
    batch_size: int
    decoder: str | None = None
    decode_batch: int | None = None

    def anywhere(self) -> Self:
        """The same for processes in other folders: what is a path here is absolute."""
        decoder = self.decoder
        if decoder is not None and os.path.exists(local := os.path.expanduser(decoder)):
            decoder = os.path.abspath(local)
        return replace(
            self,
            workspace=self.workspace.absolute(),
            said=said_anywhere(self.said),
            export_folder=self.export_folder and self.export_folder.absolute(),
            decoder=decoder,
        )

    def open(self, at_once: int) -> tuple[Workspace, Opened, LatentDecoder | RAEDecoder | None]:
        """The networks, for `at_once` images in a batch; raises what opening them or --decoder is refused with."""
        from ddt_accel.cli.networks import open_networks
        from ddt_accel.workspace import Workspace

        place = Workspace(self.workspace, say)
        opened = open_networks(place, self.backend, self.export_folder, self.said, self.device, at_once)
        return place, opened, open_decoder_of(opened, self.decoder, self.device, self.decode_batch)


def said_anywhere(said: dict[str, Any]) -> dict[str, Any]:
    """The same about a model for processes in other folders."""
    from ddt_accel.workspace import ModelChoice

    choice = asdict(ModelChoice(**said).resolved())
    return {name: choice[name] for name in said}


def open_decoder_of(
    opened: Opened, decoder: str | None, device: str, batch: int | None = None
) -> LatentDecoder | RAEDecoder | None:
    """What makes pictures of a network's latents; raises ConfigError for one that draws pictures itself."""
    from ddt_accel.backends.decoders import BATCH, open_decoder
    from ddt_accel.errors import ConfigError

    if decoder is None:
        return None
    if opened.backend.config.pixel_space:
        raise ConfigError("--decoder makes pictures of latents, and this model draws pictures itself; leave it out.")
    return open_decoder(decoder, opened.latent_shape, device=device, batch_size=batch or BATCH)
