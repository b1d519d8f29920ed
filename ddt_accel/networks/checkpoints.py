"""From a name, a path or a repository id to a network with its weights."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import torch
import yaml
from torch import Tensor

from ddt_accel.artifacts import sha256_of
from ddt_accel.errors import CheckpointError, ConfigError, DependencyError
from ddt_accel.networks.config import DDTConfig, Source
from ddt_accel.networks.ddt import DDT
from ddt_accel.networks.unpickle import load_pickled

SUFFIXES = (".safetensors", ".ckpt", ".pt", ".pth")
EMBEDDED = Path(__file__).parent / "weights"
EMA, RAW = "ema_denoiser.", "denoiser."

_XL2 = DDTConfig(
    in_channels=4, patch_size=2, num_groups=16, hidden_size=1152, num_blocks=28, num_encoder_blocks=22, num_classes=1000
)
PUBLISHED: dict[str, tuple[DDTConfig, tuple[int, int, int]]] = {
    "MCG-NJU/DDT-XL-22en6de-R256": (_XL2, (4, 32, 32)),
    "MCG-NJU/DDT-XL-22en6de-R512": (_XL2, (4, 64, 64)),
}


def embedded_models() -> list[str]:
    """The short names of the models inside the package."""
    return sorted(path.stem for path in EMBEDDED.glob("*.safetensors"))


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
    path, known = _locate(str(source))
    tensors, metadata = _read(path)
    settings = _settings(path, metadata, known)
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
        name=str(source) if path.parent == EMBEDDED or known else path.name,
        sha256=sha256_of(path),
        latent_shape=latent_shape,
        class_names=settings.class_names,
    )
    return model.eval().requires_grad_(False)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What says how a checkpoint is to be read."""

    config: DDTConfig | None = None
    latent_shape: tuple[int, int, int] | None = None
    class_names: tuple[str, ...] | None = None


def _locate(source: str) -> tuple[Path, Settings | None]:
    """The checkpoint file, and what is known of it by its name alone."""
    if source in embedded_models():
        return EMBEDDED / f"{source}.safetensors", None
    path = Path(source).expanduser()
    if path.is_dir():
        return _only_checkpoint(path), None
    if path.is_file():
        if path.suffix not in SUFFIXES:
            raise CheckpointError(f"{path} has the suffix '{path.suffix}'; expected one of {', '.join(SUFFIXES)}.")
        return path, None
    if re.fullmatch(r"[\w.-]+/[\w.-]+", source) and path.suffix not in SUFFIXES:
        known = PUBLISHED.get(source)
        settings = Settings(config=known[0], latent_shape=known[1]) if known else Settings()
        return _only_checkpoint(_download(source)), settings
    raise CheckpointError(
        f"There is no {source}; give a file, a folder, a Hugging Face repository id (owner/name), or an embedded "
        f"model: {', '.join(embedded_models())}."
    )


def _download(repository: str) -> Path:
    try:
        import huggingface_hub
        from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
    except ImportError:
        raise DependencyError(
            f"{repository} lies on the Hugging Face hub; to fetch it, install ddt-accel[hub], or give a local file."
        ) from None
    patterns = [f"*{suffix}" for suffix in (*SUFFIXES, ".yaml", ".yml")]
    try:
        return Path(huggingface_hub.snapshot_download(repository, allow_patterns=patterns))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise CheckpointError(
            f"{repository} is no local file and cannot be had from the Hugging Face hub ({str(error).splitlines()[0]})."
        ) from None


def _only_checkpoint(folder: Path) -> Path:
    found = sorted(path for suffix in SUFFIXES for path in folder.rglob(f"*{suffix}"))
    if len(found) != 1:
        names = ", ".join(path.name for path in found[:5]) or "none"
        raise CheckpointError(f"{folder} must hold exactly one checkpoint, found {names}; give the file itself.")
    return found[0]


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
    content = load_pickled(path)
    for key in ("state_dict", "model", "ema"):
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
            break
    tensors = {k: v for k, v in content.items() if isinstance(v, Tensor)} if isinstance(content, dict) else {}
    if not tensors:
        raise CheckpointError(f"{path} holds no state_dict with tensors in it.")
    return tensors, {}


def tensors_sha256(tensors: Mapping[str, Tensor]) -> str:
    """A checksum over names, dtypes, shapes and contents."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _settings(path: Path, metadata: Mapping[str, str], known: Settings | None) -> Settings:
    """Configuration, latent shape and class names: from the file, a YAML beside it, or common knowledge."""
    if "config" in metadata:
        try:
            shape = json.loads(metadata.get("latent_shape", "null"))
            names = json.loads(metadata.get("class_names", "null"))
            return Settings(
                config=DDTConfig.from_mapping(json.loads(metadata["config"])),
                latent_shape=(shape[0], shape[1], shape[2]) if shape else None,
                class_names=tuple(str(name) for name in names) if names else None,
            )
        except (ValueError, TypeError, IndexError) as error:
            raise CheckpointError(f"{path} describes itself in a way that makes no sense ({error}).") from None
    folder = path.parent
    beside = [folder / f"{path.stem}{suffix}" for suffix in (".yaml", ".yml")] + [folder / "config.yaml"]
    candidates = [file for file in beside if file.is_file()] or sorted([*folder.glob("*.yaml"), *folder.glob("*.yml")])
    if len(candidates) == 1 or (candidates and candidates[0] in beside):
        return read_yaml(candidates[0])
    return known or Settings()


def read_yaml(path: Path) -> Settings:
    """Reads `model.denoiser.init_args` and `data.latent_shape` of a published configuration."""
    try:
        content = yaml.safe_load(path.read_text())
        config = DDTConfig.from_mapping(content["model"]["denoiser"]["init_args"])
        shape = (content.get("data") or {}).get("latent_shape")
        return Settings(config=config, latent_shape=(int(shape[0]), int(shape[1]), int(shape[2])) if shape else None)
    except (yaml.YAMLError, OSError, KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
        raise ConfigError(
            f"{path} is not a published DDT configuration, which has model.denoiser.init_args ({error})."
        ) from None


def _select(path: Path, tensors: dict[str, Tensor], weights: str) -> dict[str, Tensor]:
    """One set of weights out of what the checkpoint holds, its prefix removed."""
    # Wrappers of data-parallel training and of torch.compile leave these in the names.
    tensors = {re.sub(r"(^|\.)(module|_orig_mod)\.", r"\1", name): tensor for name, tensor in tensors.items()}
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
    broken = [name for name in expected if not torch.isfinite(tensors[name]).all()]
    if broken:
        raise CheckpointError(f"{path} holds NaN or infinity in {', '.join(broken[:5])}; it cannot be used.")
    model.load_state_dict({name: tensor.float() for name, tensor in tensors.items()}, strict=True)


def describe(path: Path) -> dict[str, Any]:
    """What a checkpoint file holds, without building a network."""
    located, _ = _locate(str(path))
    tensors, metadata = _read(located)
    settings = _settings(located, metadata, None)
    sets = [name for name, prefix in (("ema", EMA), ("raw", RAW)) if any(key.startswith(prefix) for key in tensors)]
    return {
        "file": str(located),
        "sha256": sha256_of(located),
        "tensors": len(tensors),
        "parameters": sum(tensor.numel() for tensor in tensors.values()),
        "dtypes": sorted({str(tensor.dtype).removeprefix("torch.") for tensor in tensors.values()}),
        "weights": sets or ["one unnamed set"],
        "configuration": str(settings.config) if settings.config else "unknown; load_model needs config={...}",
        "latent shape": str(settings.latent_shape) if settings.latent_shape else "unknown",
        "classes": list(settings.class_names) if settings.class_names else "unnamed",
    }
