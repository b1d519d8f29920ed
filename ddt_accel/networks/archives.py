"""Files that `torch.save` wrote: zip archives since PyTorch 1.6, and pickles with the storages behind them before.

Contents are mapped from the file, so that only what is read takes memory. The records of a zip have checksums; one is
verified when something in it is first read.
"""

from __future__ import annotations

import io
import struct
import sys
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ddt_accel.errors import CheckpointError
from ddt_accel.networks.unpickle import NumpyArray, StoredTensor, Unpickler, Unusual

# What to do about quantised and sparse tensors.
ORDINARY = "save them as ordinary ones: `.dequantize()` of what is quantised, `.to_dense()` of what is sparse"
_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C


@dataclass(frozen=True)
class _Record:
    """Where a storage lies: its first byte, its number of bytes, and their CRC-32 if the file has one."""

    start: int
    size: int
    crc: int | None = None


class PickledCheckpoint:
    """A `.ckpt`, `.pt`, `.pth` or `.bin` file: `content` with a StoredTensor for each tensor, which `read` reads.

    Raises CheckpointError where the file is damaged or is a TorchScript archive.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._verified: set[str] = set()
        try:
            with path.open("rb") as file:
                zipped = file.read(4) == b"PK\x03\x04"
            self.content, self._records = _open_zip(path) if zipped else _open_legacy(path)
            self._bytes = torch.from_file(str(path), shared=False, size=path.stat().st_size, dtype=torch.uint8)
        except CheckpointError as error:
            raise CheckpointError(f"{path} is refused. {error}") from None
        except Exception as error:  # a damaged pickle can fail in any way
            reason = str(error)[:200] or type(error).__name__
            raise CheckpointError(f"{path} is damaged or not a PyTorch checkpoint ({reason}).") from None

    def read(self, stored: StoredTensor | NumpyArray | Unusual) -> Tensor:
        """The tensor, mapped from the file; a NumPy array has come along with the content.

        Raises CheckpointError for what is quantised or sparse.
        """
        if isinstance(stored, Unusual):
            raise CheckpointError(f"{self._path} holds {stored.kind} tensors, which cannot be read; {ORDINARY}.")
        if isinstance(stored, NumpyArray):
            return stored.read()
        storage = stored.storage
        size = storage.numel * storage.dtype.itemsize
        record = self._records.get(storage.key)
        if record is None or record.size < size or record.start + record.size > len(self._bytes):
            raise CheckpointError(f"{self._path} is damaged: it lacks the contents of storage {storage.key}.")
        self._verify(storage.key, record)
        data = self._bytes[record.start : record.start + size]
        if data.storage_offset() % stored.dtype.itemsize or len(data) % stored.dtype.itemsize:
            data = data[: len(data) // stored.dtype.itemsize * stored.dtype.itemsize].clone()
        typed = data.view(stored.dtype)
        tensor = typed.as_strided(stored.shape, stored.stride, typed.storage_offset() + stored.offset)
        if stored.conjugated:
            tensor = tensor.conj().resolve_conj()
        return -tensor if stored.negated and tensor.dtype != torch.bool else tensor

    def _verify(self, key: str, record: _Record) -> None:
        if record.crc is None or key in self._verified:
            return
        if zlib.crc32(self._bytes[record.start : record.start + record.size].numpy().data) != record.crc:
            raise CheckpointError(
                f"{self._path} is refused. Its record {key} fails its checksum: it is damaged; download or copy it "
                "anew."
            )
        self._verified.add(key)


_Opened = tuple[Any, dict[str, _Record]]


def _open_zip(path: Path) -> _Opened:
    """The pickled content, and where each storage lies."""
    with zipfile.ZipFile(path) as archive, path.open("rb") as file:
        names = {info.filename.partition("/")[2]: info for info in archive.infolist()}
        if "constants.pkl" in names:
            raise CheckpointError("It is a TorchScript program, not weights; save its state_dict instead.")
        if "data.pkl" not in names:
            raise CheckpointError("It is an archive of something else (no data.pkl); if it holds one, unpack it.")
        if any(info.compress_type != zipfile.ZIP_STORED for info in names.values()):
            raise CheckpointError("It is a compressed archive, which PyTorch does not write; save it with torch.save.")
        if "byteorder" in names and archive.read(names["byteorder"]) != sys.byteorder.encode():
            raise CheckpointError("It was written on a machine of another byte order; save it anew on this kind.")
        content = Unpickler(io.BytesIO(archive.read(names["data.pkl"]))).load()
        records = {}
        for name, info in names.items():
            folder, _, key = name.partition("/")
            if folder == "data" and key:
                file.seek(info.header_offset + 26)
                name_length, extra_length = struct.unpack("<HH", file.read(4))
                start = info.header_offset + 30 + name_length + extra_length
                records[key] = _Record(start, min(info.file_size, info.compress_size), info.CRC)
    return content, records


def _open_legacy(path: Path) -> _Opened:
    """As `_open_zip`, for what PyTorch wrote before 1.6: five pickles, then the storages, each after its length."""
    with path.open("rb") as file:
        if Unpickler(file).load() != _LEGACY_MAGIC:
            raise CheckpointError("It is a pickle, but none that torch.save wrote; save it with torch.save.")
        Unpickler(file).load()
        system = Unpickler(file).load()
        if system["little_endian"] is not (sys.byteorder == "little"):
            raise CheckpointError("It was written on a machine of another byte order; save it anew on this kind.")
        unpickler = Unpickler(file)
        content, keys = unpickler.load(), Unpickler(file).load()
        records, whole = {}, path.stat().st_size
        for key in keys:
            (numel,) = struct.unpack("<q", file.read(8))
            size = numel * unpickler.storages[key].dtype.itemsize
            records[key] = _Record(file.tell(), size)
            if numel < 0 or file.seek(size, 1) > whole:
                raise CheckpointError("It ends too early; download or copy it anew.")
    return content, records
