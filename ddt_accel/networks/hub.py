"""Checkpoints in repositories of the Hugging Face hub: which file of one is meant, and what has to be had with it."""

from __future__ import annotations

import glob
import re
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import unquote

from ddt_accel.errors import CheckpointError, DependencyError, listed
from ddt_accel.networks.candidates import candidates_in, named_as_checkpoints
from ddt_accel.networks.shards import INDEX_SUFFIX, stem_of

_REPOSITORY = re.compile(r"(?P<repository>[\w.-]+/[\w.-]+)(?::(?P<path>.+))?")
_MOST_LISTED = 24
_PATIENCE = 20.0  # seconds


def repository_in(source: str) -> tuple[str, str | None] | None:
    """`owner/name`, and the path after a colon; None where a source is no repository.

    A path may be written as in an address, with %3D for =.
    """
    found = _REPOSITORY.fullmatch(source)
    if found is None:
        return None
    path = found["path"]
    return found["repository"], unquote(path).strip("/") if path else None


def fetch(repository: str, path: str | None) -> tuple[Path, str]:
    """Downloads a checkpoint, and the YAMLs beside and above it; its file here, and its path in the repository.

    `path` is that of the file, or of a folder with one; None takes the only checkpoint in the repository. Without a
    connection, what was downloaded before is looked through. Raises CheckpointError where several or none are meant.
    """
    try:
        import huggingface_hub
    except ImportError:
        raise DependencyError(
            f"{repository} lies on the Hugging Face hub; to fetch it, install ddt-accel[hub], or give a local file."
        ) from None
    try:
        siblings = huggingface_hub.HfApi().model_info(repository, timeout=_PATIENCE).siblings or []
    except Exception as error:  # of a lost connection, they are those of an HTTP client that differs by version
        folder = _downloaded(huggingface_hub, repository, error, local_files_only=True)
        files = [file.relative_to(folder).as_posix() for file in candidates_in(folder)]
        chosen = path if path and (folder / path).is_file() else _chosen(repository, path, files)
    else:
        names = [sibling.rfilename for sibling in siblings]
        chosen = path if path in names else _chosen(repository, path, named_as_checkpoints(names))
        folder = _downloaded(huggingface_hub, repository, None, allow_patterns=_patterns(chosen))
    return folder / chosen, chosen


def _downloaded(hub: Any, repository: str, before: Exception | None, **options: Any) -> Path:
    """The folder that a repository's files are in; `before` is why less is asked for than would be wanted."""
    try:
        return Path(hub.snapshot_download(repository, **options))
    except Exception as error:
        reason = (str(before or error).splitlines() or [type(before or error).__name__])[0]
        raise CheckpointError(
            f"{repository} is no local file and cannot be had from the Hugging Face hub ({reason})."
        ) from None


def _chosen(repository: str, path: str | None, names: list[str]) -> str:
    """The checkpoint that is meant, of those that there are."""
    inside = [name for name in names if path is None or name == path or name.startswith(f"{path}/")]
    if len(inside) == 1:
        return inside[0]
    told = listed([f"{repository}:{name}" for name in inside or names], most=_MOST_LISTED)
    if inside:
        raise CheckpointError(f"{repository} holds {len(inside)} checkpoints; give one of them: {told}.")
    raise CheckpointError(
        f"{repository} holds no {path or 'checkpoint'}" + (f"; its checkpoints are {told}." if names else ".")
    )


def _patterns(path: str) -> list[str]:
    """What belongs to a file: its index and shards, and YAMLs in its folder and the one above."""
    file = PurePosixPath(path)
    stem = glob.escape(str(file.with_name(stem_of(Path(file.name)))))
    folders = dict.fromkeys((file.parent, file.parent.parent))
    yamls = [f"{'' if folder == PurePosixPath('.') else glob.escape(str(folder)) + '/'}*.y*ml" for folder in folders]
    return [glob.escape(path), f"{stem}*{INDEX_SUFFIX}", f"{stem}-*-of-*", *yamls]
