"""Pictures, wherever they lie: in a run, an npz, a folder, or a zip of one. They come in chunks, never all at once."""

from __future__ import annotations

import hashlib
import itertools
import lzma
import os
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ddt_accel.artifacts import checksum
from ddt_accel.drawing.run_folder import FILE_NAME, RunFolder
from ddt_accel.errors import ArtifactError, ConfigError, MismatchError
from ddt_accel.training.account import Account
from ddt_accel.training.arrays import Header, header_of, rows_of
from ddt_accel.training.folders import DiskFolder, Folder, Read, find_pictures, zip_folder
from ddt_accel.training.picture import decode, readable_suffixes

CHUNK = 128  # pictures at a time, where they do not lie in ranges
EXPECTED = "give a run's folder, an npz with arr_0, or a folder or zip of pictures"
_STATISTICS = {"mu", "sigma"}


@dataclass(frozen=True, kw_only=True)
class Chunk:
    """Neighbouring pictures that are not read yet; `sha256` is of what they are read from."""

    indices: range
    sha256: str
    read: Callable[[], NDArray[np.uint8]]  # [B, H, W, 3]


@dataclass(frozen=True, kw_only=True)
class Pictures:
    """`count` pictures of `size` (height, width), and where what is found of them is kept.

    `identity` is that of the run they are from, and `labels` reads their classes, where these are known.
    """

    where: Path
    count: int
    size: tuple[int, int]
    kept: Path
    chunks: Callable[[], Iterator[Chunk]]
    identity: dict[str, Any] | None = None
    labels: Callable[[], NDArray[np.int64]] | None = None


@contextmanager
def opened(path: Path, *, split: str = "test") -> Iterator[Pictures]:
    """The pictures at `path`; of several splits `split`.

    Raises ConfigError or ArtifactError, in a sentence, for what cannot be evaluated: no pictures, a run that is not
    finished, latents.
    """
    with ExitStack() as stack:
        if path.is_dir():
            yield _of_run(path) if (path / FILE_NAME).exists() else _of_folder(DiskFolder(path), path, split)
            return
        if not path.is_file():
            raise ConfigError(f"There is no {path}; {EXPECTED}.")
        if path.suffix.lower() in readable_suffixes():
            raise ConfigError(f"{path} is a single picture; {EXPECTED}.")
        with _damage_told(path):
            archive = stack.enter_context(zipfile.ZipFile(path))
            names = [info.filename for info in archive.infolist() if not info.is_dir()]
            arrays = path.suffix.lower() == ".npz" or (names and all(name.endswith(".npy") for name in names))
            pictures = _of_arrays(archive, path) if arrays else _of_folder(zip_folder(archive), path, split)
        yield pictures


@contextmanager
def _damage_told(path: Path) -> Iterator[None]:
    try:
        yield
    except ConfigError:  # which is a ValueError, too
        raise
    except (zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, OSError, RuntimeError, ValueError) as error:
        raise ConfigError(f"{path} cannot be read ({error}); {EXPECTED}.") from None


def holds_statistics(path: Path) -> bool:
    """Whether an npz has a mean and a covariance of features."""
    if not (path.is_file() and zipfile.is_zipfile(path)):
        return False
    with zipfile.ZipFile(path) as archive:
        return {f"{name}.npy" for name in _STATISTICS} <= set(archive.namelist())


def holds_pictures(path: Path) -> bool:
    """Whether an npz has pictures beside its statistics."""
    with zipfile.ZipFile(path) as archive:
        return "arr_0.npy" in archive.namelist()


def check_pairs(ours: Pictures, theirs: Pictures) -> None:
    """Raises MismatchError where pictures were not drawn of the same noises and labels, as far as that is known."""
    if ours.count != theirs.count:
        raise MismatchError(
            f"{ours.where} has {ours.count} pictures and {theirs.where} {theirs.count}; --against compares as many of "
            "the same noises."
        )
    if ours.identity is not None and theirs.identity is not None:  # which says what the labels are
        names = {"seed": "--seed", "labels": "--labels", "latents": "--latent-shape"}
        for name, option in names.items():
            one, other = ours.identity.get(name), theirs.identity.get(name)
            if one != other:
                raise MismatchError(
                    f"{theirs.where} was drawn with {option} {other}, and {ours.where} with {one}; --against compares "
                    "runs of the same noises. Draw one of them anew."
                )
    elif ours.labels and theirs.labels and not np.array_equal(ours.labels(), theirs.labels()):
        raise MismatchError(f"{theirs.where} has other labels than {ours.where}; --against compares pictures in pairs.")


def check_size(ours: Pictures, size: tuple[int, int] | None, where: str) -> None:
    """Raises MismatchError where the reference's pictures are of another size."""
    if size is not None and size != ours.size:
        raise MismatchError(
            f"{ours.where} has pictures of {_shown(ours.size)} pixels, and {where} of {_shown(size)}: distances would "
            "tell the sizes. Give a reference of the same size, or resize one of them."
        )


def _of_run(folder: Path) -> Pictures:
    run = RunFolder.load(folder)
    present = run.present()
    if present < run.images:
        raise ArtifactError(
            f"{folder} holds {present} of the run's {run.images} images; finish it with the `ddt-accel sample` that "
            "began it, which goes on from there."
        )
    first = run.read(next(run.ranges())).rows
    if not _are_pictures(first):
        raise ConfigError(f"{folder} holds latents, not pictures; draw it with the model's autoencoder (--decoder).")

    def chunks() -> Iterator[Chunk]:
        for indices in run.ranges():
            rows = run.read(indices).rows.astype(np.uint8, copy=False)
            yield _chunk(indices.start, rows)

    return Pictures(
        where=folder,
        count=run.images,
        size=(first.shape[1], first.shape[2]),
        kept=folder / "evaluation",
        chunks=chunks,
        identity=run.identity,
        labels=lambda: np.concatenate([run.read(indices).labels for indices in run.ranges()]),
    )


def _of_arrays(archive: zipfile.ZipFile, path: Path) -> Pictures:
    headers = {}
    for name in archive.namelist():
        if name.endswith(".npy"):
            headers[name.removesuffix(".npy")] = header_of(archive, name)
    found = headers.get("arr_0") or next((one for one in headers.values() if _are_pictures(one)), None)
    if found is None or not _are_pictures(found):
        there = ", ".join(f"{name} {header}" for name, header in headers.items()) or "no arrays"
        raise ConfigError(f"{path} holds {there}; expected arr_0, uint8 [M, H, W, 3].")
    images = found

    def chunks() -> Iterator[Chunk]:
        rows = rows_of(archive, images)
        for start in range(0, images.shape[0], CHUNK):
            with _damage_told(path):
                part = np.stack(list(itertools.islice(rows, CHUNK)))
            yield _chunk(start, part)

    classes = _labels(archive, headers.get("arr_1"), images, path)
    return Pictures(
        where=path,
        count=images.shape[0],
        size=(images.shape[1], images.shape[2]),
        kept=_beside(path),
        chunks=chunks,
        labels=None if classes is None else lambda: classes,
    )


def _chunk(first: int, rows: NDArray[np.uint8]) -> Chunk:
    """Of pictures that are at hand."""
    return Chunk(indices=range(first, first + len(rows)), sha256=checksum({}, {"rows": rows}), read=lambda: rows)


def _are_pictures(rows: Header | NDArray[Any]) -> bool:
    shape = rows.shape
    return rows.dtype == np.uint8 and len(shape) == 4 and shape[3] == 3 and min(shape) > 0


def _labels(archive: zipfile.ZipFile, header: Header | None, images: Header, path: Path) -> NDArray[np.int64] | None:
    if header is None:
        return None
    if header.dtype.kind not in "iu" or header.shape != images.shape[:1]:
        raise ConfigError(f"{path} holds labels arr_1 {header} for pictures {images}; expected a whole number each.")
    with archive.open(header.member) as file:
        labels: NDArray[np.int64] = np.lib.format.read_array(file, allow_pickle=False).astype(np.int64)
    return labels


def _of_folder(root: Folder, path: Path, split: str) -> Pictures:
    found = _files(root, path, split)
    first = decode(f"{found[0][0]} in {path}", found[0][1](), None).pixels
    size = (first.shape[0], first.shape[1])

    def chunks() -> Iterator[Chunk]:
        for start in range(0, len(found), CHUNK):
            part = found[start : start + CHUNK]
            with _damage_told(path):
                data = [read() for _, read in part]
            digest = hashlib.sha256()
            for one in data:
                digest.update(hashlib.sha256(one).digest())
            names = [f"{name} in {path}" for name, _ in part]
            yield Chunk(
                indices=range(start, start + len(part)),
                sha256=digest.hexdigest(),
                read=partial(_decoded, names, data, size),
            )

    return Pictures(where=path, count=len(found), size=size, kept=_beside(path), chunks=chunks)


def _files(root: Folder, path: Path, split: str) -> list[tuple[str, Read]]:
    """The pictures right in a folder, in the order of their names; else those of all folders in it, or of the split."""
    _, here = root.listing(Account())
    if here:
        return sorted(here.items())
    found = find_pictures(root, path, split, Account())
    return [("/".join((one.class_name, *one.parts)), one.read) for one in found]


def _decoded(names: list[str], data: list[bytes], size: tuple[int, int]) -> NDArray[np.uint8]:
    rows = np.empty((len(data), *size, 3), np.uint8)
    for row, name, one in zip(rows, names, data, strict=True):
        pixels = decode(name, one, None).pixels
        if pixels.shape != row.shape:
            raise ConfigError(
                f"{name} has {_shown((pixels.shape[0], pixels.shape[1]))} pixels, and the first picture there "
                f"{_shown(size)}; give pictures of one size."
            )
        row[:] = pixels
    return rows


def _beside(path: Path) -> Path:
    """Not in a folder of samples, whose files others count."""
    named = path if path.name not in ("", "..") else Path(os.path.abspath(path))
    return named.with_name(f"{named.name}-evaluation")


def _shown(size: tuple[int, int]) -> str:
    return f"{size[1]} × {size[0]}"
