"""From a training state to a model that is shipped: the moving average in 16 bits, with all that is known of it."""

from __future__ import annotations

import json
from pathlib import Path

import safetensors
import safetensors.torch
import torch

from ddt_accel.artifacts import write_atomic
from ddt_accel.errors import NumericsError
from ddt_accel.networks.checkpoints import tensors_sha256
from ddt_accel.networks.layout import EMA


def write_release(state: Path, path: Path, *, latent_shape: tuple[int, int, int]) -> Path:
    """Writes the averaged weights of `state` in float16, with configuration, class names and checksum; returns `path`.

    Raises NumericsError where a weight does not fit float16.
    """
    with safetensors.safe_open(state, framework="pt") as file:
        metadata = file.metadata()
        names = [name for name in file.keys() if name.startswith(EMA)]  # noqa: SIM118
        tensors = {name.removeprefix(EMA): file.get_tensor(name).half() for name in names}
    if not all(torch.isfinite(tensor).all() for tensor in tensors.values()):
        raise NumericsError(f"{state} has weights beyond the range of float16; train with a lower learning rate.")
    told = ("config", "class_names", "train_spec", "step", "widths")
    description = {key: metadata[key] for key in told if key in metadata}
    description |= {"latent_shape": json.dumps(latent_shape), "tensors_sha256": tensors_sha256(tensors)}
    write_atomic(path, safetensors.torch.save(tensors, description))
    return path
