"""Where a checkpoint is, and what is known of it beside its weights."""

from __future__ import annotations

import dataclasses
import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import yaml

from ddt_accel.errors import CheckpointError, ConfigError, DependencyError
from ddt_accel.networks.config import DDTConfig

SUFFIXES = (".safetensors", ".ckpt", ".pt", ".pth")
EMBEDDED = Path(__file__).parent / "weights"

_XL2 = DDTConfig(
    in_channels=4, patch_size=2, num_groups=16, hidden_size=1152, num_blocks=28, num_encoder_blocks=22, num_classes=1000
)
PUBLISHED: dict[str, tuple[DDTConfig | None, tuple[int, int, int] | None]] = {
    "MCG-NJU/DDT-XL-22en6de-R256": (_XL2, (4, 32, 32)),
    "MCG-NJU/DDT-XL-22en6de-R512": (_XL2, (4, 64, 64)),
}


def embedded_models() -> list[str]:
    """The short names of the models inside the package."""
    return sorted(path.stem for path in EMBEDDED.glob("*.safetensors"))


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What says how a checkpoint is to be read."""

    config: DDTConfig | None = None
    latent_shape: tuple[int, int, int] | None = None
    class_names: tuple[str, ...] | None = None


@dataclass(frozen=True, kw_only=True)
class Located:
    """A checkpoint file, what it is called in reports, and what is known of it by that name alone."""

    path: Path
    name: str
    known: Settings = Settings()


def locate(source: str) -> Located:
    """Finds an embedded model, a file, the one checkpoint in a folder, or in a repository, which is downloaded."""
    if source in embedded_models():
        return Located(path=EMBEDDED / f"{source}.safetensors", name=source)
    path = Path(os.path.expanduser(source))
    if path.is_dir():
        path = _only_checkpoint(path)
    if path.is_file():
        if path.suffix not in SUFFIXES:
            raise CheckpointError(f"{path} has the suffix '{path.suffix}'; expected one of {', '.join(SUFFIXES)}.")
        return Located(path=path, name=path.name)
    if re.fullmatch(r"[\w.-]+/[\w.-]+", source) and path.suffix not in SUFFIXES:
        config, latent_shape = PUBLISHED.get(source, (None, None))
        known = Settings(config=config, latent_shape=latent_shape)
        return Located(path=_only_checkpoint(_download(source)), name=source, known=known)
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
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise CheckpointError(
            f"{repository} is no local file and cannot be had from the Hugging Face hub ({reason})."
        ) from None


def _only_checkpoint(folder: Path) -> Path:
    found = sorted(path for suffix in SUFFIXES for path in folder.rglob(f"*{suffix}"))
    if len(found) != 1:
        names = ", ".join(path.name for path in found[:5]) or "none"
        raise CheckpointError(f"{folder} must hold exactly one checkpoint, found {names}; give the file itself.")
    return found[0]


def settings_of(located: Located, metadata: Mapping[str, str], *, needed: bool = True) -> Settings:
    """Configuration, latent shape and class names: from the file, a YAML beside it, or what is known by name.

    Where nothing is `needed`, a YAML that is something else is passed over.
    """
    path, known = located.path, located.known
    if "config" in metadata:
        try:
            shape = json.loads(metadata.get("latent_shape", "null"))
            names = json.loads(metadata.get("class_names", "null"))
            return Settings(
                config=DDTConfig.from_mapping(json.loads(metadata["config"])),
                latent_shape=(int(shape[0]), int(shape[1]), int(shape[2])) if shape else None,
                class_names=tuple(str(name) for name in names) if names else None,
            )
        except (ValueError, TypeError, LookupError) as error:
            raise CheckpointError(f"{path} describes itself in a way that makes no sense ({error}).") from None
    folder = path.parent
    beside = [folder / f"{path.stem}{suffix}" for suffix in (".yaml", ".yml")] + [folder / "config.yaml"]
    candidates = [file for file in beside if file.is_file()] or sorted([*folder.glob("*.yaml"), *folder.glob("*.yml")])
    if len(candidates) == 1 or (candidates and candidates[0] in beside):
        try:
            told = read_yaml(candidates[0])
        except ConfigError:
            # Only a file that goes by the checkpoint's name, or by "config", has to be about it.
            if needed and candidates[0] in beside:
                raise
            return known
        return dataclasses.replace(told, latent_shape=told.latent_shape or known.latent_shape)
    return known


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
