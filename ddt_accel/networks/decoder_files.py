"""Which files make a decoder of latents: a folder, a file, a published YAML, or a repository of the Hugging Face hub.

The contents of a folder say which kind it holds: `config.json` names a class of diffusers, AutoencoderKL or
AutoencoderRAE; RAE's published files are known by the tensors in them, the decoder by `decoder_embed`, its statistics
by `mean` and `var`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ddt_accel.errors import CheckpointError, ConfigError, listed
from ddt_accel.networks.candidates import SUFFIXES
from ddt_accel.networks.contents import Contents, open_checkpoint
from ddt_accel.networks.decoder_hub import download
from ddt_accel.networks.hub import repository_in
from ddt_accel.networks.yaml_files import read_document

KINDS = ("AutoencoderKL", "AutoencoderRAE")
CONFIG, PREPROCESSOR = "config.json", "preprocessor_config.json"
_DIFFUSERS = ("diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.safetensors.index.json")
_STAGE_1 = ("stage_1", "params")
_LEVELS = 3  # folders above a decoder in which its configuration and statistics are looked for


@dataclass(frozen=True, kw_only=True)
class DecoderFiles:
    """A decoder of this kind, of `KINDS`, and where its parts are.

    `source` is what AutoencoderKL reads, or a name for messages. `settings` is the content of its `config.json`, and
    `preprocessor` that of the encoder's `preprocessor_config.json`. `statistics` are files that may be those of the
    latents, the likeliest first; `named` where it was said which. `encoder` is a hint at what the latents are of.
    """

    kind: str
    source: str
    weights: Path | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    statistics: tuple[Path, ...] = ()
    named: bool = False
    preprocessor: dict[str, Any] = field(default_factory=dict)
    patch_size: int | None = None
    encoder: str = ""


def decoder_files(source: str | Path) -> DecoderFiles:
    """Finds the files of a decoder, downloading those of a repository, `owner/name` or `owner/name:path`.

    Raises CheckpointError where there is none, or several; ConfigError for a YAML without one.
    """
    path = Path(os.path.expanduser(source))
    named = repository_in(str(source))
    if named and not path.exists() and (named[1] or not path.name.lower().endswith((*SUFFIXES, ".yaml", ".yml"))):
        repository, inside = named
        path = download(repository, inside, SUFFIXES)
        if inside is None and read_json(path / CONFIG).get("_class_name") == "AutoencoderKL":
            return DecoderFiles(kind="AutoencoderKL", source=repository)
    if path.is_dir():
        return _in_folder(path)
    if not path.is_file():
        raise CheckpointError(
            f"There is no {source}; give a decoder's folder, file, published YAML or Hugging Face repository."
        )
    return _of_yaml(path) if path.suffix.lower() in (".yaml", ".yml") else _around(path)


def decoder_prefix(contents: Contents) -> str | None:
    """What stands before the names of an RAE decoder in a file, averaged weights first; None where there is none."""
    ending = "decoder_embed.weight"
    names = (".".join(keys) for keys, _ in contents.tensors)
    found = sorted({name.removesuffix(ending) for name in names if name.endswith(ending)})
    return min(found, key=lambda prefix: not prefix.startswith("ema"), default=None)


def is_statistics(contents: Contents) -> bool:
    """Whether a file holds the mean or the variance of latents, and nothing else."""
    names = {".".join(keys) for keys, _ in contents.tensors}
    return bool(names) and names <= {"mean", "var"}


def read_json(path: Path) -> dict[str, Any]:
    """The content of a JSON file; empty where there is none."""
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is no JSON ({str(error) or type(error).__name__}).") from None
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} holds no settings, but a {type(content).__name__}.")
    return content


def _in_folder(folder: Path) -> DecoderFiles:
    settings = read_json(folder / CONFIG)
    kind = settings.get("_class_name") or ("AutoencoderKL" if "latent_channels" in settings else None)
    if kind == "AutoencoderKL":
        return DecoderFiles(kind=kind, source=str(folder))
    if kind == "AutoencoderRAE":
        weights = next((folder / name for name in _DIFFUSERS if (folder / name).is_file()), None)
        if weights is None:
            raise CheckpointError(f"{folder} is to hold {_DIFFUSERS[0]}, and does not; download or copy it, too.")
        preprocessor = read_json(folder / PREPROCESSOR)
        return DecoderFiles(
            kind=kind, source=str(folder), weights=weights, settings=settings, preprocessor=preprocessor
        )
    if kind is not None:
        raise CheckpointError(
            f"{folder} holds diffusers' {str(kind)[:60]}; decoders of latents are {' and '.join(KINDS)}."
        )
    decoders, statistics = [], []
    for path in sorted(path for path in folder.rglob("*") if path.name.lower().endswith(SUFFIXES) and path.is_file()):
        try:
            contents = open_checkpoint(path)
        except CheckpointError:
            continue
        if decoder_prefix(contents) is not None:
            decoders.append(path)
        elif is_statistics(contents):
            statistics.append(path)
    if len(decoders) == 1:
        return _around(decoders[0], folder, statistics)
    if decoders:
        told = listed([str(path.relative_to(folder)) for path in decoders])
        raise CheckpointError(f"{folder} holds {len(decoders)} decoders: {told}; give one of them, as {decoders[0]}.")
    raise CheckpointError(
        f"No autoencoder can be loaded from {folder}: it holds neither a config.json of {' or '.join(KINDS)} nor a "
        "file with decoder_embed, as RAE's decoders have it."
    )


def _around(weights: Path, folder: Path | None = None, statistics: list[Path] | None = None) -> DecoderFiles:
    """A published decoder, with what lies beside it, or in the folder that was given."""
    near = [*([folder] if folder else []), *weights.absolute().parents[:_LEVELS]]
    configs = [place for one in near for place in (one / CONFIG, one / "decoder_config" / CONFIG)]
    settings = next((told for told in map(read_json, configs) if "decoder_num_attention_heads" in told), {})
    preprocessor = next((told for told in (read_json(one / PREPROCESSOR) for one in near) if told), {})
    beside = [one / "stat.pt" for one in near if (one / "stat.pt").is_file()]
    return DecoderFiles(
        kind="AutoencoderRAE",
        source=str(folder or weights),
        weights=weights,
        settings=settings,
        statistics=tuple(dict.fromkeys([*(statistics or []), *beside, *_published_statistics(weights)])),
        preprocessor=preprocessor,
        encoder="/".join(weights.parts[-4:]),
    )


def _published_statistics(weights: Path) -> Iterator[Path]:
    """In `stats/ENCODER/SIZE/DATA/`, where a decoder lies in `decoders/ENCODER/SIZE/NAME/`; those of ImageNet first."""
    parts = weights.absolute().parts
    if len(parts) > 5 and parts[-5] == "decoders":
        folder = Path(*parts[:-5], "stats", *parts[-4:-2])
        found = folder.glob("*/stat.pt")
        yield from sorted(found, key=lambda path: (not path.parent.name.lower().startswith("imagenet"), path))


def _of_yaml(path: Path) -> DecoderFiles:
    """What a published configuration says under `stage_1.params`."""
    document = read_document(path)
    stage = next((inner for place, inner in document.mappings() if place == _STAGE_1), None)
    if stage is None or not stage.get("pretrained_decoder_path"):
        raise ConfigError(
            f"{path} names no decoder: it has {document.outline()}, and stage_1.params.pretrained_decoder_path is "
            "looked for."
        )
    names = ("pretrained_decoder_path", "normalization_stat_path", "decoder_config_path", "encoder_config_path",
             "decoder_patch_size")  # fmt: skip
    told = document.values(_STAGE_1, [name for name in names if name in stage])
    weights = _resolved(path, told["pretrained_decoder_path"])
    if weights is None:
        raise _absent(path, "pretrained_decoder_path", told["pretrained_decoder_path"])
    stat = told.get("normalization_stat_path")
    statistics = _resolved(path, stat) if stat else None
    if stat and statistics is None:
        raise _absent(path, "normalization_stat_path", stat)
    config = _resolved(path, told.get("decoder_config_path"))
    encoder = _resolved(path, told.get("encoder_config_path"))
    patch_size = told.get("decoder_patch_size")
    return DecoderFiles(
        kind="AutoencoderRAE",
        source=str(path),
        weights=weights,
        settings=read_json(config / CONFIG if config and config.is_dir() else config) if config else {},
        statistics=(statistics,) if statistics else (),
        named=True,
        preprocessor=read_json(encoder / PREPROCESSOR) if encoder else {},
        patch_size=patch_size if isinstance(patch_size, int) else None,
        encoder=str(told.get("encoder_config_path") or ""),
    )


def _resolved(yaml: Path, told: Any) -> Path | None:
    """A path of a YAML from its folder, or from one above; published ones begin with `models/`, the folder that the
    repository is downloaded into, and are looked for without it, too."""
    if not isinstance(told, str) or not told:
        return None
    path = Path(os.path.expanduser(told))
    ways = [path, Path(*path.parts[1:])] if path.parts[0] == "models" and len(path.parts) > 1 else [path]
    tried = (folder / way for folder in yaml.absolute().parents for way in ways)
    return next((place for place in tried if place.exists()), None)


def _absent(yaml: Path, name: str, told: Any) -> CheckpointError:
    return CheckpointError(
        f"{yaml} says {name}: {str(told)[:200]}, which is neither in its folder nor in one above; put it there, or "
        "give the decoder's own folder."
    )
