"""Labelled images for training: a folder, a zip of one, or an npz."""

from __future__ import annotations

import lzma
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from ddt_accel.artifacts import checksum
from ddt_accel.errors import ConfigError
from ddt_accel.networks.device import memory_of
from ddt_accel.stages import OnStage, silent
from ddt_accel.training.account import Account
from ddt_accel.training.arrays import pictures, read_labels
from ddt_accel.training.folders import DiskFolder, Folder, find_pictures, zip_folder
from ddt_accel.training.picture import Picture, decode, readable_suffixes

EXPECTED = "give an image folder (class/picture.png), a zip of one, or an npz"
_DAMAGE = (
    zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, RuntimeError, NotImplementedError, ValueError, TypeError,
    OSError, KeyError,
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class ImageSet:
    """uint8 images [M, size, size, 3], int64 labels [M] and the class names in label order.

    `account` has what was found and left out while they were read.
    """

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]
    class_names: tuple[str, ...]
    account: Account = field(default_factory=Account, repr=False)

    @property
    def sha256(self) -> str:
        """What tells this set from any other."""
        return checksum({"class_names": list(self.class_names)}, {"images": self.images, "labels": self.labels})

    @property
    def lines(self) -> list[str]:
        """What was read and what was left out, for people."""
        return self.account.lines(self.class_names, self.images.shape[1])


def load_images(path: Path, *, size: int, split: str | None = None, on_stage: OnStage = silent) -> ImageSet:
    """Reads `class/image` or `split/class/image` from a folder or a zip, or images and labels from an npz.

    Images are centre-cropped to a square and resized to `size`. Of several splits only `split` is read, or where none
    is given the one to train on; the set's lines say where one is given, and there are none. Classes are
    numbered in alphabetical order. Raises ConfigError, in a sentence, for what cannot be read; before anything is
    read where the images would not fit the memory.
    """
    images = _loaded(path, size, split or "train", on_stage)
    if split is not None and images.account.split is None:
        images.account.notes.append(f"--split {split} makes no difference: there are no splits, and all is taken")
    return images


def _loaded(path: Path, size: int, split: str, on_stage: OnStage) -> ImageSet:
    if size < 1:
        raise ConfigError(f"Images of size {size}; give a number of pixels above 0.")
    if path.is_dir():
        return _from_folder(DiskFolder(path), path, size, split, on_stage)
    if not path.is_file():
        raise ConfigError(f"There is no {path}; {EXPECTED}.")
    with _opened(path) as archive:
        members = [info.filename for info in archive.infolist() if not info.is_dir()]
        if path.suffix.lower() == ".npz" or (members and all(name.endswith(".npy") for name in members)):
            with _damage_told(path, "npz"):
                return _from_arrays(archive, path, size, split, on_stage)
        return _from_folder(zip_folder(archive), path, size, split, on_stage)


def _from_folder(root: Folder, path: Path, size: int, split: str, on_stage: OnStage) -> ImageSet:
    account = Account()
    found = find_pictures(root, path, split, account)
    class_names = tuple(sorted({picture.class_name for picture in found}))
    index = {name: label for label, name in enumerate(class_names)}

    def decoded() -> Iterator[Picture]:
        for picture in found:
            name = "/".join((picture.class_name, *picture.parts))
            with _damage_told(path, "zip" if path.is_file() else "folder"):
                data = picture.read()
            yield decode(f"{name} in {path}", data, size)

    return ImageSet(
        images=_stacked(decoded(), len(found), size, account, on_stage),
        labels=np.array([index[picture.class_name] for picture in found], dtype=np.int64),
        class_names=class_names,
        account=account,
    )


def _from_arrays(archive: zipfile.ZipFile, path: Path, size: int, split: str, on_stage: OnStage) -> ImageSet:
    account = Account()
    arrays = read_labels(archive, path, split, account)
    return ImageSet(
        images=_stacked(pictures(archive, arrays.images, size), len(arrays.labels), size, account, on_stage),
        labels=arrays.labels,
        class_names=arrays.class_names,
        account=account,
    )


def _stacked(
    decoded: Iterator[Picture], count: int, size: int, account: Account, on_stage: OnStage
) -> NDArray[np.uint8]:
    """The pictures in one array, which is all that is held of them."""
    bytes_needed, memory = 3 * count * size**2, memory_of(torch.device("cpu"))
    if bytes_needed > memory:
        raise ConfigError(
            f"{count:,} images of {size} × {size} take {bytes_needed / 1e9:,.1f} GB, and this machine allows "
            f"{memory / 1e9:,.1f} GB; choose a smaller --size, or fewer images."
        )
    images = np.empty((count, size, size, 3), dtype=np.uint8)
    advance = on_stage("reading", count)
    for index, picture in enumerate(decoded):
        images[index] = picture.pixels
        account.shapes[picture.shape] += 1
        account.transparent += picture.transparent
        account.grey = account.grey and bool((picture.pixels == picture.pixels[..., :1]).all())
        advance()
    return images


@contextmanager
def _opened(path: Path) -> Iterator[zipfile.ZipFile]:
    """The zip, or npz, at `path`; raises ConfigError with what it is instead."""
    kind = "npz" if path.suffix.lower() == ".npz" else "zip"
    with ExitStack() as stack:
        if path.suffix.lower() in readable_suffixes():
            raise ConfigError(f"{path} is a single picture; {EXPECTED}.")
        with _damage_told(path, kind):
            if not zipfile.is_zipfile(path):
                if tarfile.is_tarfile(path):
                    raise ConfigError(f"{path} is a tar; unpack it (tar xf {path}) and give the folder.")
                if path.suffix.lower() not in (".zip", ".npz"):
                    raise ConfigError(f"{path} is no kind of data that can be trained on; {_advice(path)}.")
            archive = stack.enter_context(zipfile.ZipFile(path))
        yield archive


def _advice(path: Path) -> str:
    """What to make of other kinds of files that people have their pictures in."""
    made = "make an image folder of it (class/picture.png), or an npz"
    return {
        ".npy": "put its images and their labels into one npz: np.savez('data.npz', images=images, labels=labels)",
        ".parquet": made,
        ".arrow": made,
        ".7z": "unpack it and give the folder",
        ".rar": "unpack it and give the folder",
    }.get(path.suffix.lower(), EXPECTED)


@contextmanager
def _damage_told(path: Path, kind: str) -> Iterator[None]:
    try:
        yield
    except ConfigError:  # which is a ValueError, too
        raise
    except _DAMAGE as error:
        raise ConfigError(f"{path} is not a readable {kind} ({error}); {EXPECTED}.") from None
