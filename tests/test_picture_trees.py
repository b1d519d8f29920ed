"""Random folders of pictures, and zips of them: the right pixels, labels and counts."""

from __future__ import annotations

import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image
from test_pictures import LYING

from ddt_accel.training.images import ImageSet, load_images

SIZE = 4
FORMATS = {"RGB": ("png", "bmp", "tif", "TIFF", "ppm", "tga", "WebP"), "L": ("png", "bmp", "tif", "pgm"),
           "RGBA": ("png", "tif", "webp", "tga"), "I;16": ("png", "tif", "TIF"), "P": ("png", "gif", "GIF"),
           "1": ("png", "pbm")}  # fmt: skip
TURNED = ("png", "tif", "tiff", "webp")  # can say which way is up
HIDDEN = (
    ".DS_Store",
    "._0.png",
    "Thumbs.db",
    "desktop.ini",
    ".ipynb_checkpoints/0.png",
    "@eaDir/0.png",
    "__MACOSX/0.png",
)


@dataclass(frozen=True)
class File:
    """A file of a class folder: a picture of some mode, or something else."""

    kind: str  # a mode, or "hidden", "other", "format", "broken"
    suffix: str
    seed: int
    orientation: int
    deep: bool
    linked: bool

    @property
    def is_picture(self) -> bool:
        return self.kind in FORMATS


@st.composite
def files(draw: st.DrawFn) -> File:
    kind = draw(st.sampled_from([*FORMATS, *FORMATS, "hidden", "other", "format", "broken"]))
    suffix = draw(st.sampled_from(FORMATS.get(kind, ("txt",))))
    turned = suffix.lower() in TURNED
    return File(
        kind=kind,
        suffix=suffix,
        seed=draw(st.integers(0, 99)),
        orientation=draw(st.integers(1, 8)) if turned else 1,
        deep=draw(st.booleans()),
        linked=draw(st.booleans()),
    )


@dataclass(frozen=True)
class Tree:
    """Classes with files (an empty one has none), which of them are links, and what lies around them."""

    classes: dict[str, list[File]]
    linked: set[str]
    around: tuple[str, ...]
    split: bool


@st.composite
def trees(draw: st.DrawFn) -> Tree:
    names = draw(
        st.lists(st.sampled_from(["ant", "bée", "cat 2", "Dog", "train-er"]), min_size=1, max_size=4, unique=True)
    )
    classes = {name: draw(st.lists(files(), max_size=4)) for name in names}
    # A folder alone with nothing but folders in it is taken for one that encloses classes: one picture is not so deep.
    classes[names[0]].append(draw(files().filter(lambda file: file.is_picture and not file.deep)))
    return Tree(
        classes=classes,
        linked=draw(st.sets(st.sampled_from(names))),
        around=draw(st.sampled_from([(), ("mine",)])),
        split=draw(st.booleans()),
    )


def upright(file: File) -> NDArray[np.uint8]:
    """The pixels that a reader must see."""
    rng = np.random.default_rng(file.seed)
    grey = rng.integers(256, size=(SIZE, SIZE), dtype=np.uint8)
    if file.kind == "1":
        grey = np.where(grey > 127, np.uint8(255), np.uint8(0))
    colour = rng.integers(256, size=(SIZE, SIZE, 3), dtype=np.uint8)
    if file.kind == "RGBA":
        return np.where(alpha(file)[..., None] == 0, np.uint8(255), colour)
    return colour if file.kind == "RGB" else np.repeat(grey[..., None], 3, axis=2)


def alpha(file: File) -> NDArray[np.uint8]:
    return (np.random.default_rng(file.seed + 1000).integers(2, size=(SIZE, SIZE)) * 255).astype(np.uint8)


def write(file: File, path: Path) -> None:
    """The same pixels in the file's mode and format, lying as its orientation says."""
    pixels = upright(file)
    if file.kind == "RGBA":
        clear = np.random.default_rng(file.seed + 2000).integers(256, size=pixels.shape, dtype=np.uint8)
        shown = np.where(alpha(file)[..., None] == 0, clear, pixels)  # what nobody is to see
        pixels = np.dstack([shown, alpha(file)])
    elif file.kind != "RGB":
        pixels = pixels[..., 0]
    lying = np.ascontiguousarray(LYING[file.orientation](pixels))
    image = Image.fromarray(lying.astype(np.uint16) * 257 if file.kind == "I;16" else lying)
    if file.kind in ("P", "1"):
        image = image.convert(file.kind)
    exif = Image.Exif()
    exif[0x0112] = file.orientation
    options = {"exif": exif} if file.orientation != 1 else {}
    if file.suffix.lower() == "webp":
        options |= {"lossless": True, "exact": True}
    image.save(path, **options)


def build(tree: Tree, place: Path) -> tuple[Path, list[tuple[str, str, File]], dict[str, int]]:
    """Writes the tree; returns its root, its pictures as (class, path, file) in order, and what is to be left out."""
    root = place / "set"
    inner = root.joinpath(*tree.around, *(["train"] if tree.split else []))
    inner.mkdir(parents=True)
    pictures, counts = (
        [],
        {"hidden": 0, "of another kind": 0, "in a format that cannot be read": 0, "behind broken links": 0},
    )
    if tree.split:
        (inner.parent / "val" / "other").mkdir(parents=True)
        Image.new("RGB", (SIZE, SIZE)).save(inner.parent / "val" / "other" / "0.png")
    for name, content in tree.classes.items():
        folder = inner / name
        if name in tree.linked:
            (place / "elsewhere" / name).mkdir(parents=True)
            folder.symlink_to(place / "elsewhere" / name, target_is_directory=True)
        else:
            folder.mkdir()
        for index, file in enumerate(content):
            below = folder / (f"sub{index}" if file.deep else "")
            below.mkdir(exist_ok=True)
            if file.is_picture:
                path = below / f"{index}.{file.suffix}"
                target = path
                if file.linked:
                    (place / "blobs").mkdir(exist_ok=True)
                    target = place / "blobs" / f"{name}{index}.{file.suffix}"
                    path.symlink_to(target)
                write(file, target)
                pictures.append((name, path.relative_to(folder).parts, file))
            elif file.kind == "hidden":
                path = folder / f"apart{index}" / HIDDEN[file.seed % len(HIDDEN)]
                path.parent.mkdir(parents=True)
                path.write_bytes(b"nobody reads this")
                counts["hidden"] += 1
            elif file.kind == "broken":
                (below / f"{index}.png").symlink_to(place / "nowhere")
                counts["behind broken links"] += 1
            else:
                (below / f"{index}.{'heic' if file.kind == 'format' else 'txt'}").write_bytes(b"")
                counts["in a format that cannot be read" if file.kind == "format" else "of another kind"] += 1
    pictures.sort(key=lambda picture: picture[:2])
    return root, pictures, {reason: count for reason, count in counts.items() if count}


def zipped(folder: Path, archive: zipfile.ZipFile, name: str = "") -> None:
    """As zip itself does it: links are followed, broken ones are not there."""
    for path in sorted(folder.iterdir()):
        if path.is_dir():
            archive.writestr(f"{name}{path.name}/", b"")
            zipped(path, archive, f"{name}{path.name}/")
        elif path.is_file():
            archive.write(path, f"{name}{path.name}")


def check(data: ImageSet, tree: Tree, pictures: list[tuple[str, str, File]], counts: dict[str, int]) -> None:
    names = sorted({name for name, _, _ in pictures})
    assert list(data.class_names) == names
    assert [data.class_names[label] for label in data.labels] == [name for name, _, _ in pictures]
    for image, (name, parts, file) in zip(data.images, pictures, strict=True):
        assert np.array_equal(image, upright(file)), (name, parts, file)
    assert dict(data.account.left_out) == counts
    empty = [name for name in sorted(tree.classes) if name not in names]
    assert [note.removeprefix("no pictures, so no class: ") for note in data.account.notes] == (
        [", ".join(empty)] if empty else []
    )
    shone = [file for _, _, file in pictures if file.kind == "RGBA" and not alpha(file).all()]
    assert data.account.transparent == len(shone)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(tree=trees())
def test_any_tree_of_pictures(tree: Tree) -> None:
    with tempfile.TemporaryDirectory() as place:
        root, pictures, counts = build(tree, Path(place))
        check(load_images(root, size=SIZE), tree, pictures, counts)
        with zipfile.ZipFile(Path(place) / "set.zip", "w") as archive:
            zipped(root, archive)
        counts.pop("behind broken links", None)
        check(load_images(Path(place) / "set.zip", size=SIZE), tree, pictures, counts)
