"""What is known of a checkpoint beside its weights: how the network is built, what its latents and classes are."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ddt_accel.errors import CheckpointError, ConfigError, listed
from ddt_accel.networks.config import LatentShape, SplitConfig, from_mapping
from ddt_accel.networks.families import FAMILIES, Family, config_of, fits, nearest, published_of, settings_in, titles
from ddt_accel.networks.releases import Shapes
from ddt_accel.networks.shards import stem_of
from ddt_accel.networks.yaml_files import Document, Place, read_document


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What says how a checkpoint is to be read, and where that was found.

    `others` are the settings of further networks that stand there, such as a guide's; `widths` the nested ones that the
    network was trained at.
    """

    config: SplitConfig | None = None
    others: tuple[SplitConfig, ...] = ()
    latent_shape: LatentShape | None = None
    class_names: tuple[str, ...] | None = None
    widths: tuple[float, ...] = ()
    origin: str = "that was given"

    def for_weights(self, shapes: Shapes) -> Settings:
        """These settings with the network's whose weights have such shapes, where several are known."""
        fitting = [config for config in (self.config, *self.others) if self.others and config and fits(config, shapes)]
        return dataclasses.replace(self, config=fitting[0], others=()) if fitting else self


def given_settings(config: Mapping[str, Any] | SplitConfig | str | Path | None) -> Settings:
    """What the caller says: the published settings by name, or a YAML with them."""
    if isinstance(config, str | Path):
        return read_yaml(Path(config).expanduser())
    if isinstance(config, Mapping):
        if any(isinstance(value, dict) for value in config.values()):  # a whole YAML, read by the caller
            return _read(Document(dict(config)), "The configuration", "that was given")
        return Settings(config=config_of(config))
    return Settings(config=config)


def settings_beside(
    path: Path, metadata: Mapping[str, str], known: Settings, shapes: Shapes, *, needed: bool
) -> Settings:
    """Configuration, latent shape and class names of a checkpoint whose weights have such shapes.

    They come from the file, a YAML beside it or one folder up, what is `known` by its name, or the weights themselves.
    Where a configuration is not `needed`, one that cannot be used is passed over; else ConfigError or CheckpointError
    says what was looked for.
    """
    looked: list[str] = []
    if "config" in metadata:
        try:
            return _described(metadata)
        except (ValueError, TypeError, LookupError, RecursionError) as error:
            if needed and "tensors_sha256" in metadata:
                raise CheckpointError(f"{path} describes itself in a way that makes no sense ({error}).") from None
            looked.append(f"the config that its header has is none of a {titles()}")
    places = list(dict.fromkeys((path, path.resolve())))
    for place in places:
        if told := _beside(place, looked, needed=needed):
            return _with_shape(told.for_weights(shapes), known)
    for place in places:
        if told := _above(place, looked, shapes):
            return _with_shape(told, known)
    if known.config is not None:
        return known
    try:
        # From a file with a network's name on it, settings that do not follow are no better than none.
        return dataclasses.replace(known, config=settings_in(shapes), origin="that its weights tell")
    except ConfigError as error:
        if not needed:
            return known
        raise ConfigError(
            f"Nothing says how the network in {path} is built: {str(error).rstrip('.')}. Put the published YAML "
            "beside it, or give --config FILE.yaml (in Python config=, the file or a mapping). Looked for: "
            f"{'; '.join(looked)}."
        ) from None


def _with_shape(told: Settings, known: Settings) -> Settings:
    """A YAML that serves several published files says less of the latents than what is known of this one."""
    return dataclasses.replace(told, latent_shape=known.latent_shape or told.latent_shape)


def _beside(path: Path, looked: list[str], *, needed: bool) -> Settings | None:
    """From a YAML in the same folder: of the file's name, `config.yaml`, or the only one there."""
    named = [path.with_name(stem_of(path) + suffix) for suffix in (".yaml", ".yml")]
    about = next((file for file in (*named, path.with_name("config.yaml")) if file.is_file()), None)
    others = sorted(file for suffix in ("*.yaml", "*.yml") for file in path.parent.glob(suffix))
    chosen = about or (others[0] if len(others) == 1 else None)
    if chosen is None:
        found = f"it has {listed([file.name for file in others])}" if others else "it has no YAML"
        looked.append(f"{path.parent} should have {named[0].name} or config.yaml, and {found}")
        return None
    try:
        return read_yaml(chosen)
    except ConfigError as error:
        # Only a file that goes by the checkpoint's name, or by "config", has to be about it.
        if needed and about is not None:
            raise
        looked.append(str(error).rstrip("."))
        return None


def _above(path: Path, looked: list[str], shapes: Shapes) -> Settings | None:
    """From `config.yaml` one folder up, where RAE's training keeps it, if it is of such weights."""
    file = path.parent.parent / "config.yaml"
    if not file.is_file():
        return None
    try:
        told = read_yaml(file).for_weights(shapes)
    except ConfigError as error:
        looked.append(str(error).rstrip("."))
        return None
    if told.config is None or not fits(told.config, shapes):
        looked.append(f"{file} is about a network of other weights")
        return None
    return told


def _described(metadata: Mapping[str, str]) -> Settings:
    """What a safetensors file of ours says of itself."""
    shape = json.loads(metadata.get("latent_shape", "null"))
    names = json.loads(metadata.get("class_names", "null"))
    config = config_of(json.loads(metadata["config"]))
    widths = () if getattr(config, "block_routes", None) else json.loads(metadata.get("widths", "[]"))
    return Settings(
        config=config,
        latent_shape=_shape(shape) if shape else None,
        class_names=tuple(str(name) for name in names) if names else None,
        widths=tuple(float(width) for width in widths),  # of routes the settings tell them
        origin="in its own header",
    )


def read_yaml(path: Path) -> Settings:
    """Reads a published configuration, or any other YAML that has the published settings together in one place.

    The settings may stand anywhere (published: `model.denoiser.init_args`, `stage_2.params`), and so may the shape of
    the latents. Plain interpolation, `${data.num_classes}`, is followed. Raises ConfigError, saying what was looked for
    and what there is.
    """
    return _read(read_document(path), str(path), f"in {path}")


def _read(document: Document, name: str, origin: str) -> Settings:
    try:
        config, *others = _configs(document)
        shape = _latent_shape(document, config)
    except ConfigError as error:
        raise ConfigError(f"{name} is not a published configuration of a network. {error}") from None
    return Settings(config=config, others=tuple(others), latent_shape=shape, origin=origin)


def _configs(document: Document) -> list[SplitConfig]:
    """The settings of the network that a YAML is about, then those of others in it."""
    mappings = list(document.mappings())
    complete = [
        (family, place)
        for family in FAMILIES.values()
        for place, values in mappings
        if all(name in values for name in family.needed)
    ]
    # What else there is beside what is published may have to be filled in by other programs.
    published = [(family, place) for family, place in complete if place == family.published.SETTINGS_AT[0]]
    if published:
        further = []
        for family, place in complete:
            if place in family.published.SETTINGS_AT[1:]:
                with contextlib.suppress(ConfigError):
                    further.append(_settings_at(document, family, place))
        return [*(_settings_at(document, family, place) for family, place in published), *further]
    configs = {place: _settings_at(document, family, place) for family, place in complete}
    if len(set(configs.values())) > 1:
        meant = ".".join(complete[0][0].published.SETTINGS_AT[0])
        raise ConfigError(
            f"It has different settings in {listed([_shown(place) for place in configs])}; leave those of the network "
            f"that is meant, under {meant}."
        )
    if configs:
        return [next(iter(configs.values()))]
    raise ConfigError(_lacking(document, mappings))


def _settings_at(document: Document, family: Family, place: Place) -> SplitConfig:
    there = dict(document.mappings())[place]
    values = document.values(place, [name for name in family.settings if name in there])
    config: SplitConfig = from_mapping(family.config, values)
    return config


def _lacking(document: Document, mappings: list[tuple[Place, dict[Any, Any]]]) -> str:
    """Which settings a YAML has, and which it would need."""
    place, values = max(mappings, key=lambda item: _share(item[1]), default=((), {}))
    family = nearest(values)
    present = [name for name in family.needed if name in values]
    where = {".".join(one.published.SETTINGS_AT[0]): None for one in FAMILIES.values()}
    if not present:
        return (
            f"Looked for the settings of a network, together in one place such as {' or '.join(where)}; it has "
            f"{document.outline()}."
        )
    lacking = [name for name in family.needed if name not in present]
    return (
        f"Looked for {', '.join(family.needed)}, together in one place such as "
        f"{'.'.join(family.published.SETTINGS_AT[0])}; {_shown(place)} has {', '.join(present)} and lacks "
        f"{', '.join(lacking)}."
    )


def _share(values: Mapping[str, Any]) -> float:
    """How much of a family's settings is there."""
    needed = nearest(values).needed
    return sum(name in values for name in needed) / len(needed)


def _latent_shape(document: Document, config: SplitConfig) -> LatentShape | None:
    published = published_of(config).LATENTS_AT
    places = [(*place, published[-1]) for place, values in document.mappings() if values.get(published[-1]) is not None]
    if published in places and (shape := _shape_at(document, published)):
        return shape
    told = {shape for place in places if (shape := _shape_at(document, place))}
    return told.pop() if len(told) == 1 else None


def _shape_at(document: Document, place: Place) -> LatentShape | None:
    *around, name = place
    shape = document.values(tuple(around), [name])[name]
    try:
        return None if shape is None else _shape(shape)
    except (ValueError, TypeError, LookupError):
        raise ConfigError(f"Its {name} is {shape!r}; three numbers are expected.") from None


def _shape(value: Any) -> LatentShape:
    channels, height, width = (int(str(part)) for part in value)
    return channels, height, width


def _shown(place: Place) -> str:
    return ".".join(place) or "its top level"
