"""Pictures and labels in an npz, as several communities write them."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from ddt_accel.errors import ConfigError
from ddt_accel.training.images import load_images

IMAGES = np.random.default_rng(0).integers(256, size=(6, 4, 4, 3), dtype=np.uint8)
LABELS = np.array([0, 1, 2, 0, 1, 2])
GREY = IMAGES[..., 0]


def npz(folder: Path, **arrays: Any) -> Path:
    path = folder / "set.npz"
    np.savez(path, **arrays)
    return path


@pytest.mark.parametrize(
    ("images", "labels"),
    [("images", "labels"), ("arr_0", "arr_1"), ("x_train", "y_train"), ("X_train", "Y_train"), ("X", "y"),
     ("train_images", "train_labels"), ("data", "targets")],
)  # fmt: skip
def test_names_in_use(tmp_path: Path, images: str, labels: str) -> None:
    other = {"x_test": 255 - IMAGES, "y_test": LABELS} if "rain" in images else {}
    data = load_images(npz(tmp_path, **{images: IMAGES, labels: LABELS}, **other), size=4)
    assert np.array_equal(data.images, IMAGES)
    assert np.array_equal(data.labels, LABELS)
    assert data.class_names == ("0", "1", "2")


def test_splits_of_an_npz(tmp_path: Path) -> None:
    path = npz(tmp_path, x_train=IMAGES, y_train=LABELS, x_test=255 - IMAGES, y_test=LABELS[::-1])
    data = load_images(path, size=4, split="test")
    assert np.array_equal(data.images, 255 - IMAGES)
    assert np.array_equal(data.labels, LABELS[::-1])
    with pytest.raises(ConfigError, match=r"x_train uint8 \[6, 4, 4, 3\], y_train .*--split"):
        load_images(path, size=4, split="val")
    only = npz(tmp_path, x_test=IMAGES, y_test=LABELS)
    with pytest.raises(ConfigError, match=r"x_test uint8 .*; --split test takes what is there"):
        load_images(only, size=4)
    assert load_images(only, size=4, split="test").account.split == "test"
    medical = npz(tmp_path, train_images=IMAGES, train_labels=LABELS, val_images=255 - IMAGES, val_labels=LABELS)
    assert np.array_equal(load_images(medical, size=4, split="val").images, 255 - IMAGES)


def test_of_two_pairs_it_is_said_which_is_taken(tmp_path: Path) -> None:
    path = npz(tmp_path, x_train=255 - IMAGES, y_train=LABELS[::-1], images=IMAGES, labels=LABELS, y=LABELS)
    data = load_images(path, size=4)
    assert np.array_equal(data.images, IMAGES)
    assert "images and labels are taken; x_train and y_train, images and y would do, too" in data.lines
    alone = load_images(npz(tmp_path, images=IMAGES, labels=LABELS, x_test=IMAGES, y_test=LABELS), size=4)
    assert not any("taken" in line for line in alone.lines)  # another split is no choice


def test_a_split_of_what_has_none_is_said_to_make_no_difference(tmp_path: Path) -> None:
    path = npz(tmp_path, images=IMAGES, labels=LABELS)
    for name in ("a", "b"):
        (tmp_path / "folder" / name).mkdir(parents=True)
        Image.fromarray(IMAGES[0]).save(tmp_path / "folder" / name / "0.png")
    for data in (path, tmp_path / "folder"):
        assert any("--split test makes no difference" in line for line in load_images(data, size=4, split="test").lines)
        assert not any("--split" in line for line in load_images(data, size=4).lines)


@pytest.mark.parametrize(
    ("suffix", "advice"),
    [(".npy", "np.savez"), (".parquet", "image folder"), (".7z", "unpack it"), (".bin", "a zip of one, or an npz")],
)
def test_other_kinds_of_files_are_told_what_to_become(tmp_path: Path, suffix: str, advice: str) -> None:
    path = tmp_path / f"data{suffix}"
    path.write_bytes(b"PAR1 7z whatever")
    with pytest.raises(ConfigError, match="no kind of data that can be trained on") as refused:
        load_images(path, size=4)
    assert advice in str(refused.value)
    assert "zip (" not in str(refused.value)


@pytest.mark.parametrize(
    ("images", "expected"),
    [
        (GREY, np.repeat(GREY[..., None], 3, axis=3)),
        (GREY[..., None], np.repeat(GREY[..., None], 3, axis=3)),
        (np.moveaxis(IMAGES, -1, 1), IMAGES),
        (GREY[:, None], np.repeat(GREY[..., None], 3, axis=3)),
        (np.asfortranarray(IMAGES), IMAGES),
        (np.concatenate([IMAGES, np.zeros_like(GREY)[..., None]], axis=3), np.full_like(IMAGES, 255)),
    ],
    ids=["grey", "grey with a channel", "channels first", "grey, channel first", "in Fortran's order", "transparent"],
)
def test_shapes_of_images(tmp_path: Path, images: NDArray[np.uint8], expected: NDArray[np.uint8]) -> None:
    data = load_images(npz(tmp_path, images=images, labels=LABELS), size=4)
    assert np.array_equal(data.images, expected)


def test_other_sizes_are_resized_as_pictures_are(tmp_path: Path) -> None:
    flat = np.full((6, 28, 28), 77, np.uint8)
    data = load_images(npz(tmp_path, images=flat, labels=LABELS), size=32)
    assert data.images.shape == (6, 32, 32, 3)
    assert (data.images == 77).all()
    assert "28 × 28 pixels, enlarged to 32 × 32; grey, trained as colour" in data.lines


@pytest.mark.parametrize("labels", [LABELS[:, None], LABELS.astype(np.uint8), LABELS.astype(">i4")])
def test_labels_of_other_shapes_and_types(tmp_path: Path, labels: NDArray[Any]) -> None:
    data = load_images(npz(tmp_path, images=IMAGES, labels=labels), size=4)
    assert data.labels.dtype == np.int64
    assert np.array_equal(data.labels, LABELS)


def test_labels_that_are_names(tmp_path: Path) -> None:
    names = np.array(["dog", "cat", "dog", "cat", "ant", "ant"])
    for labels in (names, names.astype("S")):
        data = load_images(npz(tmp_path, images=IMAGES, labels=labels), size=4)
        assert data.class_names == ("ant", "cat", "dog")
        assert data.labels.tolist() == [2, 1, 2, 1, 0, 0]


def test_names_of_classes(tmp_path: Path) -> None:
    path = npz(tmp_path, images=IMAGES, labels=LABELS, class_names=np.array(["ant", "bee", "cat", "dog"]))
    data = load_images(path, size=4)
    assert data.class_names == ("ant", "bee", "cat", "dog")
    assert "no pictures of 1 of the classes, of which nothing is learnt: dog" in data.lines
    with pytest.raises(ConfigError, match="names 2 classes, and its labels go up to 2"):
        load_images(npz(tmp_path, images=IMAGES, labels=LABELS, label_names=np.array(["a", "b"])), size=4)
    # Python objects are never unpickled.
    objects = load_images(npz(tmp_path, images=IMAGES, labels=LABELS, class_names=np.array(["a", None, 3])), size=4)
    assert objects.class_names == ("0", "1", "2")
    assert any("Python objects [3]" in line for line in objects.lines)


def test_classes_without_pictures_are_said(tmp_path: Path) -> None:
    data = load_images(npz(tmp_path, images=IMAGES, labels=LABELS * 2 + 1), size=4)
    assert data.class_names == tuple("012345")
    assert "no pictures of 3 of the classes, of which nothing is learnt: 0, 2, 4" in data.lines


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        (LABELS * 10**9, "labels from 0 to 2000000000"),
        (LABELS.astype(np.uint64) << np.uint64(62), "labels from 0 to 9223372036854775808"),
        (LABELS - 1, "labels from -1 to 1"),
        (LABELS.astype(float), r"labels float64 \[6\]"),
        (np.eye(6), r"labels float64 \[6, 6\]"),
        (LABELS[:5], r"labels int64 \[5\] for images uint8 \[6, 4, 4, 3\]"),
        (LABELS.astype(object), "Python objects"),
    ],
)
def test_labels_that_cannot_be_trained_on(tmp_path: Path, labels: NDArray[Any], said: str) -> None:
    with pytest.raises(ConfigError, match=rf"set\.npz holds .*{said}"):
        load_images(npz(tmp_path, images=IMAGES, labels=labels), size=4)


@pytest.mark.parametrize(
    ("images", "said"),
    [
        (IMAGES / 255, r"float64 \[6, 4, 4, 3\]; expected uint8.*255 \* images"),
        (IMAGES.astype(np.uint16), r"uint16 \[6, 4, 4, 3\]; expected uint8"),
        (IMAGES.reshape(6, -1), r"uint8 \[6, 48\]; expected \[M, H, W\]"),
        (IMAGES[:0], r"uint8 \[0, 4, 4, 3\]; expected at least one"),
        (IMAGES.astype(object), "Python objects"),
    ],
)
def test_images_that_cannot_be_trained_on(tmp_path: Path, images: NDArray[Any], said: str) -> None:
    with pytest.raises(ConfigError, match=rf"set\.npz holds images {said}"):
        load_images(npz(tmp_path, images=images, labels=LABELS[: len(images)]), size=4)


def test_an_npz_without_a_pair_says_what_it_has(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"holds arr_0 uint8 \[6, 4, 4, 3\]; expected 'images'.*arr_1"):
        load_images(npz(tmp_path, arr_0=IMAGES), size=4)


def test_suffixes_in_capitals_and_none(tmp_path: Path) -> None:
    whole = npz(tmp_path, images=IMAGES, labels=LABELS).read_bytes()
    for name in ("UP.NPZ", "arrays", "arrays.zip"):
        (tmp_path / name).write_bytes(whole)
        assert np.array_equal(load_images(tmp_path / name, size=4).images, IMAGES)


def test_what_an_array_says_of_itself_is_checked_before_memory_is_asked_for(tmp_path: Path) -> None:
    """A header of a few bytes claims an exabyte."""
    header = str({"descr": "|u1", "fortran_order": False, "shape": (10**12, 1000, 1000, 3)}).ljust(117) + "\n"
    lying = b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header.encode() + bytes(100)
    with zipfile.ZipFile(tmp_path / "lying.npz", "w") as archive:
        archive.writestr("images.npy", lying)
        archive.writestr("labels.npy", lying)
    with pytest.raises(ConfigError, match=r"lying\.npz is not a readable npz .*3000000000000000"):
        load_images(tmp_path / "lying.npz", size=4)
