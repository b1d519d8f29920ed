"""Files in formats that others write, too: pictures, npz, YAML, pages, zips."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path, PurePosixPath

import numpy as np
import yaml
from PIL import Image, UnidentifiedImageError

from ddt_accel.cli.holdings import sizes
from ddt_accel.cli.inspection.documents import report
from ddt_accel.cli.inspection.told import Told
from ddt_accel.errors import ArtifactError, ConfigError
from ddt_accel.networks.families import published_of
from ddt_accel.networks.settings import read_yaml
from ddt_accel.report.numbers import FILE_NAME


def foreign(path: Path) -> Told | None:
    """What such a file is; None for others."""
    suffix = path.suffix.lower()
    readers: dict[str, Callable[[Path], Told]] = {
        ".npz": _npz, ".yaml": _yaml, ".yml": _yaml, ".html": _page, ".md": _page, ".zip": _zip, ".svg": _svg,
        ".cache": _timing,
    }  # fmt: skip
    if suffix in readers:
        return readers[suffix](path)
    return _picture(path) if suffix in Image.registered_extensions() else None


def _picture(path: Path) -> Told:
    try:
        with Image.open(path) as image:
            image.verify()
            return Told(
                facts={"kind": "picture", "format": image.format, "size": sizes(image.size), "mode": image.mode}
            )
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError) as error:
        raise ArtifactError(f"{path} is damaged or no picture ({error}).") from None


def _svg(path: Path) -> Told:
    return Told(facts={"kind": "picture", "format": "SVG", "bytes": path.stat().st_size})


def _timing(path: Path) -> Told:
    return Told(facts={"kind": "timing cache of the engine builder", "bytes": path.stat().st_size})


def _npz(path: Path) -> Told:
    """The arrays by their headers, and whose they look like."""
    arrays = {}
    try:
        with zipfile.ZipFile(path) as archive:
            for info in archive.infolist():
                with archive.open(info) as file:
                    arrays[info.filename.removesuffix(".npy")] = _header(file)
    except (zipfile.BadZipFile, zlib.error, OSError, ValueError, EOFError) as error:
        raise ArtifactError(f"{path} is damaged or no npz ({error}).") from None
    told = {name: f"{dtype} {list(shape)}" for name, (shape, dtype) in arrays.items()}
    return Told(facts={"kind": _npz_kind(arrays), **told})


def _header(file: object) -> tuple[tuple[int, ...], np.dtype]:
    version = np.lib.format.read_magic(file)  # type: ignore[arg-type]
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = read(file)  # type: ignore[arg-type]
    return shape, dtype


def _npz_kind(arrays: dict[str, tuple[tuple[int, ...], np.dtype]]) -> str:
    shape, dtype = arrays.get("arr_0", ((), np.dtype("uint8")))
    if len(shape) == 4 and dtype == np.uint8:
        return f"{shape[0]} pictures of {sizes(shape[1:3])}, as `sample --npz` and ADM's evaluation have them"
    if len(shape) == 4 and dtype.kind == "f":
        return f"{shape[0]} latents of {sizes(shape[1:])}, as `sample` writes them"
    if "images" in arrays and "labels" in arrays:
        return f"{arrays['images'][0][0]} pictures with labels, for `ddt-accel train --data`"
    return "arrays of NumPy"


def _yaml(path: Path) -> Told:
    """A network's configuration, or what the YAML has at its top."""
    try:
        settings = read_yaml(path)
    except ConfigError as error:
        try:
            content = yaml.safe_load(path.read_text())
        except (yaml.YAMLError, OSError, UnicodeDecodeError):
            raise ArtifactError(f"{path} is damaged or no YAML ({error}).") from None
        top = [str(key) for key in content] if isinstance(content, dict) else [type(content).__name__]
        return Told(facts={"kind": "YAML, but no configuration of a network", "holds": top, "reason": str(error)})
    config = settings.config
    assert config is not None  # a YAML without one is an error
    shape = settings.latent_shape or config.fixed_shape
    return Told(
        facts={
            "kind": "configuration of a network, for `--config`",
            "family": published_of(config).TITLE,
            **{name.replace("_", " "): value for name, value in vars(config).items()},
            "latent shape": list(shape) if shape else "not said; give --latent-shape",
        }
    )


def _page(path: Path) -> Told:
    """A page of a report, with its numbers where they lie beside it."""
    numbers = path.with_name(FILE_NAME)
    if path.stem == "report" and numbers.exists():
        return Told(facts={**report(numbers).facts, "kind": f"page of a report, with the numbers of {numbers.name}"})
    return Told(facts={"kind": f"a page, {'for a browser' if path.suffix == '.html' else 'Markdown'}"})


def _zip(path: Path) -> Told:
    known = Image.registered_extensions()
    try:
        with zipfile.ZipFile(path) as archive:
            names = [PurePosixPath(name.replace("\\", "/")) for name in archive.namelist()]
    except (zipfile.BadZipFile, OSError) as error:
        raise ArtifactError(f"{path} is damaged or no zip ({error}).") from None
    pictures = [name for name in names if name.suffix.lower() in known]
    folders, others = sorted({str(name.parent) for name in pictures}), len(names) - len(pictures)
    return Told(facts={"kind": "zip", "pictures": len(pictures), "in": folders, "other entries": others})
