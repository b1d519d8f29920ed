"""Decoders of latents from the Hugging Face hub: no more of a repository than belongs to the one that is meant."""

from __future__ import annotations

import glob
import json
from pathlib import Path, PurePosixPath
from typing import Any

from ddt_accel.errors import CheckpointError, DependencyError, listed

_PATIENCE = 20.0  # seconds
_SETTINGS = ("config.json", "preprocessor_config.json")


def download(repository: str, path: str | None, suffixes: tuple[str, ...]) -> Path:
    """The folder or file here that a decoder in a repository is read from.

    Where diffusers' `config.json` lies in the repository, or at `path` in it, that folder: of an AutoencoderKL at the
    top its settings alone, as diffusers fetches the rest. Else the decoder's file, which `path` is or leads to, with
    what may belong to it. Raises CheckpointError where several or none are meant.
    """
    is_file = path is not None and path.lower().endswith(suffixes)
    if not is_file:
        inside = f"{glob.escape(path)}/" if path else ""
        folder = _snapshot(repository, [inside + name for name in _SETTINGS]) / (path or "")
        kind = _class_in(folder / "config.json")
        if kind == "AutoencoderKL" and path is None:
            return folder
        if kind is not None:
            return _snapshot(repository, [f"{inside}*.json", f"{inside}*.safetensors"]) / (path or "")
    chosen = path if is_file and path else _chosen(repository, path, suffixes)
    file = PurePosixPath(chosen)
    near = [str(folder) for folder in file.parents][:3]
    names = [*_SETTINGS, "decoder_config/config.json", "stat.pt"]
    patterns = [glob.escape(name if place == "." else f"{place}/{name}") for place in near for name in names]
    if len(file.parts) > 4 and file.parts[-5] == "decoders":
        patterns.append(glob.escape("/".join((*file.parts[:-5], "stats", *file.parts[-4:-2]))) + "/*/stat.pt")
    return _snapshot(repository, [glob.escape(chosen), *patterns]) / chosen


def _class_in(config: Path) -> str | None:
    try:
        content = json.loads(config.read_bytes())
    except (OSError, ValueError, RecursionError):
        return None
    return str(content["_class_name"]) if isinstance(content, dict) and "_class_name" in content else None


def _chosen(repository: str, path: str | None, suffixes: tuple[str, ...]) -> str:
    """The one file that goes by a decoder's name; what it holds is seen when it is read."""
    names = _names(repository)
    decoders = [name for name in names if name.lower().endswith(suffixes) and "decoder" in name.lower()]
    found = [name for name in decoders if path is None or name.startswith(f"{path}/")]
    if len(found) == 1:
        return found[0]
    told = listed([f"{repository}:{name}" for name in found or decoders], most=12)
    if found:
        raise CheckpointError(f"{repository} holds {len(found)} decoders; give one of them: {told}.")
    raise CheckpointError(
        f"{repository} holds no decoder of latents"
        + (f" at {path}" if path else "")
        + (f"; it has {told}." if decoders else ", by the names of its files.")
    )


def _names(repository: str) -> list[str]:
    """The files of a repository; without a connection, those that were downloaded before."""
    hub = _hub(repository)
    try:
        siblings = hub.HfApi().model_info(repository, timeout=_PATIENCE).siblings or []
        return sorted(sibling.rfilename for sibling in siblings)
    except Exception as error:  # of a lost connection, they are those of an HTTP client that differs by version
        try:
            folder = Path(hub.snapshot_download(repository, local_files_only=True))
        except Exception:
            raise _unavailable(repository, error) from None
        return sorted(file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file())


def _snapshot(repository: str, patterns: list[str]) -> Path:
    hub = _hub(repository)
    try:
        return Path(hub.snapshot_download(repository, allow_patterns=patterns))
    except Exception as error:
        raise _unavailable(repository, error) from None


def _hub(repository: str) -> Any:
    try:
        import huggingface_hub
    except ImportError:
        raise DependencyError(
            f"{repository} lies on the Hugging Face hub; to fetch it, install ddt-accel[vae], or give a local folder."
        ) from None
    return huggingface_hub


def _unavailable(repository: str, error: Exception) -> CheckpointError:
    reason = (str(error).splitlines() or [type(error).__name__])[0]
    return CheckpointError(
        f"No autoencoder can be loaded from {repository}: it is no local folder and cannot be had from the Hugging "
        f"Face hub ({reason})."
    )
