"""What the benchmarks of speed share: which networks there are, and the conditions that they print."""

from __future__ import annotations

import torch
from torch import nn

from ddt_accel import load_model
from ddt_accel.networks.config import DDTConfig, Source
from ddt_accel.networks.ddt import DDT
from ddt_accel.networks.device import device_name

# DDT-XL/2 as published (arXiv 2504.05741), for latents of the Stable-Diffusion autoencoder.
XL2 = DDTConfig(
    in_channels=4, patch_size=2, num_groups=16, hidden_size=1152, num_blocks=28, num_encoder_blocks=22, num_classes=1000
)
RANDOM = {"xl2-256": (4, 32, 32), "xl2-512": (4, 64, 64)}


def network(name: str, device: str) -> DDT:
    """A model by name; "xl2-256" and "xl2-512" have the published size and random weights, which serve for timing."""
    if name not in RANDOM:
        return load_model(name).to(device)
    with torch.device(device):
        model = DDT(XL2).requires_grad_(False)
        torch.manual_seed(0)
        for parameter in model.parameters():
            if parameter.ndim > 1:
                nn.init.normal_(parameter, std=0.02)
    model.source = Source(name=f"{name}, random weights", sha256="0" * 64, latent_shape=RANDOM[name], class_names=None)
    return model.eval()


def conditions(model: DDT, device: str, *details: str) -> str:
    assert model.source is not None
    threads = f", {torch.get_num_threads()} threads" if device == "cpu" else ""
    return "; ".join(
        [model.source.name, *details, f"torch {torch.__version__}", device_name(torch.device(device)) + threads]
    )
