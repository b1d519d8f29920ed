"""What the benchmarks of speed share: which networks there are, and the conditions that they print."""

from __future__ import annotations

import torch

from ddt_accel import load_model
from ddt_accel.networks.checkpoints import tensors_sha256
from ddt_accel.networks.config import Source
from ddt_accel.networks.ddt.config import DDTConfig
from ddt_accel.networks.ddt.network import DDT
from ddt_accel.networks.device import device_name

# DDT-XL/2 as published (arXiv 2504.05741), for latents of the Stable-Diffusion autoencoder.
XL2 = DDTConfig(
    in_channels=4, patch_size=2, num_groups=16, hidden_size=1152, num_blocks=28, num_encoder_blocks=22, num_classes=1000
)
# As small as all of it can be, to rehearse with.
TINY = DDTConfig(
    in_channels=4, patch_size=2, num_groups=2, hidden_size=32, num_blocks=3, num_encoder_blocks=2, num_classes=10
)
RANDOM = {"xl2-256": (XL2, (4, 32, 32)), "xl2-512": (XL2, (4, 64, 64)), "tiny": (TINY, (4, 8, 8))}


def network(name: str, device: str) -> DDT:
    """A model by name; "xl2-256" and "xl2-512" have the published size and random weights, which serve for timing.

    They are drawn on the CPU from one generator, so that every machine has the same, and known by their checksum.
    """
    if name not in RANDOM:
        return load_model(name).to(device)
    config, shape = RANDOM[name]
    with torch.device("meta"):
        model = DDT(config).requires_grad_(False)
    model = model.to_empty(device="cpu")
    generator = torch.Generator().manual_seed(0)
    for kind, parameter in model.named_parameters():
        if parameter.ndim > 1:
            parameter.normal_(std=0.02, generator=generator)
        else:
            parameter.fill_(1.0 if "norm" in kind else 0.0)
    known = tensors_sha256(model.state_dict())
    model.source = Source(name=f"{name}, random weights", sha256=known, latent_shape=shape, class_names=None)
    return model.to(device).eval()


def conditions(model: DDT, device: str, *details: str) -> str:
    assert model.source is not None
    threads = f", {torch.get_num_threads()} threads" if device == "cpu" else ""
    return "; ".join(
        [model.source.name, *details, f"torch {torch.__version__}", device_name(torch.device(device)) + threads]
    )
