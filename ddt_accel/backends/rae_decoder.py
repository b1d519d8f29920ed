"""From RAE's latents to pictures: its stage-1 decoder, through diffusers (extra `vae`).

The network is the decoder inside diffusers' AutoencoderRAE. The class around it is not used, for three reasons. It
builds the encoder, 86 M parameters that sampling does not need, by transformers, one package more. It computes the
position table, right for 16 × 16 tokens only, and passes over the one in a file. It adds 1e-5 to a standard deviation
that has it already.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ddt_accel.errors import CheckpointError, DependencyError, listed
from ddt_accel.networks.decoder_files import DecoderFiles, decoder_files
from ddt_accel.networks.decoder_weights import CLASS_TOKEN, StoredDecoder, read_decoder
from ddt_accel.networks.device import full_float32


class RAEDecoder:
    """`Sampler(…, decode=RAEDecoder(source))`: float32 images [B, 3, pn, pn] in [−1, 1] of latents [B, C, n, n].

    `source` is a folder or Hugging Face repository that diffusers' AutoencoderRAE reads, a folder or file as RAE
    publishes it (`model.pt`; `config.json` and `stat.pt` are looked for around it), a published YAML with
    `stage_1.params`, or a file in a repository, `owner/name:path`. At most `batch_size` images go through at a time.

    Raises DependencyError without diffusers, CheckpointError where there is no such decoder or its parts do not fit.
    Where statistics of latents are missing, 0 and 1 take their place, and that is logged as a warning.
    """

    def __init__(
        self,
        source: str | Path | DecoderFiles,
        *,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        batch_size: int = 8,
    ) -> None:
        network = _network_class()
        files = source if isinstance(source, DecoderFiles) else decoder_files(source)
        if files.kind != "AutoencoderRAE":
            raise CheckpointError(f"{source} is an autoencoder of Stable Diffusion; use LatentDecoder for it.")
        stored = read_decoder(files)
        self.device, self.dtype, self.batch_size = torch.device(device), dtype, batch_size
        self.latent_shape = stored.latent_shape
        self._decoder = _filled(network, stored, files).to(self.device, dtype).eval().requires_grad_(False)
        self._scale = stored.scale
        self._mean, self._std = stored.mean.to(self.device), stored.std.to(self.device)
        self._image_mean, self._image_std = (
            torch.tensor(values, device=self.device).view(3, 1, 1) for values in (stored.image_mean, stored.image_std)
        )

    def check(self, latent_shape: tuple[int, ...]) -> None:
        """Raises CheckpointError where latents of this shape, (C, H, W), are not the decoder's."""
        if tuple(latent_shape) != self.latent_shape:
            raise CheckpointError(
                f"Latents are {list(latent_shape)}, and this decoder takes {list(self.latent_shape)}; give the one "
                "that the model was trained with."
            )

    def tensors(self) -> dict[str, Tensor]:
        """All that pictures depend on, by name."""
        statistics = {"mean": self._mean, "std": self._std, "scale": torch.as_tensor(self._scale)}
        of_images = {"image_mean": self._image_mean, "image_std": self._image_std}
        positions = torch.as_tensor(self._decoder.decoder_pos_embed)
        return {**self._decoder.state_dict(), **statistics, **of_images, "decoder_pos_embed": positions}

    def __call__(self, latents: Tensor) -> Tensor:
        return (2.0 * self.pixels(latents) - 1.0).clamp(-1.0, 1.0)

    @torch.inference_mode()
    def pixels(self, latents: Tensor) -> Tensor:
        """What the published decoder returns: float32 [B, 3, pn, pn], nominally in [0, 1], and not clipped."""
        self.check(tuple(latents.shape[1:]))
        with full_float32(self.device):
            return torch.cat([self._pixels(part) for part in latents.split(self.batch_size)])

    def _pixels(self, latents: Tensor) -> Tensor:
        z = latents.to(self.device, torch.float32) / self._scale * self._std + self._mean
        tokens = z.flatten(2).transpose(1, 2).to(self.dtype)  # [B, n², C]
        patches = self._decoder(tokens).logits.float()  # [B, n², p·p·3]
        image: Tensor = self._decoder.unpatchify(patches)
        return image * self._image_std + self._image_mean


def _network_class() -> Any:
    try:
        import diffusers
    except ImportError:
        raise DependencyError("diffusers is not installed; install it with `pip install 'ddt-accel[vae]'`.") from None
    try:
        from diffusers.models.autoencoders.autoencoder_rae import RAEDecoder as Network
    except ImportError:
        raise DependencyError(
            f"diffusers {diffusers.__version__} has no RAE decoder, which came with 0.39; upgrade it with "
            "`pip install -U 'ddt-accel[vae]'`."
        ) from None
    return Network


def _filled(network: Any, stored: StoredDecoder, files: DecoderFiles) -> Any:
    """The network with these weights; its memory is theirs."""
    try:
        with torch.device("meta"):
            decoder = network(
                hidden_size=stored.channels,
                decoder_hidden_size=stored.width,
                decoder_num_hidden_layers=stored.depth,
                decoder_num_attention_heads=stored.heads,
                decoder_intermediate_size=stored.inner,
                num_patches=stored.side**2,
                patch_size=stored.patch_size,
                image_size=stored.side * stored.patch_size,
                qkv_bias="decoder_layers.0.attention.to_q.bias" in stored.tensors,
                layer_norm_eps=stored.norm_eps,
                hidden_act=stored.activation,
            )
    except ValueError as error:
        raise CheckpointError(f"No decoder can be built of {files.source} ({error}).") from None
    tensors = {CLASS_TOKEN: torch.zeros(1, 1, stored.width), **stored.tensors}
    expected = {name: tuple(tensor.shape) for name, tensor in decoder.state_dict().items()}
    wrong = [name for name, shape in expected.items() if name not in tensors or tuple(tensors[name].shape) != shape]
    if wrong:
        raise CheckpointError(f"{files.weights} is no whole decoder: {listed(wrong)} are missing or of another shape.")
    if unknown := sorted(tensors.keys() - expected.keys()):
        raise CheckpointError(f"{files.weights} holds {listed(unknown)}, which RAE's decoders do not have.")
    decoder.load_state_dict(tensors, assign=True)
    decoder.decoder_pos_embed = stored.positions if stored.positions is not None else _positions(stored)
    return decoder


def _positions(stored: StoredDecoder) -> Tensor:
    """The published table [1, n² + 1, width]: sines over 0 … n − 1 whatever n is, and 0 for the class token."""
    from diffusers.models.embeddings import get_2d_sincos_pos_embed

    table: Tensor = get_2d_sincos_pos_embed(
        stored.width, stored.side, cls_token=True, extra_tokens=1, base_size=stored.side, output_type="pt"
    )
    return table.unsqueeze(0).float()
