"""Pictures and labels in an npz, under any of the names in use."""

from __future__ import annotations

import math
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ddt_accel.errors import ConfigError
from ddt_accel.training.account import Account, folded
from ddt_accel.training.folders import SPLITS
from ddt_accel.training.picture import Picture, fitted

MAX_CLASSES = 65_536  # three times those of ImageNet-21k
# (images, labels): our own and most people's; MedMNIST's; Keras'; ADM's; and what else is common.
PAIRS = (
    ("images", "labels"), ("{split}_images", "{split}_labels"), ("images_{split}", "labels_{split}"),
    ("x_{split}", "y_{split}"), ("{split}_x", "{split}_y"), ("arr_0", "arr_1"), ("x", "y"), ("data", "labels"),
    ("images", "targets"), ("data", "targets"), ("image", "label"), ("images", "y"),
)  # fmt: skip
CLASS_NAMES = ("class_names", "label_names")
_CHANNELS = (1, 3, 4)
WANTED = "'images' [M, H, W, 3] uint8 and 'labels' [M]"


@dataclass(frozen=True, kw_only=True)
class Header:
    """What an array in an npz says it is, read without its content."""

    member: str
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    fortran: bool

    def __str__(self) -> str:
        kind = "Python objects" if self.dtype.hasobject else str(self.dtype)
        return f"{kind} [{', '.join(map(str, self.shape))}]"


@dataclass(frozen=True, kw_only=True)
class LabelledArrays:
    """The two arrays that were chosen, and what their labels mean."""

    images: Header
    labels: NDArray[np.int64]
    class_names: tuple[str, ...]


def read_labels(archive: zipfile.ZipFile, where: Path, split: str, account: Account) -> LabelledArrays:
    """Chooses images and labels by their names and reads the labels; the images are checked, but not read.

    Raises ConfigError where there is no such pair, or it holds what cannot be trained on, with what there is.
    """
    headers = {
        name.removesuffix(".npy"): header_of(archive, name) for name in archive.namelist() if name[-4:] == ".npy"
    }
    by_name = {name.lower(): header for name, header in headers.items()}
    images, labels = _chosen(by_name, where, split, account)
    _check_images(images, where)
    if labels.shape not in ((images.shape[0],), (images.shape[0], 1)):
        raise ConfigError(f"{where} holds labels {labels} for images {images}; expected a whole number an image, [M].")
    names = next((by_name[name] for name in CLASS_NAMES if name in by_name), None)
    if labels.dtype.kind in "US":
        kinds, numbers = np.unique(_content(archive, labels).ravel(), return_inverse=True)
        return LabelledArrays(images=images, labels=numbers.astype(np.int64), class_names=tuple(map(_text, kinds)))
    if labels.dtype.kind not in "iub":
        raise ConfigError(f"{where} holds labels {labels}; expected whole numbers from 0, or names.")
    numbers = _content(archive, labels).ravel()
    lowest, highest = int(numbers.min()), int(numbers.max())
    if lowest < 0 or highest >= MAX_CLASSES:
        raise ConfigError(
            f"{where} holds labels from {lowest} to {highest}; expected whole numbers from 0 to the number of classes "
            f"less 1, below {MAX_CLASSES}. Number the classes anew."
        )
    class_names = _class_names(archive, names, highest + 1, where, account)
    present = set(np.unique(numbers).tolist())
    if empty := [name for label, name in enumerate(class_names) if label not in present]:
        account.notes.append(f"no pictures of {len(empty)} of the classes, of which nothing is learnt: {folded(empty)}")
    return LabelledArrays(images=images, labels=numbers.astype(np.int64), class_names=class_names)


def pictures(archive: zipfile.ZipFile, header: Header, size: int) -> Iterator[Picture]:
    """The images of an array one after the other, as pictures of `size`."""
    first = _channels_first(header.shape[1:])
    for pixels in rows_of(archive, header):
        image = np.moveaxis(pixels, 0, -1) if first else pixels
        if image.ndim == 3 and image.shape[-1] == 1:
            image = image[..., 0]
        yield fitted(Image.fromarray(np.ascontiguousarray(image)), size)


def _chosen(headers: Mapping[str, Header], where: Path, split: str, account: Account) -> tuple[Header, Header]:
    found = _pairs(headers, next((names for names in SPLITS if split.lower() in names), (split.lower(),)))
    if found:
        (images, labels), account.split = next(iter(found.items()))
        if others := [" and ".join(pair) for pair in found if pair != (images, labels)]:
            account.notes.append(f"{images} and {labels} are taken; {', '.join(others)} would do, too")
        return headers[images], headers[labels]
    there = ", ".join(f"{name} {header}" for name, header in list(headers.items())[:8]) or "no arrays"
    other = next((names[0] for names in SPLITS if _pairs(headers, names)), None)
    raise ConfigError(
        f"{where} holds {there}; expected {WANTED}, or such a pair as x_train and y_train, train_images and "
        "train_labels, or arr_0 and arr_1, of the split that --split names"
        + (f"; --split {other} takes what is there." if other else ".")
    )


def _pairs(headers: Mapping[str, Header], aliases: tuple[str, ...]) -> dict[tuple[str, str], str | None]:
    """The names of images and labels that are there, each with the name of the split that they are of."""
    named = [
        (images.format(split=alias), labels.format(split=alias), alias or None)
        for images, labels in PAIRS
        for alias in (aliases if "{split}" in images else ("",))
    ]
    return {(images, labels): split for images, labels, split in named if images in headers and labels in headers}


def _check_images(images: Header, where: Path) -> None:
    shape = images.shape
    if images.dtype != np.uint8:
        hint = " Floats from 0 to 1: (255 * images).round().astype('uint8')." if images.dtype.kind == "f" else ""
        raise ConfigError(f"{where} holds images {images}; expected uint8, from 0 to 255.{hint}")
    coloured = len(shape) == 4 and (shape[3] in _CHANNELS or shape[1] in _CHANNELS)
    if not (len(shape) == 3 or coloured):
        raise ConfigError(
            f"{where} holds images {images}; expected [M, H, W], [M, H, W, C] or [M, C, H, W] with 1, 3 or 4 channels."
        )
    if min(shape) < 1:
        raise ConfigError(f"{where} holds images {images}; expected at least one, of at least one pixel.")


def _channels_first(shape: tuple[int, ...]) -> bool:
    """Whether images of this shape are [C, H, W]; where they may be [H, W, C], too, only if that makes them square."""
    if len(shape) < 3 or shape[0] not in _CHANNELS:
        return False
    return shape[2] not in _CHANNELS or shape[0] != shape[1] == shape[2]


def _class_names(
    archive: zipfile.ZipFile, header: Header | None, classes: int, where: Path, account: Account
) -> tuple[str, ...]:
    if header is not None and header.dtype.kind in "US" and len(header.shape) == 1:
        if header.shape[0] < classes:
            raise ConfigError(f"{where} names {header.shape[0]} classes, and its labels go up to {classes - 1}.")
        return tuple(map(_text, _content(archive, header)))
    if header is not None:
        account.notes.append(f"the names of the classes are {header}, no array of text: not read")
    return tuple(str(label) for label in range(classes))


def _text(name: object) -> str:
    return name.decode(errors="replace") if isinstance(name, bytes) else str(name)


def header_of(archive: zipfile.ZipFile, member: str) -> Header:
    """Reads what stands before an array; raises ValueError where that and the array's length do not agree."""
    with archive.open(member) as file:
        shape, fortran, dtype = _begin(file)
        size = file.tell() + math.prod(shape) * dtype.itemsize
    if not dtype.hasobject and size != archive.getinfo(member).file_size:
        raise ValueError(f"{member} says that it takes {size} bytes, and takes {archive.getinfo(member).file_size}")
    return Header(member=member, dtype=dtype, shape=shape, fortran=fortran)


def _begin(file: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    version = np.lib.format.read_magic(file)
    if version == (1, 0):
        return np.lib.format.read_array_header_1_0(file)
    return np.lib.format.read_array_header_2_0(file)


def _content(archive: zipfile.ZipFile, header: Header) -> NDArray[Any]:
    with archive.open(header.member) as file:
        return np.asarray(np.lib.format.read_array(file, allow_pickle=False))


def rows_of(archive: zipfile.ZipFile, header: Header) -> Iterator[NDArray[np.uint8]]:
    """The images of an array, read one by one where they lie one after the other."""
    if header.fortran and len(header.shape) > 1:
        yield from _content(archive, header)
        return
    shape = header.shape[1:]
    with archive.open(header.member) as file:
        _begin(file)
        for _ in range(header.shape[0]):
            yield np.frombuffer(file.read(math.prod(shape)), np.uint8).reshape(shape)
