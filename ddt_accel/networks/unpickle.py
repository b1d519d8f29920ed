"""Tensors out of PyTorch checkpoints without executing anything that they contain.

A pickle is a program: it may name any function of any module and call it. Here names resolve to three things only:
what rebuilds tensors and plain containers; for a class of a package (a trainer's configuration object, say), an inert
placeholder that swallows whatever it is given; and for any other name of the standard library, an error, since no
checkpoint has an honest use for it.
"""

from __future__ import annotations

import _compat_pickle
import collections
import pickle
import sys
import zipfile
from pathlib import Path
from types import SimpleNamespace
from typing import IO, Any

import torch

from ddt_accel.errors import CheckpointError

_REBUILDERS = {
    ("collections", "OrderedDict"): collections.OrderedDict,
    ("collections", "defaultdict"): lambda *_: {},
    ("torch._utils", "_rebuild_tensor"): torch._utils._rebuild_tensor,
    ("torch._utils", "_rebuild_tensor_v2"): torch._utils._rebuild_tensor_v2,
    ("torch._utils", "_rebuild_parameter"): torch._utils._rebuild_parameter,
    ("torch", "Size"): torch.Size,
    ("torch", "device"): torch.device,
    ("torch.storage", "UntypedStorage"): torch.UntypedStorage,
    ("builtins", "set"): set,
}
# Plain data of the standard library that saved settings are made of: harmless as placeholders.
_PLAIN_MODULES = {"argparse", "collections", "copyreg", "datetime", "decimal", "enum", "fractions", "pathlib", "typing",
                  "uuid", "_codecs"}  # fmt: skip
_PLAIN_NAMES = {
    ("builtins", name)
    for name in ("object", "frozenset", "list", "dict", "tuple", "int", "float", "bool", "str", "bytes", "bytearray",
                 "complex", "slice", "range")
} | {("types", "SimpleNamespace"), ("functools", "partial")}  # fmt: skip


class _Placeholder:
    """Stands for a foreign object; takes any construction, state or item and keeps nothing."""

    def __new__(cls, *_: Any, **__: Any) -> _Placeholder:
        return super().__new__(cls)

    def __init__(self, *_: Any, **__: Any) -> None: ...
    def __call__(self, *_: Any, **__: Any) -> _Placeholder:
        return self

    def __setstate__(self, _: Any) -> None: ...
    def __setitem__(self, _: Any, __: Any) -> None: ...
    def append(self, _: Any) -> None: ...
    def extend(self, _: Any) -> None: ...
    def add(self, _: Any) -> None: ...


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        module, name = _compat_pickle.NAME_MAPPING.get((module, name), (module, name))
        module = _compat_pickle.IMPORT_MAPPING.get(module, module)
        if (module, name) in _REBUILDERS:
            return _REBUILDERS[module, name]
        if module == "torch" and isinstance(getattr(torch, name, None), torch.dtype):
            return getattr(torch, name)
        if module == "torch" and name.endswith("Storage") and "." not in name and hasattr(torch, name):
            return getattr(torch, name)
        standard = module.partition(".")[0] in sys.stdlib_module_names
        if standard and module not in _PLAIN_MODULES and (module, name) not in _PLAIN_NAMES:
            raise CheckpointError(
                f"It asks for {module}.{name} to be run; a checkpoint is data and none of it is executed. Do not trust "
                "this file."
            )
        return type(name.rpartition(".")[2], (_Placeholder,), {})


def load_pickled(path: Path) -> Any:
    """The object in a `.ckpt`, `.pt` or `.pth` file, tensors on the CPU, foreign objects as inert placeholders.

    Raises CheckpointError where the file is damaged, is a TorchScript archive, or names a function that it has no
    honest use for.
    """
    _check_archive(path)
    # torch.load takes the module that unpickles as an argument; it derives its own unpickler from `Unpickler`.
    unpickling: Any = SimpleNamespace(Unpickler=_Unpickler, load=_load, __name__=__name__)
    try:
        return torch.load(path, map_location="cpu", pickle_module=unpickling, weights_only=False)
    except CheckpointError as error:
        raise CheckpointError(f"{path} is refused. {error}") from None
    except Exception as error:  # a damaged pickle can fail in any way
        raise CheckpointError(f"{path} is damaged or not a PyTorch checkpoint ({str(error)[:200]}).") from None


def _load(file: IO[bytes], **options: Any) -> Any:
    return _Unpickler(file, **options).load()


def _check_archive(path: Path) -> None:
    """Verifies the CRC of every record, which torch.load does not."""
    if not zipfile.is_zipfile(path):
        return
    try:
        with zipfile.ZipFile(path) as archive:
            if any(name.endswith("/constants.pkl") for name in archive.namelist()):
                raise CheckpointError(f"{path} is a TorchScript program, not weights; save its state_dict instead.")
            damaged = archive.testzip()
    except (zipfile.BadZipFile, OSError, EOFError, NotImplementedError) as error:
        raise CheckpointError(f"{path} is damaged ({error}); download or copy it anew.") from None
    if damaged is not None:
        raise CheckpointError(f"{path} is damaged: its record {damaged} fails its checksum; download or copy it anew.")
