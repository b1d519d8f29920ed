"""What an export says of itself: files, tensors, precision, origin; and how its files become one export at once."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ddt_accel.artifacts import read_json, rename_over, sha256_of, unwritable, write_json
from ddt_accel.backends.tensors import Cut, as_lists, network_name, tensor_table
from ddt_accel.errors import ArtifactError, ConfigError
from ddt_accel.locks import opened
from ddt_accel.networks.config import SplitConfig
from ddt_accel.networks.families import as_mapping, config_of

FORMAT, VERSION = "ddt-accel export", 2
FILE_NAME = "manifest.json"
# The largest error, relative to the largest value of the output, that an export may have; and what to try beyond it.
TOLERANCE = {"fp32": 1e-4, "fp16": 2e-2, "bf16": 8e-2}
WIDER = {"bf16": "fp16", "fp16": "fp32"}
REFERENCE_FORMAT, REFERENCE_VERSION = "ddt-accel export reference", 1
# The Python packages of the libraries, by preference: TensorRT is faster where it is installed and finds a GPU.
ENGINE_LIBRARIES = {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt_rtx"}
# Where the export of a second network that guides lies, in the folder of the first one's.
GUIDE_FOLDER = "guide"
_READY = ".export-ready"


@dataclass(frozen=True, kw_only=True)
class Engine:
    """What TensorRT engines depend on: the library that built them, and the GPU, None for all RTX cards since Ampere.

    `batches` are their profiles in images; they run on later versions of the library, and on other GPUs since Ampere,
    where they are `version_compatible` and `hardware_compatible`. `products` tells how many matrix products of each
    network are in which type, `verified` the largest error that the engines themselves were measured to have, None
    where they never ran.
    """

    library: str
    version: str
    gpu: str | None
    batches: tuple[tuple[int, int, int], ...]
    version_compatible: bool
    hardware_compatible: bool
    products: dict[str, dict[str, int]]
    verified: float | None


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """The description of an export folder.

    `files` maps names in the folder to their SHA-256; `tensors` maps each network to its inputs and outputs as
    (name, dtype, shape), a shape's letters being dynamic (`backends.tensors`); `parity` is the largest error against
    PyTorch in float32, relative to the largest value, that was measured right after the export: of the ONNX file, or in
    bfloat16 of PyTorch in that precision. `widths` are those that the networks are there at, each with files and
    tensors of its own (`backends.tensors.network_name`). Where a second network guides, that of `guide_sha256`, its
    export lies in `GUIDE_FOLDER`.
    """

    format: str
    model: str
    checkpoint_sha256: str | None
    config: SplitConfig
    latent_shape: tuple[int, int, int]
    class_names: tuple[str, ...] | None
    precision: str
    cache: str
    sources: int
    opset: int
    files: dict[str, str]
    tensors: dict[str, list[list[Any]]]
    parity: dict[str, float]
    engine: Engine | None
    versions: dict[str, str]
    guide_sha256: str | None = None
    widths: tuple[float, ...] = (1.0,)

    @property
    def cut(self) -> Cut:
        return Cut(precision=self.precision, cache=self.cache, sources=self.sources)

    def save(self, folder: Path) -> None:
        content = asdict(self) | {"config": as_mapping(self.config)}
        content["kind"] = content.pop("format")
        if self.guide_sha256 is None:  # nor do older manifests say anything of one
            del content["guide_sha256"]
        if self.widths == (1.0,):
            del content["widths"]
        write_json(folder / FILE_NAME, FORMAT, VERSION, content)

    @classmethod
    def load(cls, folder: Path) -> Manifest:
        """Reads the manifest and verifies every file that it names."""
        with published(folder):
            return cls._verified(folder)

    @classmethod
    def _verified(cls, folder: Path) -> Manifest:
        path = folder / FILE_NAME
        if not path.is_file():
            raise ArtifactError(f"{folder} holds no export (no {FILE_NAME}); make one with `ddt-accel export`.")
        content = read_json(path, FORMAT, VERSION)
        try:
            content["format"] = content.pop("kind")
            content["config"] = config_of(content["config"])
            content["latent_shape"] = tuple(content["latent_shape"])
            content["class_names"] = tuple(content["class_names"]) if content["class_names"] else None
            if content["engine"] is not None:
                batches = tuple(map(tuple, content["engine"].pop("batches")))
                content["engine"] = Engine(**content["engine"], batches=batches)
                if content["engine"].library not in ENGINE_LIBRARIES:
                    raise ConfigError(f"it names the library {content['engine'].library}")
            content["widths"] = tuple(content.get("widths", (1.0,)))
            manifest = cls(**content)
            manifest.config.num_tokens(manifest.latent_shape)
            files = dict(manifest.files)
            suffix = "onnx" if manifest.engine is None else "engine"
            table = tensor_table(manifest.config, manifest.latent_shape, manifest.cut)
            tensors = as_lists(table, manifest.widths)
            if lacking := [f"{name}.{suffix}" for name in tensors if f"{name}.{suffix}" not in files]:
                raise ConfigError(f"it names no {' and '.join(lacking)}")
            if tensors != manifest.tensors:
                raise ConfigError("its tensors are not those of its networks")
        except (AttributeError, ConfigError, KeyError, TypeError, ValueError) as error:
            raise ArtifactError(f"{path} is not a usable manifest ({error}); export anew.") from None
        for name, expected in files.items():
            if sha256_of(folder / name) != expected:
                raise ArtifactError(f"{folder / name} is not the file that was exported; export anew.")
        return manifest


def reference_name(width: float) -> str:
    """The file that engines of a width are verified with at their first run (`exporting.reference`)."""
    return f"{network_name('reference', width)}.safetensors"


@contextlib.contextmanager
def published(folder: Path) -> Iterator[None]:
    """While the block lasts the export in `folder` is a whole one, which nobody replaces by another."""
    while True:
        finish_publication(folder)
        with opened(folder, alone=False):
            if not (folder / _READY).is_dir():
                yield
                return


def publish(staging: Path, folder: Path) -> None:
    """Replaces the export in `folder` by the finished one in `staging`, a folder inside it.

    One rename decides: killed before it, the earlier export stands; after it, the next reader moves what is left.
    """
    finish_publication(folder)
    with opened(folder, alone=True):
        try:
            os.replace(staging, folder / _READY)
        except OSError as error:
            raise unwritable(folder, error) from None
        _move(folder)


def finish_publication(folder: Path) -> None:
    """Moves the files of an export that was published into place, where that was cut short."""
    if (folder / _READY).is_dir():
        with opened(folder, alone=True):
            _move(folder)


def _move(folder: Path) -> None:
    """The manifest goes last; files of an earlier export go."""
    ready = folder / _READY
    if not ready.is_dir():
        return
    wanted = _named(ready)  # none where it is not known what is new, and then nothing goes
    stale = _named(folder) - wanted if wanted else set()
    try:
        for path in sorted(ready.iterdir(), key=lambda path: path.name == FILE_NAME):
            if path.name == FILE_NAME:
                for name in stale:
                    (folder / name).unlink(missing_ok=True)
            rename_over(path, folder / path.name)
        ready.rmdir()
    except FileNotFoundError:
        pass  # where there are no locks another process may be moving the same files
    except OSError as error:
        raise ArtifactError(
            f"{folder} holds a finished export whose files cannot be moved into place ({error.strerror}); make it "
            "writable and try again."
        ) from None


def _named(folder: Path) -> set[str]:
    """The files in a folder that its manifest names; none where it cannot be read."""
    try:
        names = read_json(folder / FILE_NAME, FORMAT, VERSION).get("files")
    except ArtifactError:
        return set()
    return {name for name in names if Path(name).name == name} if isinstance(names, dict) else set()
