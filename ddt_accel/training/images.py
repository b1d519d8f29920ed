"""Labelled images for training: a folder, a zip of one, or an npz."""

from __future__ import annotations

import io
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from ddt_accel.artifacts import checksum
from ddt_accel.errors import ConfigError

SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp"}


@dataclass(frozen=True, kw_only=True)
class ImageSet:
    """uint8 images [M, size, size, 3], int64 labels [M] and the class names in label order."""

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]
    class_names: tuple[str, ...]

    @property
    def sha256(self) -> str:
        """What tells this set from any other."""
        return checksum({"class_names": list(self.class_names)}, {"images": self.images, "labels": self.labels})


def load_images(path: Path, *, size: int, split: str = "train") -> ImageSet:
    """Reads `class/image` or `split/class/image` from a folder or a zip, or `images` and `labels` from an npz.

    Images are centre-cropped to a square and resized to `size`. Of several splits only `split` is read. Classes are
    numbered in alphabetical order.
    """
    if size < 1:
        raise ConfigError(f"Images of size {size}; give a number of pixels above 0.")
    if not path.exists():
        raise ConfigError(f"There is no {path}; give an image folder, a zip of one, or an npz.")
    if path.suffix == ".npz":
        return _load_npz(path, size)
    entries = sorted(_folder_entries(path) if path.is_dir() else _zip_entries(path), key=lambda entry: entry[0])
    by_depth = {len(name.parts) for name, _ in entries}
    if by_depth == {3}:
        splits = sorted({name.parts[0] for name, _ in entries})
        entries = [entry for entry in entries if entry[0].parts[0] == split]
        if not entries:
            raise ConfigError(f"{path} has the splits {', '.join(splits)}, not '{split}'; choose one with --split.")
    elif by_depth != {2}:
        raise ConfigError(f"{path} must hold its images as class/image or split/class/image, all alike.")
    class_names = sorted({name.parts[-2] for name, _ in entries})
    index = {name: label for label, name in enumerate(class_names)}
    return ImageSet(
        images=np.stack([_decode(name, data, size) for name, data in entries]),
        labels=np.array([index[name.parts[-2]] for name, _ in entries], dtype=np.int64),
        class_names=tuple(class_names),
    )


def _folder_entries(root: Path) -> Iterator[tuple[PurePosixPath, bytes]]:
    for path in root.rglob("*"):
        if path.suffix.lower() in SUFFIXES and path.is_file():
            yield PurePosixPath(path.relative_to(root).as_posix()), path.read_bytes()


def _zip_entries(path: Path) -> Iterator[tuple[PurePosixPath, bytes]]:
    try:
        with zipfile.ZipFile(path) as archive:
            for info in archive.infolist():
                name = PurePosixPath(info.filename)
                if name.suffix.lower() in SUFFIXES and not name.name.startswith("."):
                    yield name, archive.read(info)
    except (zipfile.BadZipFile, zlib.error, RuntimeError, NotImplementedError) as error:  # encrypted ones, too
        raise ConfigError(f"{path} is not a readable zip ({error}); give an image folder, a zip or an npz.") from None


def _decode(name: PurePosixPath, data: bytes, size: int) -> NDArray[np.uint8]:
    try:
        image = Image.open(io.BytesIO(data)).convert("RGB")
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as error:
        raise ConfigError(f"{name} cannot be read as an image ({error}); remove or replace it.") from None
    if image.size != (size, size):
        side = min(image.size)
        left, top = (image.width - side) // 2, (image.height - side) // 2
        image = image.crop((left, top, left + side, top + side)).resize((size, size), Image.Resampling.LANCZOS)
    return np.asarray(image, dtype=np.uint8)


def _load_npz(path: Path, size: int) -> ImageSet:
    try:
        # Opened here: NumPy leaves a file open that it cannot read.
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            images, labels = archive["images"], archive["labels"]
    except (
        KeyError, TypeError, ValueError, EOFError, OSError, RuntimeError, zipfile.BadZipFile, zlib.error
    ) as error:  # fmt: skip
        raise ConfigError(f"{path} must hold arrays 'images' [M, S, S, 3] uint8 and 'labels' [M] ({error}).") from None
    if images.dtype != np.uint8 or images.shape[1:] != (size, size, 3) or labels.shape != images.shape[:1]:
        raise ConfigError(
            f"{path} holds images {images.dtype}{list(images.shape)} and labels {list(labels.shape)}; expected uint8 "
            f"[M, {size}, {size}, 3] and [M]."
        )
    if labels.dtype.kind not in "iu":
        raise ConfigError(f"{path} holds labels of type {labels.dtype}; expected whole numbers from 0.")
    labels = labels.astype(np.int64)
    if labels.size == 0 or labels.min() < 0:
        raise ConfigError(f"{path} must hold at least one image, with labels from 0.")
    return ImageSet(images=images, labels=labels, class_names=tuple(str(k) for k in range(int(labels.max()) + 1)))
