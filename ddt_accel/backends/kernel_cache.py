"""Kernels that TensorRT for RTX compiles at the first run, kept in the export folder for the next process."""

from __future__ import annotations

import contextlib
import warnings
from pathlib import Path
from typing import Any

import numpy as np

from ddt_accel.artifacts import read_arrays, write_arrays
from ddt_accel.errors import ArtifactError

FORMAT, VERSION = "ddt-accel compiled kernels", 1


def kernels_name(architecture: str) -> str:
    """What the file for a GPU's architecture is called, such as "sm_89"."""
    return f"kernels-{architecture}.safetensors"


class KernelCache:
    """What the library has compiled for the engines of a folder, all together.

    A file that is damaged, or of another GPU or version, is passed over with a warning, and replaced where that is
    possible. Nothing depends on it but the time that the first run takes.
    """

    def __init__(self, path: Path, *, library: str, gpu: str) -> None:
        """`library` is its name and version, `gpu` that of the card: kernels are for both alone."""
        self.path, self._for = path, {"library": library, "gpu": gpu}
        self._cache: Any = None
        self._kept = b""

    def attach(self, config: Any) -> None:
        """Has a runtime configuration use it, where the library keeps kernels at all."""
        if self._cache is None:
            self._cache = self._begun(config)
        if self._cache is not None:
            config.set_runtime_cache(self._cache)

    def save(self) -> None:
        """Writes what was compiled since; a folder that cannot be written to stays as it is."""
        if self._cache is None:
            return
        serialized = self._cache.serialize()
        content = b"" if serialized is None else bytes(serialized)
        if content and content != self._kept:
            self._kept = content  # also where it cannot be written: then no later try is better
            with contextlib.suppress(ArtifactError):
                write_arrays(self.path, FORMAT, VERSION, self._for, {"kernels": np.frombuffer(content, np.uint8)})

    def _begun(self, config: Any) -> Any:
        """A cache that holds what the file does, or nothing."""
        create = getattr(config, "create_runtime_cache", None)
        cache = None if create is None else create()
        if cache is None or not self.path.exists():
            return cache
        try:
            content = self._read()
            if not cache.deserialize(content):
                raise ArtifactError(f"{self.path} is refused by {self._for['library']}.")
            self._kept = content
        except (ArtifactError, RuntimeError) as error:
            warnings.warn(f"Kernels are compiled anew: {error}", stacklevel=2)
        return cache

    def _read(self) -> bytes:
        told, arrays = read_arrays(self.path, FORMAT, VERSION)
        if told != self._for or "kernels" not in arrays:
            found = f"{told.get('library', 'another library')} on {told.get('gpu', 'another GPU')}"
            raise ArtifactError(f"{self.path} is of {found}, and this is {self._for['library']} on {self._for['gpu']}.")
        return arrays["kernels"].tobytes()
