"""A network as one safetensors file that says itself what it is."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import safetensors.torch
import torch

from ddt_accel.artifacts import write_atomic
from ddt_accel.errors import ConfigError
from ddt_accel.networks.checkpoints import tensors_sha256
from ddt_accel.networks.families import as_mapping
from ddt_accel.networks.split import SplitNetwork


def save_network(model: SplitNetwork, path: Path) -> None:
    """Writes weights and settings, so that `load_model(path)` is the same network, schedules' checksums included.

    Raises ConfigError where the weights are not float32 any more: they would be other weights than schedules are for.
    """
    if model.dtype != torch.float32:
        raise ConfigError(
            f"The network is in {model.dtype}, which its schedules were not made for; save it before it is converted, "
            "or load it anew."
        )
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    description = {"config": json.dumps(as_mapping(model.config)), "tensors_sha256": tensors_sha256(tensors)}
    if model.source is not None:
        known = asdict(model.source)
        description |= {key: json.dumps(known[key]) for key in ("latent_shape", "class_names", "widths") if known[key]}
    write_atomic(path, safetensors.torch.save(tensors, description))
