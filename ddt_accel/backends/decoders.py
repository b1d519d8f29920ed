"""The decoder that makes pictures of latents, of whichever kind its files are."""

from __future__ import annotations

from pathlib import Path

import torch

from ddt_accel.backends.rae_decoder import RAEDecoder
from ddt_accel.backends.vae import LatentDecoder
from ddt_accel.networks.checkpoints import tensors_sha256
from ddt_accel.networks.decoder_files import decoder_files

BATCH = 8  # latents decoded at a time: one takes far more memory there than in the network that drew it


def open_decoder(
    source: str | Path,
    latent_shape: tuple[int, int, int],
    *,
    device: torch.device | str = "cpu",
    batch_size: int = BATCH,
) -> LatentDecoder | RAEDecoder:
    """A decoder for latents (C, H, W) of a folder, a file, a published YAML or a Hugging Face repository, which takes
    at most `batch_size` at a time.

    Raises DependencyError without diffusers; CheckpointError where there is no decoder, or one of other latents.
    """
    files = decoder_files(source)
    decoder = (
        LatentDecoder(files.source, device=device, batch_size=batch_size)
        if files.kind == "AutoencoderKL"
        else RAEDecoder(files, device=device, batch_size=batch_size)
    )
    decoder.check(latent_shape)
    return decoder


def decoder_sha256(decoder: LatentDecoder | RAEDecoder) -> str:
    """The SHA-256 of a decoder's weights and statistics, the same wherever they came from."""
    return tensors_sha256({name: tensor.cpu() for name, tensor in decoder.tensors().items()})
