"""Where pictures lie: classes, splits, links, what nobody means, and zips of all that."""

from __future__ import annotations

import io
import os
import re
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ddt_accel.errors import ConfigError
from ddt_accel.training import images as images_module
from ddt_accel.training.images import ImageSet, load_images


def png(value: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (4, 4), (value, 2 * value, 255 - value)).save(file, format="PNG")
    return file.getvalue()


def plant(root: Path, *names: str) -> Path:
    """Files of these names; pictures have their index as their colour, the others are text; folders end in a slash."""
    for index, name in enumerate(names):
        path = root / name
        (path if name.endswith("/") else path.parent).mkdir(parents=True, exist_ok=True)
        if not name.endswith("/"):
            path.write_bytes(png(index) if path.suffix.lower() == ".png" else b"no picture")
    return root


def zipped(root: Path, *, separator: str = "/") -> Path:
    path = root.with_suffix(".zip")
    with zipfile.ZipFile(path, "w") as archive:
        for each in sorted(root.rglob("*")):
            name = each.relative_to(root).as_posix() + ("/" if each.is_dir() else "")
            # ZipInfo keeps a backslash as it is, as archives made on Windows have it.
            archive.writestr(zipfile.ZipInfo(name.replace("/", separator)), b"" if each.is_dir() else each.read_bytes())
    return path


def read(data: ImageSet) -> list[tuple[str, int]]:
    """Each picture's class, and the colour that it was planted with."""
    return [
        (data.class_names[label], int(image[0, 0, 0])) for label, image in zip(data.labels, data.images, strict=True)
    ]


CATS_AND_DOGS = [("cat", 0), ("cat", 1), ("dog", 2)]
LAYOUTS = {
    "classes": ["cat/a.png", "cat/b.png", "dog/a.png"],
    "pictures deeper than their class": ["cat/x/a.png", "cat/x/y/b.png", "dog/a.png"],
    "capital suffixes": ["cat/a.PNG", "cat/b.Png", "dog/a.png"],
    "splits": ["train/cat/a.png", "train/cat/b.png", "train/dog/a.png", "val/cat/a.png", "test/dog/a.png"],
    "capital splits": ["Train/cat/a.png", "Train/cat/b.png", "Train/dog/a.png", "Test/dog/a.png"],
    "another word for the split": ["training/cat/a.png", "training/cat/b.png", "training/dog/a.png", "eval/dog/a.png"],
    "a folder around": ["mine/cat/a.png", "mine/cat/b.png", "mine/dog/a.png", "README.txt"],
    "folders around splits": ["a/b/train/cat/a.png", "a/b/train/cat/b.png", "a/b/train/dog/a.png", "a/b/val/cat/a.png"],
    "macOS": ["mine/cat/a.png", "mine/cat/b.png", "mine/dog/a.png", "__MACOSX/mine/cat/._a.png", "mine/cat/._a.png",
              "mine/.DS_Store"],
    "hidden": ["cat/a.png", "cat/b.png", "dog/a.png", ".cache/t.png", "cat/.ipynb_checkpoints/a.png",
               "dog/@eaDir/a.png", "dog/Thumbs.db", "desktop.ini"],
    "pictures beside the classes": ["cat/a.png", "cat/b.png", "dog/a.png", "cover.png"],
    "other files": ["cat/a.png", "cat/b.png", "dog/a.png", "cat/labels.json", "dog/x.heic", "dog/y.HEIC", "LICENSE"],
    "an empty class": ["cat/a.png", "cat/b.png", "dog/a.png", "fish/"],
}  # fmt: skip
LEFT_OUT = {
    "a folder around": "1 of another kind (.txt)",
    "macOS": "3 hidden",
    "hidden": "5 hidden",
    "pictures beside the classes": "1 outside the class folders",
    "other files": "2 of another kind (.json, no suffix), 2 in a format that cannot be read (.heic)",
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("container", ["folder", "zip", "zip with backslashes"])
def test_a_layout(tmp_path: Path, layout: str, container: str) -> None:
    path = plant(tmp_path / "set", *LAYOUTS[layout])
    if container != "folder":
        path = zipped(path, separator="/" if container == "zip" else "\\")
    data = load_images(path, size=4)
    assert read(data) == CATS_AND_DOGS
    left_out, expected = data.account.left_out_text, LEFT_OUT.get(layout, "")
    assert sorted(re.split(r", (?=\d)", left_out)) == sorted(re.split(r", (?=\d)", expected))
    assert any("no pictures, so no class: fish" in line for line in data.lines) == (layout == "an empty class")


def test_other_splits(tmp_path: Path) -> None:
    path = plant(tmp_path / "set", "train/cat/a.png", "val/cat/a.png", "test/cat/a.png")
    for split, colour in {"train": 0, "validation": 1, "val": 1, "dev": 1, "test": 2}.items():
        assert read(load_images(path, size=4, split=split)) == [("cat", colour)], split
    folds = plant(tmp_path / "folds", "one/cat/a.png", "two/cat/a.png")
    assert read(load_images(folds, size=4, split="two")) == [("cat", 1)]
    with pytest.raises(ConfigError, match=r"has the splits train, val, not 'test'.*--split"):
        load_images(plant(tmp_path / "some", "train/cat/a.png", "val/cat/a.png"), size=4, split="test")


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (["train/cat/0.png", "cat/0.png", "dog/0.png"], "beside it pictures in cat, dog;"),
        (["cat/0.png", "bus/0.png", "train/a/0.png"], "beside it pictures in bus, cat;"),
        (["train/cat/0.png", "misc/0.png", "test/0.png"], "beside it pictures in misc;"),
    ],
)
def test_pictures_beside_a_split_are_not_passed_over(tmp_path: Path, names: list[str], said: str) -> None:
    path = plant(tmp_path / "set", *names)
    for each in (path, zipped(path)):
        with pytest.raises(ConfigError, match=f"has the split train.*{said}.*only splits"):
            load_images(each, size=4)


def test_folders_of_pictures_beside_a_split_are_counted(tmp_path: Path) -> None:
    names = [
        "train/cat/a.png",
        "extra/cat/a.png",
        "extra/dog/b.png",
        "training/cat/c.png",
        "val/cat/d.png",
        "docs/x.txt",
    ]
    path = plant(tmp_path / "set", *names)
    data = load_images(path, size=4)
    assert read(data) == [("cat", 0)]
    assert data.account.left_out_text == "3 in folders beside those of the split (extra, training)"


@pytest.mark.parametrize(("train", "test"), [("training_set", "test_set"), ("train-set", "Test-Set")])
def test_sets_are_splits(tmp_path: Path, train: str, test: str) -> None:
    path = plant(tmp_path / "set", f"{train}/cat/a.png", f"{test}/cat/b.png")
    assert read(load_images(path, size=4)) == [("cat", 0)]
    assert read(load_images(path, size=4, split="test")) == [("cat", 1)]
    assert read(load_images(path, size=4, split=test)) == [("cat", 1)]


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_names_of_members_of_a_zip(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        names = ["../../cat/a.png", "/cat/b.png", "C:\\dog\\c.png", "./dog/../dog/d.png", "cat/a.png", "dog/d.png"]
        for index, name in enumerate(names):
            archive.writestr(zipfile.ZipInfo(name), png(index))
    data = load_images(tmp_path / "x.zip", size=4)
    assert read(data) == [("cat", 4), ("cat", 1), ("dog", 2), ("dog", 5)]
    assert data.account.left_out_text == "2 of a name that another has"


def test_a_damaged_picture_is_told_with_its_folder(tmp_path: Path) -> None:
    path = plant(tmp_path / "set", "cat/a.png")
    (path / "cat/a.png").write_bytes(b"no picture")
    with pytest.raises(ConfigError, match=rf"^cat/a\.png in {re.escape(str(path))} cannot be read as an image"):
        load_images(path, size=4)


def test_a_class_may_be_called_like_a_split(tmp_path: Path) -> None:
    path = plant(tmp_path / "vehicles", "car/a.png", "plane/a.png", "train/a.png")
    assert read(load_images(path, size=4)) == [("car", 0), ("plane", 1), ("train", 2)]


@pytest.mark.parametrize("names", [["a.png"], ["train/a.png"], ["train/a.png", "test/b.png"], ["cat/"], ["cat/a.txt"],
                                   ["cat/a.heic"], [".cat/a.png"], []])  # fmt: skip
def test_nothing_to_train_on_is_a_sentence(tmp_path: Path, names: list[str]) -> None:
    (tmp_path / "set").mkdir()
    path = plant(tmp_path / "set", *names)
    for each in (path, zipped(path)):
        with pytest.raises(ConfigError, match=r"class/picture\.png"):
            load_images(each, size=4)


def test_links_are_followed(tmp_path: Path) -> None:
    store = plant(tmp_path / "store", "a/0.png", "b/1.png", "c/2.png", "blob")
    path = plant(tmp_path / "set", "cat/")
    (path / "cat" / "0.png").symlink_to(store / "a/0.png")
    (path / "dog").symlink_to(store / "b", target_is_directory=True)
    (path / "dog2").symlink_to("dog", target_is_directory=True)  # a link to a link, and the same folder again
    (path / "cat" / "more").symlink_to(store / "c")
    (path / "cat" / "gone.png").symlink_to(store / "gone.png")
    (path / "cat" / "self.png").symlink_to("self.png")
    data = load_images(path, size=4)
    assert read(data) == [("cat", 0), ("cat", 2), ("dog", 1)]
    assert data.account.left_out_text == "2 behind broken links, 1 behind links to folders already read"


def test_linked_splits_and_files_of_a_cache(tmp_path: Path) -> None:
    """As the hub's cache has it: names link to blobs, which have no suffix."""
    path = plant(tmp_path / "set", "real/cat/a.png", "real/dog/b.png", "val/cat/c.png")
    (path / "train").symlink_to("real")
    assert read(load_images(path, size=4)) == [("cat", 0), ("dog", 1)]
    (tmp_path / "blobs").mkdir()
    (path / "val/cat/c.png").rename(tmp_path / "blobs" / "0a1b")
    (path / "val/cat/c.png").symlink_to(tmp_path / "blobs" / "0a1b")
    assert read(load_images(path, size=4, split="val")) == [("cat", 2)]


def test_loops_end_and_folders_stay_where_they_lie(tmp_path: Path) -> None:
    path = plant(tmp_path / "set", "cat/a.png", "dog/b.png")
    (path / "all").symlink_to(".")  # the root, as a class
    (path / "ant").symlink_to("dog")  # before the folder that it leads to
    (path / "cat" / "up").symlink_to("..")
    (path / "cat" / "kin").symlink_to("../dog")
    data = load_images(path, size=4)
    assert read(data) == [("cat", 0), ("dog", 1)]
    assert data.account.left_out_text == "4 behind links to folders already read"


def test_zips_that_cannot_be_read_are_a_sentence(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "linked.zip", "w") as archive:
        link = zipfile.ZipInfo("cat")
        link.external_attr = 0o120777 << 16
        archive.writestr(link, "../elsewhere/cat")
    with pytest.raises(ConfigError, match=r"linked\.zip holds a link, cat"):
        load_images(tmp_path / "linked.zip", size=4)
    whole = bytearray(zipped(plant(tmp_path / "set", "cat/a.png")).read_bytes())
    whole[whole.index(b"IDAT") + 6] ^= 1
    (tmp_path / "damaged.zip").write_bytes(whole)
    with pytest.raises(ConfigError, match=r"damaged\.zip is not a readable zip .*cat/a\.png"):
        load_images(tmp_path / "damaged.zip", size=4)


@pytest.mark.parametrize("mode", ["w", "w:gz", "w:xz"])
def test_a_tar_is_a_sentence(tmp_path: Path, mode: str) -> None:
    with tarfile.open(tmp_path / "set.tar", mode) as archive:
        archive.add(plant(tmp_path / "set", "cat/a.png"), "set")
    with pytest.raises(ConfigError, match="is a tar; unpack it"):
        load_images(tmp_path / "set.tar", size=4)


def test_a_picture_is_no_folder_of_pictures(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="a single picture"):
        load_images(plant(tmp_path, "a.png") / "a.png", size=4)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ConfigError, match="There is no"):
        load_images(tmp_path / "pipe", size=4)


def test_memory_is_checked_before_anything_is_read(tmp_path: Path, monkeypatch) -> None:
    path = plant(tmp_path / "set", "cat/a.png", "cat/b.png")
    (path / "cat" / "a.png").write_bytes(b"would not be read")
    with pytest.raises(ConfigError, match=r"2 images of 1000000 × 1000000 take 6,000.0 GB.*--size"):
        load_images(path, size=1_000_000)
    monkeypatch.setattr(images_module, "memory_of", lambda device: 2 * 3 * 16 - 1)
    with pytest.raises(ConfigError, match="--size"):
        load_images(path, size=4)


def test_one_picture_is_held_at_a_time(tmp_path: Path) -> None:
    """The files are together far larger than what is made of them; the peak knows nothing of the former."""
    import tracemalloc

    noise = np.random.default_rng(0).integers(256, size=(256, 256, 3), dtype=np.uint8)
    (tmp_path / "set" / "cat").mkdir(parents=True)
    for index in range(20):
        Image.fromarray(noise).save(tmp_path / "set" / "cat" / f"{index}.bmp")
    file_size = (tmp_path / "set" / "cat" / "0.bmp").stat().st_size
    load_images(tmp_path / "set", size=4)
    tracemalloc.start()
    load_images(tmp_path / "set", size=4)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 6 * file_size


def test_the_lines_say_what_was_read(tmp_path: Path) -> None:
    path = tmp_path / "set"
    for label in range(15):
        (path / f"kind{label:02}").mkdir(parents=True)
        grey = Image.fromarray(np.full((4, 6), label, np.uint8))
        grey.save(path / f"kind{label:02}" / "a.png")
    assert load_images(path, size=8).lines == [
        "15 pictures in 15 classes (kind00, kind01, kind02, kind03, kind04, kind05, kind06, kind07, kind08, kind09, … "
        "kind14)",
        "6 × 4 pixels, cut to squares, enlarged to 8 × 8; grey, trained as colour",
    ]
    Image.new("RGBA", (20, 20), (9, 8, 7, 0)).save(path / "kind00" / "b.png")
    lines = load_images(path, size=8).lines
    assert lines[0].startswith("16 pictures in 15 classes")
    assert lines[1:] == [
        "from 6 × 4 to 20 × 20 pixels, cut to squares, resized to 8 × 8; grey, trained as colour",
        "1 picture with transparency, laid on white",
    ]
