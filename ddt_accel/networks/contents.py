"""What is in a checkpoint, whatever it is written as: its tensors, under the keys that lead to them.

The content of a file says what it is, not its name. Nothing is read but names and shapes until an `Entry` is.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import safetensors
import torch
from torch import Tensor

from ddt_accel.errors import CheckpointError
from ddt_accel.networks.archives import PickledCheckpoint
from ddt_accel.networks.headers import artefact_of
from ddt_accel.networks.shards import shards_of
from ddt_accel.networks.unpickle import Inert, NumpyArray, StoredTensor, Unusual

Keys = tuple[str, ...]
_SAFETENSORS_DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64,
    "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2, "C64": torch.complex64,
}  # fmt: skip
# Deeper than any weights lie, and more than any checkpoint has: object graphs of other packages can be endless.
_DEEPEST, _MOST = 64, 200_000
# What is downloaded or copied in the place of a checkpoint, by how it begins.
_IMPOSTORS = {
    b"version https://git-lfs": "is a pointer of Git LFS to a file that was not downloaded; run `git lfs pull`",
    b"<": "is a web page; its download needs a login or another address",
    b"\x1f\x8b": "is compressed by gzip; unpack it first",
    b"\x28\xb5\x2f\xfd": "is compressed by zstd; unpack it first",
    b"\xfd7zXZ": "is compressed by xz; unpack it first",
    b"\x89HDF": "is an HDF5 file; save its weights by PyTorch or as safetensors",
}


class TensorFile(Protocol):
    """What tensors are read from."""

    def read(self, place: Any) -> Tensor: ...


@dataclass(frozen=True)
class Entry:
    """A tensor in a file; two are equal where they are the same one. `dtype` is None for types of no use here.

    What is `unusual`, quantised or sparse, cannot be read.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype | None
    place: Any
    file: TensorFile
    unusual: str | None = None

    def read(self) -> Tensor:
        return self.file.read(self.place)


@dataclass(frozen=True, kw_only=True)
class Contents:
    """All tensors of a checkpoint in the order of the file, each with the keys of the dicts around it.

    `vacant` has the first keys under which something could hold tensors and does not, and whether it holds anything.
    `metadata` is what a safetensors file says of itself.
    """

    kind: str
    tensors: tuple[tuple[Keys, Entry], ...]
    vacant: dict[str, bool]
    metadata: dict[str, str]


def open_checkpoint(path: Path) -> Contents:
    """Opens a file, or all the files that the one given is an index or a shard of.

    Raises CheckpointError with the reason where it is no checkpoint or is damaged.
    """
    shards = shards_of(path)
    if shards is None:
        return _open(path)
    opened = {file: _open(file) for file in shards.files}
    tensors = [item for contents in opened.values() for item in contents.tensors]
    if shards.homes is not None:
        held = {(file, ".".join(keys)): (keys, entry) for file in opened for keys, entry in opened[file].tensors}
        if lost := [name for name, file in shards.homes.items() if (file, name) not in held]:
            raise CheckpointError(f"{path} is damaged: {shards.homes[lost[0]].name} lacks {lost[0]}, which it names.")
        tensors = [held[file, name] for name, file in shards.homes.items()]
    metadata = {key: value for contents in opened.values() for key, value in contents.metadata.items()}
    kind = f"{next(iter(opened.values())).kind} in {len(opened)} files"
    return Contents(kind=kind, tensors=tuple(tensors), vacant={}, metadata=metadata)


def _open(path: Path) -> Contents:
    try:
        with path.open("rb") as file:
            head = file.read(512)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read ({error.strerror or error}).") from None
    if not head:
        raise CheckpointError(f"{path} is empty; download or copy it anew.")
    if head[8:9] == b"{":
        return _open_safetensors(path)
    for beginning, reason in _IMPOSTORS.items():
        if head.startswith(beginning):
            raise CheckpointError(f"{path} {reason}.")
    if head[257:262] == b"ustar":
        raise CheckpointError(f"{path} is a tar archive; unpack it, and give the checkpoint that it holds.")
    if head.startswith((b"PK", b"\x80")):
        return _open_pickled(path)
    if path.suffix.lower() == ".safetensors":
        return _open_safetensors(path)
    raise CheckpointError(
        f"{path} is no checkpoint or is damaged: it holds neither safetensors nor what torch.save writes, whatever its "
        "name."
    )


class _Safetensors:
    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: Any = safetensors.safe_open(path, framework="pt")

    def read(self, name: str) -> Tensor:
        try:
            tensor: Tensor = self._file.get_tensor(name)
        except (safetensors.SafetensorError, OSError, AttributeError) as error:
            raise CheckpointError(f"{self._path} is damaged: {name} cannot be read ({error}).") from None
        return tensor

    def metadata(self) -> dict[str, str]:
        return self._file.metadata() or {}

    def entries(self) -> Iterator[tuple[Keys, Entry]]:
        for name in self._file.keys():  # noqa: SIM118
            told = self._file.get_slice(name)
            yield (name,), Entry(tuple(told.get_shape()), _SAFETENSORS_DTYPES.get(told.get_dtype()), name, self)


def _open_safetensors(path: Path) -> Contents:
    try:
        file = _Safetensors(path)
        tensors, metadata = tuple(file.entries()), file.metadata()
    except (safetensors.SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} is damaged or not a safetensors file ({error}).") from None
    if (artefact := artefact_of(metadata)) is not None:
        raise CheckpointError(f"{path} is a {artefact[:80]}, not a checkpoint; give the model itself.")
    return Contents(kind="safetensors", tensors=tensors, vacant={}, metadata=metadata)


def _open_pickled(path: Path) -> Contents:
    file = PickledCheckpoint(path)
    tensors = tuple(_Walk(file).through(file.content, ()))
    filled = {keys[0] for keys, _ in tensors if keys}
    top = dict(file.content.children()) if isinstance(file.content, Inert) else file.content
    containers = {
        str(key): bool(value)
        for key, value in (top.items() if isinstance(top, dict) else ())
        if str(key) not in filled and isinstance(value, dict | list | tuple | None)
    }
    return Contents(kind="PyTorch", tensors=tensors, vacant=containers, metadata={})


class _Walk:
    """Finds the tensors in a pickled content.

    It goes through an object of another package once, never in circles, and not again to where there was nothing.
    """

    def __init__(self, file: PickledCheckpoint) -> None:
        self._file = file
        self._around: set[int] = set()
        self._done: set[int] = set()
        self._left = _MOST

    def through(self, value: Any, keys: Keys) -> Iterator[tuple[Keys, Entry]]:
        if isinstance(value, StoredTensor | NumpyArray):
            self._left -= 1
            if self._left < 0:
                raise CheckpointError(f"The file holds more than {_MOST:,} tensors; it is no checkpoint.")
            if value.dtype is not None:
                yield keys, Entry(value.shape, value.dtype, value, self._file)
        elif isinstance(value, Unusual):
            yield keys, Entry((), None, value, self._file, unusual=value.kind)
        elif isinstance(value, dict | list | tuple) and len(keys) < _DEEPEST and self._is_new(value):
            self._around.add(id(value))
            yield from self._inside(value, keys)
            self._around.discard(id(value))

    def _is_new(self, value: Any) -> bool:
        return id(value) not in self._around and id(value) not in self._done

    def _inside(self, value: dict[Any, Any] | list[Any] | tuple[Any, ...], keys: Keys) -> Iterator[tuple[Keys, Entry]]:
        before = self._left
        if isinstance(value, Inert):
            self._done.add(id(value))
            children = value.children()
        else:
            children = iter(value.items() if isinstance(value, dict) else enumerate(value))
        for key, child in children:
            yield from self.through(child, (*keys, str(key)))
        if self._left == before:
            self._done.add(id(value))
