"""Tensors out of PyTorch checkpoints without executing anything that they contain.

A pickle is a program that may name any function of any module and call it. Here a name stays a name: nothing is ever
imported. What would call the functions that rebuild tensors makes a `StoredTensor`, what would make a dict makes a
dict, an object of any package (a trainer's settings, say) becomes an inert placeholder, and any other name of the
standard library is an error, since no checkpoint has an honest use for it. Contents are mapped from the file, so that
only what is read takes memory.
"""

from __future__ import annotations

import _compat_pickle
import math
import pickle
import struct
import sys
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, ClassVar

import torch
from torch import Tensor

from ddt_accel.errors import CheckpointError

# What saved settings of the standard library are made of: harmless as placeholders.
_PLAIN_MODULES = {"argparse", "collections", "copyreg", "dataclasses", "datetime", "decimal", "enum", "fractions",
                  "ipaddress", "logging", "numbers", "pathlib", "typing", "uuid", "zoneinfo", "_codecs"}  # fmt: skip
_PLAIN_NAMES = {
    ("builtins", name)
    for name in ("object", "set", "frozenset", "list", "dict", "tuple", "int", "float", "bool", "str", "bytes",
                 "bytearray", "complex", "slice", "range", "type", "getattr", "Ellipsis", "NotImplemented")
} | {("types", name) for name in ("SimpleNamespace", "GenericAlias", "MappingProxyType", "UnionType", "NoneType")} | {
    ("functools", "partial"), ("functools", "reduce"), ("operator", "or_"), ("_operator", "or_"),
    ("time", "struct_time"), ("re", "_compile"),
}  # fmt: skip
_DTYPES = {
    "DoubleStorage": torch.float64, "FloatStorage": torch.float32, "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16, "LongStorage": torch.int64, "IntStorage": torch.int32,
    "ShortStorage": torch.int16, "CharStorage": torch.int8, "ByteStorage": torch.uint8, "BoolStorage": torch.bool,
    "UntypedStorage": torch.uint8,
}  # fmt: skip
_READABLE = {*_DTYPES.values(), torch.float8_e4m3fn, torch.float8_e5m2}
_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C


@dataclass(frozen=True)
class _Name:
    module: str
    name: str


@dataclass(frozen=True)
class _Storage:
    key: str
    dtype: torch.dtype
    numel: int


@dataclass(frozen=True)
class StoredTensor:
    """Where a tensor lies in its file: elements `offset + Σ index·stride` of a storage."""

    storage: _Storage
    dtype: torch.dtype
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]


class _Placeholder:
    """Stands for a foreign object and keeps nothing of it."""

    def append(self, _: Any) -> None: ...
    def extend(self, _: Any) -> None: ...


_Machine: Any = pickle._Unpickler


class _Unpickler(_Machine):  # type: ignore[misc]
    """The stack machine of the standard library in Python, with every operation that calls something replaced."""

    dispatch: ClassVar[dict[int, Callable[[_Unpickler], None]]] = dict(_Machine.dispatch)

    def __init__(self, file: IO[bytes]) -> None:
        super().__init__(file)
        self.storages: dict[str, _Storage] = {}

    def find_class(self, module: str, name: str) -> Any:
        module, name = _compat_pickle.NAME_MAPPING.get((module, name), (module, name))
        module = _compat_pickle.IMPORT_MAPPING.get(module, module)
        root = module.partition(".")[0]
        harmless = root in _PLAIN_MODULES or (module, name) in _PLAIN_NAMES
        if root in sys.stdlib_module_names and not harmless:
            raise CheckpointError(
                f"It asks for {module}.{name} to be run; a checkpoint is data and none of it is executed. Do not trust "
                "this file."
            )
        return _Name(module, name)

    def persistent_load(self, pid: Any) -> Any:
        kind, storage, key, _, numel, *view = pid
        if kind != "storage" or any(view) or not isinstance(key, str) or not isinstance(storage, _Name):
            raise CheckpointError("It keeps its contents in a way that PyTorch has not used since 0.4.")
        if storage.name not in _DTYPES:
            return _Placeholder()
        return self.storages.setdefault(key, _Storage(key, _DTYPES[storage.name], _whole(numel)))

    def _reduce(self) -> None:
        arguments = self.stack.pop()
        self.stack[-1] = _made(self.stack[-1], arguments)

    def _new(self) -> None:
        arguments, cls = self.stack.pop(), self.stack.pop()
        self.append(_made(cls, arguments))

    def _new_with_keywords(self) -> None:
        self.stack.pop()
        self._new()

    def _build(self) -> None:
        self.stack.pop()

    def _inst(self) -> None:
        self.load_global()
        cls = self.stack.pop()
        self.append(_made(cls, tuple(self.pop_mark())))

    def _empty_set(self) -> None:
        self.append(_Placeholder())

    def _frozen_set(self) -> None:
        self.pop_mark()
        self.append(_Placeholder())

    def _add_items(self) -> None:
        self.pop_mark()

    def _set_item(self) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        _put(self.stack[-1], [key, value])

    def _set_items(self) -> None:
        items = self.pop_mark()
        _put(self.stack[-1], items)

    def _dict(self) -> None:
        items = self.pop_mark()
        self.append({})
        _put(self.stack[-1], items)

    def _obj(self) -> None:
        cls, *arguments = self.pop_mark()
        self.append(_made(cls, tuple(arguments)))

    dispatch |= {
        pickle.REDUCE[0]: _reduce,
        pickle.NEWOBJ[0]: _new,
        pickle.NEWOBJ_EX[0]: _new_with_keywords,
        pickle.BUILD[0]: _build,
        pickle.INST[0]: _inst,
        pickle.OBJ[0]: _obj,
        pickle.EMPTY_SET[0]: _empty_set,
        pickle.FROZENSET[0]: _frozen_set,
        pickle.ADDITEMS[0]: _add_items,
        pickle.SETITEM[0]: _set_item,
        pickle.SETITEMS[0]: _set_items,
        pickle.DICT[0]: _dict,
    }
    # These reach for objects of this process, or reserve memory by a number in the file; PyTorch writes none of them.
    for _code in (pickle.EXT1, pickle.EXT2, pickle.EXT4, pickle.BYTEARRAY8, pickle.NEXT_BUFFER, pickle.READONLY_BUFFER):
        del dispatch[_code[0]]


def _put(target: Any, items: list[Any]) -> None:
    """Sets keys and values, in turn, of a dict. Keys that are no plain values, which hashing could run away on, are
    left out; no state_dict has any."""
    if isinstance(target, dict):
        pairs = zip(items[::2], items[1::2], strict=True)
        target.update((key, value) for key, value in pairs if isinstance(key, str | int | float | bytes | None))


def _made(called: Any, arguments: Any) -> Any:
    """What stands for the result of a call."""
    if isinstance(called, _Placeholder):
        return called
    if not isinstance(called, _Name) or not isinstance(arguments, tuple):
        raise CheckpointError("It calls what cannot be called.")
    match (called.module, called.name), arguments:
        case ("collections", "OrderedDict") | ("builtins", "dict"), _:
            made: dict[Any, Any] = {}
            for pair in arguments[0] if arguments and isinstance(arguments[0], list) else ():
                _put(made, list(pair))
            return made
        case ("collections", "defaultdict"), _:
            return {}
        case ("torch._utils", "_rebuild_tensor" | "_rebuild_tensor_v2"), (
            _Storage() as storage,
            offset,
            shape,
            stride,
            *_,
        ):
            return _stored(storage, storage.dtype, offset, shape, stride)
        case ("torch._utils", "_rebuild_tensor_v3"), (_Storage() as storage, offset, shape, step, _, _, dtype, *_):
            known = getattr(torch, dtype.name, None) if isinstance(dtype, _Name) and dtype.module == "torch" else None
            if known in _READABLE:
                return _stored(storage, known, offset, shape, step)
        case ("torch._utils", "_rebuild_parameter" | "_rebuild_parameter_with_state"), (data, *_):
            return data
        case ("torch._tensor", "_rebuild_from_type_v2"), (function, _, inner, _):
            return _made(function, inner)
    return _Placeholder()


def _stored(storage: _Storage, dtype: torch.dtype, offset: Any, shape: Any, stride: Any) -> StoredTensor:
    shape, stride = tuple(map(_whole, shape)), tuple(map(_whole, stride))
    tensor = StoredTensor(storage, dtype, _whole(offset) if math.prod(shape) else 0, shape, stride)
    last = tensor.offset + sum((size - 1) * step for size, step in zip(shape, stride, strict=True))
    if math.prod(shape) and (last + 1) * dtype.itemsize > storage.numel * storage.dtype.itemsize:
        raise CheckpointError(f"It has a tensor of {list(shape)} that reaches beyond its storage.")
    return tensor


def _whole(value: Any) -> int:
    if not isinstance(value, int) or not 0 <= value < 2**62:
        raise CheckpointError(f"It has {value!r} where a size is expected.")
    return value


class PickledCheckpoint:
    """A `.ckpt`, `.pt` or `.pth` file: `content` with a StoredTensor for each tensor, which `read` reads.

    Raises CheckpointError where the file is damaged, is a TorchScript archive, or names a function that it has no
    honest use for. Zip archives, which is what PyTorch writes since 1.6, have checksums and these are verified.
    """

    def __init__(self, path: Path) -> None:
        try:
            self.content, self._starts = _open_zip(path) if zipfile.is_zipfile(path) else _open_legacy(path)
            self._bytes = torch.from_file(str(path), shared=False, size=path.stat().st_size, dtype=torch.uint8)
        except CheckpointError as error:
            raise CheckpointError(f"{path} is refused. {error}") from None
        except Exception as error:  # a damaged pickle can fail in any way
            raise CheckpointError(f"{path} is damaged or not a PyTorch checkpoint ({str(error)[:200]}).") from None
        self._path = path

    def read(self, stored: StoredTensor) -> Tensor:
        """The tensor, mapped from the file."""
        storage = stored.storage
        start, size = self._starts.get(storage.key, (0, -1))
        if size < storage.numel * storage.dtype.itemsize:
            raise CheckpointError(f"{self._path} is damaged: it lacks the contents of storage {storage.key}.")
        data = self._bytes[start : start + storage.numel * storage.dtype.itemsize]
        if data.storage_offset() % stored.dtype.itemsize or len(data) % stored.dtype.itemsize:
            data = data[: len(data) // stored.dtype.itemsize * stored.dtype.itemsize].clone()
        typed = data.view(stored.dtype)
        return typed.as_strided(stored.shape, stored.stride, typed.storage_offset() + stored.offset)


_Opened = tuple[Any, dict[str, tuple[int, int]]]


def _open_zip(path: Path) -> _Opened:
    """The pickled content, and where each storage lies: its first byte and its number of bytes."""
    with zipfile.ZipFile(path) as archive, path.open("rb") as file:
        names = {info.filename.partition("/")[2]: info for info in archive.infolist()}
        if "constants.pkl" in names:
            raise CheckpointError("It is a TorchScript program, not weights; save its state_dict instead.")
        if "data.pkl" not in names:
            raise CheckpointError("It is an archive of something else (no data.pkl).")
        if any(info.compress_type != zipfile.ZIP_STORED for info in names.values()):
            raise CheckpointError("It is a compressed archive, which PyTorch does not write; save it with torch.save.")
        if (damaged := archive.testzip()) is not None:
            raise CheckpointError(f"Its record {damaged} fails its checksum: it is damaged; download or copy it anew.")
        if "byteorder" in names and archive.read(names["byteorder"]) != sys.byteorder.encode():
            raise CheckpointError("It was written on a machine of another byte order; save it anew on this kind.")
        with archive.open(names["data.pkl"]) as pickled:
            content = _Unpickler(pickled).load()
        starts = {}
        for name, info in names.items():
            folder, _, key = name.partition("/")
            if folder == "data" and key:
                file.seek(info.header_offset + 26)
                name_length, extra_length = struct.unpack("<HH", file.read(4))
                start = info.header_offset + 30 + name_length + extra_length
                starts[key] = (start, min(info.file_size, info.compress_size))
    return content, starts


def _open_legacy(path: Path) -> _Opened:
    """As `_open_zip`, for what PyTorch wrote before 1.6: five pickles, then the storages, each after its length."""
    with path.open("rb") as file:
        if _Unpickler(file).load() != _LEGACY_MAGIC:
            raise CheckpointError("It is a pickle, but none that torch.save wrote.")
        _Unpickler(file).load()
        system = _Unpickler(file).load()
        if system["little_endian"] is not (sys.byteorder == "little"):
            raise CheckpointError("It was written on a machine of another byte order; save it anew on this kind.")
        unpickler = _Unpickler(file)
        content, keys = unpickler.load(), _Unpickler(file).load()
        starts, whole = {}, path.stat().st_size
        for key in keys:
            (numel,) = struct.unpack("<q", file.read(8))
            size = numel * unpickler.storages[key].dtype.itemsize
            starts[key] = (file.tell(), size)
            if numel < 0 or file.seek(size, 1) > whole:
                raise CheckpointError("It ends too early; download or copy it anew.")
    return content, starts
