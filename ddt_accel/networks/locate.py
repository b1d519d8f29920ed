"""Where a checkpoint is: an embedded model, a file, the one in a folder, or in a repository of the Hugging Face hub."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from pathlib import Path

from ddt_accel.errors import CheckpointError, DependencyError
from ddt_accel.networks.candidates import SUFFIXES, one_checkpoint, training_files
from ddt_accel.networks.ddt.config import DDTConfig
from ddt_accel.networks.settings import Settings
from ddt_accel.networks.shards import INDEX_SUFFIX

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
    if path.is_dir():
        path = one_checkpoint(path)
    if path.is_file():
        return Located(path=path, name=path.name, training=training_files(path.parent))
    if re.fullmatch(r"[\w.-]+/[\w.-]+", source) and not path.name.lower().endswith(SUFFIXES) and not path.is_symlink():
        config, latent_shape = PUBLISHED.get(source, (None, None))
        known = Settings(config=config, latent_shape=latent_shape)
        path = one_checkpoint(_download(source))
        return Located(path=path, name=source, known=known, training=training_files(path.parent))
    if path.is_symlink():
        raise CheckpointError(f"{source} is a link to {os.readlink(path)}, which is not there; give the file itself.")
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
    patterns = [f"*{suffix}" for suffix in (*SUFFIXES, INDEX_SUFFIX, ".yaml", ".yml")]
    try:
        return Path(huggingface_hub.snapshot_download(repository, allow_patterns=patterns))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise CheckpointError(
            f"{repository} is no local file and cannot be had from the Hugging Face hub ({reason})."
        ) from None
