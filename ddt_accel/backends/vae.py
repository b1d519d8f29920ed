"""From latents to pictures: the autoencoder of Stable Diffusion, through diffusers (extra `vae`)."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ddt_accel.errors import CheckpointError, DependencyError
from ddt_accel.networks.device import full_float32

# What the published DDT-XL/2 checkpoints were trained with.
PUBLISHED = "stabilityai/sd-vae-ft-ema"


class LatentDecoder:
    """`Sampler(…, decode=LatentDecoder())`: float32 images [B, 3, 8H, 8W] in [−1, 1] of latents [B, 4, H, W].

    `source` is a Hugging Face repository or a folder that diffusers' AutoencoderKL reads; latents are scaled and
    shifted as it says. `LatentDecoder.of(vae)` takes one that is loaded already. At most `batch_size` images go through
    at a time: one takes far more memory there than in DDT.
    Raises DependencyError without diffusers, CheckpointError where there is no such autoencoder.
    """

    def __init__(
        self,
        source: str | Path = PUBLISHED,
        *,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        batch_size: int = 8,
    ) -> None:
        try:
            from diffusers import AutoencoderKL
        except ImportError:
            raise DependencyError(
                "diffusers is not installed; install it with `pip install 'ddt-accel[vae]'`."
            ) from None
        try:
            # Weights as safetensors only: the older format is a program.
            vae: Any = AutoencoderKL.from_pretrained(
                os.path.expanduser(source), use_safetensors=True, torch_dtype=dtype
            )
        except Exception as error:  # diffusers has no common exception type
            reason = str(error).strip().partition("\n")[0][:200] or type(error).__name__
            raise CheckpointError(f"No autoencoder can be loaded from {source} ({reason}).") from None
        self._take(vae.to(device), batch_size)

    @classmethod
    def of(cls, vae: Any, *, batch_size: int = 8) -> LatentDecoder:
        """The same of an AutoencoderKL that is loaded already, where it lies and as it is."""
        decoder = cls.__new__(cls)
        decoder._take(vae, batch_size)
        return decoder

    def _take(self, vae: Any, batch_size: int) -> None:
        self.device, self.dtype, self.batch_size = vae.device, vae.dtype, batch_size
        self.scaling_factor, self.channels = float(vae.config.scaling_factor), int(vae.config.latent_channels)
        self.shift_factor = float(getattr(vae.config, "shift_factor", None) or 0.0)
        self.vae = vae.eval().requires_grad_(False)

    def check(self, latent_shape: tuple[int, ...]) -> None:
        """Raises CheckpointError where latents of this shape, (C, H, W), are not the autoencoder's."""
        if len(latent_shape) != 3 or latent_shape[0] != self.channels:
            raise CheckpointError(
                f"Latents are {list(latent_shape)}, and this autoencoder takes [{self.channels}, H, W]; give the one "
                "that the model was trained with."
            )

    def tensors(self) -> dict[str, Tensor]:
        """All that pictures depend on, by name."""
        factors = torch.tensor([self.scaling_factor, self.shift_factor], dtype=torch.float64)
        return {**self.vae.state_dict(), "factors": factors}

    @torch.inference_mode()
    def __call__(self, latents: Tensor) -> Tensor:
        self.check(tuple(latents.shape[1:]))
        scaled = (latents.to(self.device) / self.scaling_factor + self.shift_factor).to(self.dtype)
        with full_float32(self.device):
            images = [self.vae.decode(part).sample.float() for part in scaled.split(self.batch_size)]
        return torch.cat(images).clamp(-1.0, 1.0)
