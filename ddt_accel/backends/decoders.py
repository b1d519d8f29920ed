"""The decoder that makes pictures of latents, of whichever kind its files are."""

from __future__ import annotations

from pathlib import Path

import torch

from ddt_accel.backends.rae_decoder import RAEDecoder
from ddt_accel.backends.vae import LatentDecoder
from ddt_accel.networks.decoder_files import decoder_files


def open_decoder(
    source: str | Path, latent_shape: tuple[int, int, int], *, device: torch.device | str = "cpu"
) -> LatentDecoder | RAEDecoder:
    """A decoder for latents (C, H, W) of a folder, a file, a published YAML or a Hugging Face repository.

    Raises DependencyError without diffusers; CheckpointError where there is no decoder, or one of other latents.
    """
    files = decoder_files(source)
    decoder = (
        LatentDecoder(files.source, device=device)
        if files.kind == "AutoencoderKL"
        else RAEDecoder(files, device=device)
    )
    decoder.check(latent_shape)
    return decoder
