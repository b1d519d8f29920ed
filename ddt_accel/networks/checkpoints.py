"""From a name, a path or a repository id to a network with its weights."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import safetensors
import torch
from torch import Tensor

from ddt_accel.errors import CheckpointError, ConfigError
from ddt_accel.networks.config import DDTConfig, Source
from ddt_accel.networks.ddt import DDT
from ddt_accel.networks.locate import locate, settings_of
from ddt_accel.networks.unpickle import PickledCheckpoint, StoredTensor

EMA, RAW = "ema_denoiser.", "denoiser."


def load_model(
    source: str | Path,
    *,
    config: Mapping[str, Any] | DDTConfig | None = None,
    weights: str = "ema",
    latent_shape: tuple[int, int, int] | None = None,
) -> DDT:
    """A DDT in float32 on the CPU, in evaluation mode.

    `source` is an embedded model's short name, a file (Lightning `.ckpt`, `.pt`, `.pth`, `.safetensors`), a folder that
    holds one, or a Hugging Face repository id. The configuration is, in this order: `config` (the published
    `init_args`), what the file itself says, a published YAML beside it, what is known of a published repository.
    `weights` is "ema" or "raw", for checkpoints that hold both. `latent_shape` is (C, H, W), where nothing else says.

    Raises CheckpointError for unusable weights, ConfigError for an unusable configuration.
    """
    if weights not in ("ema", "raw"):
        raise ConfigError(f"weights is {weights!r}; choose 'ema' or 'raw'.")
    located = locate(str(source))
    path = located.path
    tensors, metadata = _read(path)
    settings = settings_of(located, metadata, needed=config is None)
    if config is None:
        config = settings.config
    if config is None:
        raise ConfigError(
            f"Nothing says how the network in {path} is built: its number of encoder blocks cannot be read off the "
            "weights. Put the published YAML beside it, or give config={...} with the published init_args."
        )
    network_config = config if isinstance(config, DDTConfig) else DDTConfig.from_mapping(config)
    latent_shape = latent_shape or settings.latent_shape
    if latent_shape is not None:
        network_config.num_tokens(latent_shape)
    model = DDT(network_config)
    _assign(model, _select(path, tensors, weights), path)
    model.source = Source(
        name=located.name,
        sha256=identity(model),
        latent_shape=latent_shape,
        class_names=settings.class_names,
    )
    return model.eval().requires_grad_(False)


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The file's tensors by name and its own description of them."""
    if path.suffix == ".safetensors":
        try:
            with safetensors.safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (safetensors.SafetensorError, OSError) as error:
            raise CheckpointError(f"{path} is damaged or not a safetensors file ({error}).") from None
        if "tensors_sha256" in metadata and metadata["tensors_sha256"] != tensors_sha256(tensors):
            raise CheckpointError(f"{path} is damaged: its tensors fail their checksum; download or copy it anew.")
        return tensors, metadata
    file = PickledCheckpoint(path)
    stored = _tensors(file.content)
    if not stored:
        raise CheckpointError(f"{path} holds no state_dict with tensors in it.")
    return {name: file.read(tensor) for name, tensor in stored.items()}, {}


def _tensors(content: Any) -> dict[str, StoredTensor]:
    """The weights in a pickled file, by names of the published layout.

    Lightning keeps both sets in "state_dict", under names of their own; other scripts keep the weights in "state_dict"
    or "model", and their average, if they have one, beside it.
    """
    if not isinstance(content, dict):
        return {}
    raw = next((found for key in ("state_dict", "model") if (found := _named(content.get(key)))), None)
    averages = ("ema", "model_ema", "ema_model", "ema_state_dict", "state_dict_ema")
    average = next((found for key in averages if (found := _named(content.get(key)))), None)
    if average is not None and not any(name.startswith(EMA) for name in raw or ()):
        return {EMA + name: tensor for name, tensor in average.items()} | {
            RAW + name: tensor for name, tensor in (raw or {}).items()
        }
    return raw if raw is not None else _named(content)


def _named(group: Any) -> dict[str, StoredTensor]:
    """The tensors of a dict that have names."""
    if not isinstance(group, dict):
        return {}
    return {name: value for name, value in group.items() if isinstance(name, str) and isinstance(value, StoredTensor)}


def identity(model: DDT) -> str:
    """The SHA-256 of a network's weights and configuration: what a calibration or a schedule belongs to.

    It does not depend on the file that they came in, and tells the averaged weights of a checkpoint from the raw ones.
    """
    digest = hashlib.sha256(json.dumps(asdict(model.config), sort_keys=True).encode())
    digest.update(tensors_sha256(model.state_dict()).encode())
    return digest.hexdigest()


def tensors_sha256(tensors: Mapping[str, Tensor]) -> str:
    """A checksum over names, dtypes, shapes and contents."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _select(path: Path, tensors: dict[str, Tensor], weights: str) -> dict[str, Tensor]:
    """One set of weights out of what the checkpoint holds, its prefix removed."""
    # Wrappers of data-parallel training and of torch.compile leave these in the names, also several of them.
    tensors = {
        re.sub(r"(?:(?<=\.)|^)(?:(?:module|_orig_mod)\.)+", "", name): tensor for name, tensor in tensors.items()
    }
    prefixes = [prefix for prefix in (EMA, RAW) if any(name.startswith(prefix) for name in tensors)]
    if not prefixes:
        return tensors
    wanted = EMA if weights == "ema" else RAW
    if wanted not in prefixes:
        raise CheckpointError(
            f"{path} holds no {wanted}* weights, only {prefixes[0]}*; choose weights="
            f"{'raw' if wanted == EMA else 'ema'!r}."
        )
    return {name.removeprefix(wanted): tensor for name, tensor in tensors.items() if name.startswith(wanted)}


def _assign(model: DDT, tensors: dict[str, Tensor], path: Path) -> None:
    """Loads strictly, in float32; lists every tensor that is missing, extra or misshapen."""
    expected = model.state_dict()
    problems = [f"missing {name}" for name in expected if name not in tensors]
    problems += [f"extra {name}" for name in tensors if name not in expected]
    problems += [
        f"{name} is {list(tensors[name].shape)}, expected {list(expected[name].shape)}"
        for name in expected
        if name in tensors and tensors[name].shape != expected[name].shape
    ]
    if problems:
        raise CheckpointError(
            f"{path} does not fit the configuration {model.config}: {len(problems)} tensors differ:\n  "
            + "\n  ".join(problems)
        )
    wide = {name: tensors[name].float() for name in expected}
    broken = [name for name, tensor in wide.items() if not torch.isfinite(tensor).all()]
    if broken:
        raise CheckpointError(
            f"{path} holds NaN, infinity or numbers beyond float32 in {', '.join(broken[:5])}; it cannot be used."
        )
    model.load_state_dict(wide, strict=True)


def describe(path: Path) -> dict[str, Any]:
    """What a checkpoint file holds, without building a network."""
    located = locate(str(path))
    tensors, metadata = _read(located.path)
    settings = settings_of(located, metadata)
    sets = [name for name, prefix in (("ema", EMA), ("raw", RAW)) if any(key.startswith(prefix) for key in tensors)]
    return {
        "file": str(located.path),
        "tensors": len(tensors),
        "parameters": sum(tensor.numel() for tensor in tensors.values()),
        "dtypes": sorted({str(tensor.dtype).removeprefix("torch.") for tensor in tensors.values()}),
        "weights": sets or ["one unnamed set"],
        "configuration": str(settings.config) if settings.config else "unknown; load_model needs config={...}",
        "latent shape": str(settings.latent_shape) if settings.latent_shape else "unknown",
        "classes": list(settings.class_names) if settings.class_names else "unnamed",
    }
