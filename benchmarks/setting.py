"""What the benchmarks of speed share: which networks there are, and the conditions that they print."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any
from unittest import mock

import safetensors
import safetensors.torch
import torch
from torch import nn

from ddt_accel import load_model
from ddt_accel.networks.checkpoints import tensors_sha256
from ddt_accel.networks.config import Source, SplitConfig
from ddt_accel.networks.ddt.config import DDTConfig
from ddt_accel.networks.device import device_name
from ddt_accel.networks.families import build
from ddt_accel.networks.pixnerd.config import PixNerdConfig
from ddt_accel.networks.pixnerd.published import XL16
from ddt_accel.networks.prepared import PreparedNetwork
from ddt_accel.networks.rae.config import DiTDHConfig
from ddt_accel.networks.split import SplitNetwork

# DDT-XL/2 as published (arXiv 2504.05741), for latents of the Stable-Diffusion autoencoder.
XL2 = DDTConfig(
    in_channels=4, patch_size=2, num_groups=16, hidden_size=1152, num_blocks=28, num_encoder_blocks=22, num_classes=1000
)
# As small as all of it can be, to rehearse with.
TINY = DDTConfig(
    in_channels=4, patch_size=2, num_groups=2, hidden_size=32, num_blocks=3, num_encoder_blocks=2, num_classes=10
)
TINY_DH = DiTDHConfig(input_size=4, in_channels=8, hidden_size=(32, 48), depth=(3, 2), num_heads=(2, 2), num_classes=10)
TINY_PIXNERD = PixNerdConfig(
    in_channels=3, patch_size=4, num_groups=2, hidden_size=32, hidden_size_x=8, num_blocks=5, num_cond_blocks=3,
    nerf_mlpratio=2, num_classes=10,
)  # fmt: skip


def dit_dh_xl(side: int) -> DiTDHConfig:
    """RAE's DiT-DH-XL as published (arXiv 2510.11690), for latents of DINOv2-B."""
    return DiTDHConfig(
        input_size=side, in_channels=768, hidden_size=(1152, 2048), depth=(28, 2), num_heads=(16, 16), num_classes=1000
    )


RANDOM: dict[str, tuple[SplitConfig, tuple[int, int, int]]] = {
    "xl2-256": (XL2, (4, 32, 32)), "xl2-512": (XL2, (4, 64, 64)), "tiny": (TINY, (4, 8, 8)),
    "dit-dh-xl-256": (dit_dh_xl(16), (768, 16, 16)), "dit-dh-xl-512": (dit_dh_xl(32), (768, 32, 32)),
    "tiny-dit-dh": (TINY_DH, (8, 4, 4)),
    "pixnerd-xl-256": (XL16, (3, 256, 256)), "tiny-pixnerd": (TINY_PIXNERD, (3, 16, 16)),
}  # fmt: skip
DRAWN = "DDT_ACCEL_DRAWN"  # a folder where processes find the weights that another has drawn


def network(name: str, device: str) -> Any:
    """A model by name; "xl2-256" and others of `RANDOM` have published sizes and random weights, which serve for
    timing.

    They are drawn on the CPU from one generator, so that every machine has the same, and known by their checksum.
    """
    if name not in RANDOM:
        return load_model(name).to(device)
    config, shape = RANDOM[name]
    left = {one: lambda tensor, *_, **__: tensor for one in dir(nn.init) if one.endswith("_") and one[0] != "_"}
    with mock.patch.multiple(nn.init, **left):  # all of it is drawn below
        model = build(config).requires_grad_(False)
    known = _filled(model, config)
    model.source = Source(name=f"{name}, random weights", sha256=known, latent_shape=shape, class_names=None)
    return model.to(device).eval()


def _filled(model: SplitNetwork, config: SplitConfig) -> str:
    """The checksum of what a network is filled with."""
    folder = os.environ.get(DRAWN)
    path = Path(folder or ".") / f"{hashlib.sha256(repr(config).encode()).hexdigest()[:16]}.safetensors"
    if folder and path.exists():
        model.load_state_dict(safetensors.torch.load_file(path), assign=True)
        model.requires_grad_(False)
        with safetensors.safe_open(path, "pt") as file:
            return str(file.metadata()["sha256"])
    generator = torch.Generator().manual_seed(0)
    for kind, parameter in model.named_parameters():
        if parameter.ndim > 1:
            parameter.normal_(std=0.02, generator=generator)
        else:
            parameter.fill_(1.0 if "norm" in kind and kind.endswith("weight") else 0.0)
    known = tensors_sha256(model.state_dict())
    if folder:
        making = path.with_suffix(f".{os.getpid()}")
        safetensors.torch.save_file(model.state_dict(), making, {"sha256": known})
        making.rename(path)
    return known


def counted_bytes(model: PreparedNetwork, rows: int, itemsize: int) -> dict[str, int]:
    """Bytes that each part has to read and write at least: its weights, and the modulations of all rows, of
    which "cache" is one slot."""
    decodes = ("x_embedder", "decoder_blocks", "final", "norms", "colours", "places")
    sizes = {name: tensor.numel() * tensor.element_size() for name, tensor in model.state_dict().items()}
    of_decoder = sum(size for name, size in sizes.items() if name.startswith(decodes))
    affine = sum(size for name, size in sizes.items() if name.startswith("modulation_map"))
    cache = itemsize * rows * model.config.num_tokens(model.latent_shape) * model.config.modulation_size
    tables = sum(size for name, size in sizes.items() if name.startswith("label_table"))  # of which rows are read
    return {
        "encoder": sum(sizes.values()) - of_decoder - tables + cache,
        "decoder": of_decoder + cache,
        "modulations": affine + cache,
        "cache": cache,
    }


def conditions(model: SplitNetwork, device: str, *details: str) -> str:
    assert model.source is not None
    threads = f", {torch.get_num_threads()} threads" if device == "cpu" else ""
    return "; ".join(
        [model.source.name, *details, f"torch {torch.__version__}", device_name(torch.device(device)) + threads]
    )
