"""Pickles as data: their tensors come out, and nothing that they name is imported or called.

A pickle is a program that may name any function of any module and call it. Here a name stays a name. A call of what
rebuilds a tensor or an array becomes a note of where its numbers lie, and what makes a dict makes a dict. Any other
call, whatever it names, makes an `Inert` object. That keeps the containers it was given, so that tensors inside of
settings, wrappers and whole modules are found all the same.
"""

from __future__ import annotations

import _compat_pickle
import math
import pickle
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import IO, Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from ddt_accel.errors import CheckpointError

_DTYPES = {
    "DoubleStorage": torch.float64, "FloatStorage": torch.float32, "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16, "LongStorage": torch.int64, "IntStorage": torch.int32,
    "ShortStorage": torch.int16, "CharStorage": torch.int8, "ByteStorage": torch.uint8, "BoolStorage": torch.bool,
    "UntypedStorage": torch.uint8, "ComplexFloatStorage": torch.complex64, "ComplexDoubleStorage": torch.complex128,
    "QInt8Storage": torch.int8, "QUInt8Storage": torch.uint8, "QInt32Storage": torch.int32,
}  # fmt: skip
_READABLE = {*_DTYPES.values(), torch.float8_e4m3fn, torch.float8_e5m2}
# NumPy's codes of number types that PyTorch has, too.
_NUMPY_DTYPES = {
    "f2": torch.float16, "f4": torch.float32, "f8": torch.float64, "i1": torch.int8, "i2": torch.int16,
    "i4": torch.int32, "i8": torch.int64, "u1": torch.uint8, "b1": torch.bool,
}  # fmt: skip


@dataclass(frozen=True)
class _Name:
    module: str
    name: str


@dataclass(frozen=True)
class Storage:
    """A stretch of numbers in a file, under the key that the file has for it."""

    key: str
    dtype: torch.dtype
    numel: int


@dataclass(frozen=True)
class StoredTensor:
    """Where a tensor lies in its file: elements `offset + Σ index·stride` of a storage.

    They are the tensor's own, or what it is the negative or the conjugate of.
    """

    storage: Storage
    dtype: torch.dtype
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    negated: bool = False
    conjugated: bool = False


class Inert(dict[Any, Any]):
    """Stands for the result of a call that was not made.

    Its items are those that were set on it; `parts` are dicts and lists that it was made of or has as its state.
    """

    def __init__(self) -> None:
        self.parts: list[Any] = []
        self.listed: list[Any] = []

    def hold(self, values: tuple[Any, ...]) -> None:
        """Keeps the dicts among `values`, by reference."""
        self.parts += [value for value in values if isinstance(value, dict)]

    def children(self) -> Iterator[tuple[Any, Any]]:
        """All that it holds, with the keys it is held under."""
        yield from self.items()
        for part in self.parts:
            yield from part.children() if isinstance(part, Inert) else part.items()
        yield from enumerate(self.listed)

    def __bool__(self) -> bool:
        return bool(len(self) or self.parts or self.listed)


class Unusual(Inert):
    """A tensor that is not laid out as numbers one beside the other: quantised, or sparse."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind


class _NumpyType(Inert):
    def __init__(self, code: str) -> None:
        super().__init__()
        self.code, self.big_endian = code, False


class NumpyArray(Inert):
    """A NumPy array, which a pickle holds whole; `dtype` is None where it is none that PyTorch has."""

    def __init__(self) -> None:
        super().__init__()
        self._data, self._order, self._swapped = b"", "C", False
        self.dtype: torch.dtype | None = None
        self.shape: tuple[int, ...] = ()

    def fill(self, shape: Any, dtype: Any, fortran: bool, data: Any) -> None:
        """Takes the contents; leaves the array without a type where they do not make sense."""
        if not (isinstance(dtype, _NumpyType) and isinstance(data, bytes | bytearray) and isinstance(shape, tuple)):
            return
        known, shape = _NUMPY_DTYPES.get(dtype.code), tuple(map(_whole, shape))
        if known is not None and math.prod(shape) * known.itemsize == len(data):
            self._data, self._order, self._swapped = bytes(data), "F" if fortran else "C", dtype.big_endian
            self.dtype, self.shape = known, shape

    def read(self) -> Tensor:
        assert self.dtype is not None
        flat = np.frombuffer(self._data, dtype=str(self.dtype).removeprefix("torch."))
        native = flat.byteswap() if self._swapped else flat.copy()
        return torch.from_numpy(native.reshape(self.shape, order="F" if self._order == "F" else "C"))


_Machine: Any = pickle._Unpickler


class Unpickler(_Machine):  # type: ignore[misc]
    """The stack machine of the standard library in Python, with every operation that calls something replaced."""

    dispatch: ClassVar[dict[int, Callable[[Unpickler], None]]] = dict(_Machine.dispatch)

    def __init__(self, file: IO[bytes]) -> None:
        super().__init__(file)
        self.storages: dict[str, Storage] = {}

    def find_class(self, module: str, name: str) -> Any:
        module, name = _compat_pickle.NAME_MAPPING.get((module, name), (module, name))
        return _Name(_compat_pickle.IMPORT_MAPPING.get(module, module), name)

    def get_extension(self, code: int) -> None:
        """Numbers of this process's registry of classes, of which nothing is asked."""
        self.append(Inert())

    def persistent_load(self, pid: Any) -> Any:
        match pid:
            case ("storage", _Name(_, kind), str() as key, _, numel, *view):
                if any(view):
                    raise CheckpointError("It keeps its contents in a way that PyTorch has not used since 0.4.")
                if kind in _DTYPES:
                    return self.storages.setdefault(key, Storage(key, _DTYPES[kind], _whole(numel)))
        return Inert()

    def _reduce(self) -> None:
        arguments = self.stack.pop()
        self.stack[-1] = _made(self.stack[-1], arguments)

    def _new(self) -> None:
        arguments, cls = self.stack.pop(), self.stack.pop()
        self.append(_made(cls, arguments))

    def _new_with_keywords(self) -> None:
        keywords = self.stack.pop()
        self._new()
        if isinstance(self.stack[-1], Inert):
            self.stack[-1].hold((keywords,))

    def _build(self) -> None:
        state = self.stack.pop()
        match self.stack[-1], state:
            case NumpyArray() as array, (_, shape, dtype, fortran, data):
                array.fill(shape, dtype, bool(fortran), data)
            case _NumpyType() as dtype, (_, order, *_):
                dtype.big_endian = order == ">"
            case Inert() as inert, _:
                inert.hold(state if isinstance(state, tuple) else (state,))

    def _inst(self) -> None:
        self.load_global()
        cls = self.stack.pop()
        self.append(_made(cls, tuple(self.pop_mark())))

    def _empty_set(self) -> None:
        self.append(Inert())

    def _frozen_set(self) -> None:
        self.pop_mark()
        self.append(Inert())

    def _add_items(self) -> None:
        self.pop_mark()

    def _append(self) -> None:
        value = self.stack.pop()
        _extend(self.stack[-1], [value])

    def _appends(self) -> None:
        values = self.pop_mark()
        _extend(self.stack[-1], values)

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

    def _bytes(self) -> None:
        (size,) = struct.unpack("<Q", self.read(8))
        data = self.read(size)
        if len(data) != size:
            raise CheckpointError("It ends too early; download or copy it anew.")
        self.append(data)

    def _outside(self) -> None:
        self.append(Inert())  # a buffer that the writer kept elsewhere

    def _read_only(self) -> None: ...

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
        pickle.APPEND[0]: _append,
        pickle.APPENDS[0]: _appends,
        pickle.SETITEM[0]: _set_item,
        pickle.SETITEMS[0]: _set_items,
        pickle.DICT[0]: _dict,
        pickle.BYTEARRAY8[0]: _bytes,
        pickle.NEXT_BUFFER[0]: _outside,
        pickle.READONLY_BUFFER[0]: _read_only,
    }


def _extend(target: Any, values: list[Any]) -> None:
    if isinstance(target, list):
        target.extend(values)
    elif isinstance(target, Inert):
        target.listed.extend(values)


def _put(target: Any, items: list[Any]) -> None:
    """Sets keys and values, in turn, of a dict. Keys that are no plain values, which hashing could run away on, are
    left out; no state_dict has any."""
    if isinstance(target, dict):
        pairs = zip(items[::2], items[1::2], strict=True)
        target.update((key, value) for key, value in pairs if _is_plain(key))


def _is_plain(key: Any) -> bool:
    if isinstance(key, int):
        return abs(key) < 2**63
    return isinstance(key, str | float | bytes | None)


def _made(called: Any, arguments: Any) -> Any:
    """What stands for the result of a call."""
    arguments = arguments if isinstance(arguments, tuple) else ()
    name = (called.module, called.name) if isinstance(called, _Name) else None
    match name, arguments:
        case ("collections", "OrderedDict") | ("builtins", "dict"), _:
            made: dict[Any, Any] = {}
            for pair in arguments[0] if arguments and isinstance(arguments[0], list) else ():
                _put(made, list(pair))
            return made
        case ("collections", "defaultdict"), _:
            return {}
        case ("torch._utils", "_rebuild_tensor" | "_rebuild_tensor_v2"), (
            Storage() as storage,
            offset,
            shape,
            stride,
            *more,
        ):
            return _stored(storage, storage.dtype, offset, shape, stride, more[2:])
        case ("torch._utils", "_rebuild_tensor_v3"), (Storage() as storage, offset, shape, step, _, _, dtype, *more):
            known = getattr(torch, dtype.name, None) if isinstance(dtype, _Name) and dtype.module == "torch" else None
            if known in _READABLE:
                return _stored(storage, known, offset, shape, step, more)
        case ("torch._utils", "_rebuild_parameter" | "_rebuild_parameter_with_state"), (data, *_):
            return data
        case ("torch._tensor", "_rebuild_from_type_v2"), (function, _, inner, _):
            return _made(function, inner)
        case ("torch._utils", "_rebuild_qtensor"), _:
            return Unusual("quantised")
        case ("torch._utils", "_rebuild_sparse_tensor" | "_rebuild_sparse_csr_tensor"), _:
            return Unusual("sparse")
        case ("numpy", "dtype"), (str() as code, *_):
            return _NumpyType(code)
        case ("numpy.core.multiarray" | "numpy._core.multiarray", "_reconstruct"), _:
            return NumpyArray()
        case ("numpy.core.numeric" | "numpy._core.numeric", "_frombuffer"), (data, dtype, shape, order, *_):
            array = NumpyArray()
            array.fill(shape, dtype, order == "F", data)
            return array
        case ("_codecs", "encode"), (str() as text, "latin1"):
            return text.encode("latin1", "replace")  # how bytes are written by protocol 2
    inert = Inert()
    inert.hold(arguments)
    return inert


def _stored(
    storage: Storage, dtype: torch.dtype, offset: Any, shape: Any, stride: Any, more: list[Any]
) -> StoredTensor:
    """`more` may begin with a dict that says of what lies there whether it is negated or conjugated."""
    shape, stride = tuple(map(_whole, shape)), tuple(map(_whole, stride))
    bits = more[0] if more and isinstance(more[0], dict) else {}
    negated, conjugated = bits.get("neg") is True, bits.get("conj") is True
    tensor = StoredTensor(storage, dtype, _whole(offset) if math.prod(shape) else 0, shape, stride, negated, conjugated)
    last = tensor.offset + sum((size - 1) * step for size, step in zip(shape, stride, strict=True))
    if math.prod(shape) and (last + 1) * dtype.itemsize > storage.numel * storage.dtype.itemsize:
        raise CheckpointError(f"It has a tensor of {list(shape)} that reaches beyond its storage.")
    return tensor


def _whole(value: Any) -> int:
    if not isinstance(value, int) or not 0 <= value < 2**62:
        raise CheckpointError(f"It has {value if isinstance(value, int) else type(value).__name__} for a size.")
    return value
