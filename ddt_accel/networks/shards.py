"""Checkpoints in several files, as the Hugging Face tools write them: `model-00001-of-00002.safetensors` and so on, and
`model.safetensors.index.json`, which says where each tensor lies."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ddt_accel.errors import CheckpointError, listed

INDEX_SUFFIX = ".index.json"
_SHARD = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})(?P<suffix>\.\w+)")


@dataclass(frozen=True, kw_only=True)
class Shards:
    """The files of one checkpoint; `homes` says which file each tensor lies in, where there is an index."""

    files: tuple[Path, ...]
    homes: dict[str, Path] | None = None


def shards_of(path: Path) -> Shards | None:
    """All files of the checkpoint that `path` is the index or one shard of; None for a checkpoint in one file.

    Raises CheckpointError where one is missing or the index makes no sense.
    """
    if path.name.lower().endswith(INDEX_SUFFIX):
        homes = _index(path)
        files = tuple(dict.fromkeys(homes.values()))
    elif found := _SHARD.fullmatch(path.name):
        index = index_of(path)
        if index is not None:
            return shards_of(index)
        count = int(found["count"])
        names = (f"{found['stem']}-{n:05}-of-{count:05}{found['suffix']}" for n in range(1, min(count, 10_000) + 1))
        homes, files = None, tuple(path.parent / name for name in names)
    else:
        return None
    if missing := [file.name for file in files if not file.is_file()]:
        raise CheckpointError(
            f"{path} is one of {len(files)} files of a checkpoint, and beside it {listed(missing)} cannot be found; "
            "download or copy the rest, too."
        )
    return Shards(files=files, homes=homes)


def index_of(path: Path) -> Path | None:
    """The index beside a shard, if there is one."""
    found = _SHARD.fullmatch(path.name)
    index = path.with_name(f"{found['stem']}{found['suffix']}{INDEX_SUFFIX}") if found else path
    return index if found and index.is_file() else None


def first_of(path: Path, among: Sequence[Path] | None = None) -> Path:
    """What stands for the whole checkpoint in a folder: the index of a shard, else its first shard, else the file.

    Where it is `among` files that are not here, an index is looked for among them.
    """
    found = _SHARD.fullmatch(path.name)
    if found is None:
        return path
    index = path.with_name(f"{found['stem']}{found['suffix']}{INDEX_SUFFIX}")
    if index.is_file() if among is None else index in among:
        return index
    return path.with_name(f"{found['stem']}-00001-of-{found['count']}{found['suffix']}")


def stem_of(path: Path) -> str:
    """The name without what says that there are several files: `model` for all of a checkpoint's."""
    name = path.name[: -len(INDEX_SUFFIX)] if path.name.lower().endswith(INDEX_SUFFIX) else path.name
    found = _SHARD.fullmatch(name)
    name = found["stem"] if found else Path(name).stem
    return name[:-4] if name.lower().endswith((".pth", ".pt")) else name


def _index(path: Path) -> dict[str, Path]:
    try:
        homes = json.loads(path.read_bytes())["weight_map"]
        names = {str(tensor): str(file) for tensor, file in homes.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise CheckpointError(f"{path} is not an index of shards: a JSON file whose weight_map names them.") from None
    if not names or any(Path(file).name != file or not file for file in names.values()):
        raise CheckpointError(f"{path} is damaged: its weight_map must name files that lie beside it.")
    return {tensor: path.with_name(file) for tensor, file in names.items()}
