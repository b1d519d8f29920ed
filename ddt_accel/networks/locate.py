"""Where a checkpoint is: an embedded model, a file, the one in a folder, or in a repository of the Hugging Face hub."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import unquote

from ddt_accel.errors import CheckpointError
from ddt_accel.networks.candidates import SUFFIXES, one_checkpoint, training_files
from ddt_accel.networks.families import release_of
from ddt_accel.networks.hub import fetch, repository_in
from ddt_accel.networks.settings import Settings

EMBEDDED = Path(__file__).parent / "weights"


def embedded_models() -> list[str]:
    """The short names of the models inside the package."""
    return sorted(path.stem for path in EMBEDDED.glob("*.safetensors"))


@dataclass(frozen=True, kw_only=True)
class Located:
    """A checkpoint file, what it is called in reports, and what is known of it by that name alone.

    `path` is as it was given: where that is a link, what lies beside the link counts, too. `training` names files of a
    training run of other tools in the same folder.
    """

    path: Path
    name: str
    known: Settings = field(default_factory=Settings)
    training: tuple[str, ...] = ()


def locate(source: str) -> Located:
    """Finds an embedded model, a file, the one checkpoint in a folder, or in a repository, which is downloaded."""
    if source in embedded_models():
        return Located(path=EMBEDDED / f"{source}.safetensors", name=source)
    path = Path(os.path.expanduser(source))
    if not path.exists() and "%" in source:  # as in an address: %3D for =
        path = next((plain for plain in [Path(os.path.expanduser(unquote(source)))] if plain.exists()), path)
    if path.is_dir():
        path = one_checkpoint(path)
    if path.is_file():
        return Located(path=path, name=path.name, training=training_files(path.parent))
    named = repository_in(source)
    if named and (named[1] or not path.name.lower().endswith(SUFFIXES)) and not path.is_symlink():
        repository, place = named
        path, place_there = fetch(repository, place)
        release = release_of(repository, place_there)
        name = f"{repository}:{place_there}" if place else repository
        known = Settings()
        if release is not None:
            known = Settings(
                config=release.config, latent_shape=release.latent_shape, origin="that was published of it"
            )
        return Located(path=path, name=name, known=known, training=training_files(path.parent))
    if path.is_symlink():
        raise CheckpointError(f"{source} is a link to {os.readlink(path)}, which is not there; give the file itself.")
    raise CheckpointError(
        f"There is no {source}; give a file, a folder, a Hugging Face repository id (owner/name, or owner/name:path "
        f"where it holds several checkpoints), or an embedded model: {', '.join(embedded_models())}."
    )
