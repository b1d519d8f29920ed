"""What is known of a checkpoint beside its weights: how the network is built, what its latents and classes are."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ddt_accel.errors import CheckpointError, ConfigError, listed
from ddt_accel.networks.config import SplitConfig
from ddt_accel.networks.ddt.config import DDTConfig
from ddt_accel.networks.families import config_of
from ddt_accel.networks.shards import stem_of
from ddt_accel.networks.yaml_files import Document, read_document


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What says how a checkpoint is to be read."""

    config: SplitConfig | None = None
    latent_shape: tuple[int, int, int] | None = None
    class_names: tuple[str, ...] | None = None


def given_settings(config: Mapping[str, Any] | SplitConfig | str | Path | None) -> Settings:
    """What the caller says: the published settings by name, or a YAML with them."""
    if isinstance(config, str | Path):
        return read_yaml(Path(config).expanduser())
    if isinstance(config, Mapping):
        return Settings(config=config_of(config))
    return Settings(config=config)


def settings_beside(path: Path, metadata: Mapping[str, str], known: Settings, *, needed: bool) -> Settings:
    """Configuration, latent shape and class names: from the file, a YAML beside it, or what is `known` by its name.

    Where a configuration is not `needed`, one that cannot be used is passed over; else ConfigError or CheckpointError
    says what was looked for.
    """
    looked = []
    if "config" in metadata:
        try:
            return _described(metadata)
        except (ValueError, TypeError, LookupError, RecursionError) as error:
            if needed and "tensors_sha256" in metadata:
                raise CheckpointError(f"{path} describes itself in a way that makes no sense ({error}).") from None
            looked.append("the config that its header has is no DDT's")
    for place in dict.fromkeys((path, path.resolve())):
        named = [place.with_name(stem_of(place) + suffix) for suffix in (".yaml", ".yml")]
        about = next((file for file in (*named, place.with_name("config.yaml")) if file.is_file()), None)
        others = sorted(file for suffix in ("*.yaml", "*.yml") for file in place.parent.glob(suffix))
        chosen = about or (others[0] if len(others) == 1 else None)
        if chosen is None:
            found = f"it has {listed([file.name for file in others])}" if others else "it has no YAML"
            looked.append(f"{place.parent} should have {named[0].name} or config.yaml, and {found}")
            continue
        try:
            told = read_yaml(chosen)
        except ConfigError as error:
            # Only a file that goes by the checkpoint's name, or by "config", has to be about it.
            if needed and about is not None:
                raise
            looked.append(str(error).rstrip("."))
            continue
        return dataclasses.replace(told, latent_shape=told.latent_shape or known.latent_shape)
    if needed and known.config is None:
        raise ConfigError(
            f"Nothing says how the network in {path} is built: its number of encoder blocks cannot be read off the "
            "weights. Put the published YAML beside it, or give --config FILE.yaml (in Python config=, the file or a "
            f"mapping). Looked for: {'; '.join(looked)}."
        )
    return known


def _described(metadata: Mapping[str, str]) -> Settings:
    """What a safetensors file of ours says of itself."""
    shape = json.loads(metadata.get("latent_shape", "null"))
    names = json.loads(metadata.get("class_names", "null"))
    return Settings(
        config=config_of(json.loads(metadata["config"])),
        latent_shape=_shape(shape) if shape else None,
        class_names=tuple(str(name) for name in names) if names else None,
    )


def read_yaml(path: Path) -> Settings:
    """Reads a published configuration, or any other YAML that has the published settings together in one place.

    The settings may stand anywhere (published: `model.denoiser.init_args`), and so may `latent_shape` (published: in
    `data`). Plain interpolation, `${data.num_classes}`, is followed. Raises ConfigError, saying what was looked for and
    what there is.
    """
    document = read_document(path)
    names = [field.name for field in dataclasses.fields(DDTConfig)]
    try:
        return Settings(config=_config(document, names), latent_shape=_latent_shape(document))
    except ConfigError as error:
        raise ConfigError(f"{path} is not a published DDT configuration. {error}") from None


def _config(document: Document, names: list[str]) -> DDTConfig:
    places = [place for place, values in document.mappings() if all(name in values for name in names)]
    published = ("model", "denoiser", "init_args")
    if published in places:  # what else there is may have to be filled in by other programs
        return config_of(document.values(published, names))
    configs = {place: config_of(document.values(place, names)) for place in places}
    if len(set(configs.values())) > 1:
        raise ConfigError(
            f"It has different settings in {listed([_shown(place) for place in configs])}; leave those of the network "
            "that is meant, under model.denoiser.init_args."
        )
    for config in configs.values():
        return config
    partial = max(document.mappings(), key=lambda item: sum(name in item[1] for name in names), default=((), {}))
    present = [name for name in names if name in partial[1]]
    looked = f"Looked for {', '.join(names)}, together in one place such as model.denoiser.init_args"
    if present:
        lacking = [name for name in names if name not in present]
        raise ConfigError(f"{looked}; {_shown(partial[0])} has {', '.join(present)} and lacks {', '.join(lacking)}.")
    raise ConfigError(f"{looked}; it has {document.outline()}.")


def _latent_shape(document: Document) -> tuple[int, int, int] | None:
    places = [place for place, values in document.mappings() if values.get("latent_shape") is not None]
    if ("data",) in places and (published := _shape_at(document, ("data",))):
        return published
    told = {shape for place in places if (shape := _shape_at(document, place))}
    return told.pop() if len(told) == 1 else None


def _shape_at(document: Document, place: tuple[str, ...]) -> tuple[int, int, int] | None:
    shape = document.values(place, ["latent_shape"])["latent_shape"]
    try:
        return None if shape is None else _shape(shape)
    except (ValueError, TypeError, LookupError):
        raise ConfigError(f"Its latent_shape is {shape!r}; three numbers are expected.") from None


def _shape(value: Any) -> tuple[int, int, int]:
    channels, height, width = (int(str(part)) for part in value)
    return channels, height, width


def _shown(place: tuple[str, ...]) -> str:
    return ".".join(place) or "its top level"
