"""What becomes of a run: ranges that are missing are drawn, and all of them become one npz.

What needs no network loads no PyTorch: whoever finishes a run need not be who drew it.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ddt_accel.artifacts import write_atomic
from ddt_accel.drawing.images import Images
from ddt_accel.drawing.npz_rows import NpzRows, check_space
from ddt_accel.drawing.plain_folder import SHEET
from ddt_accel.drawing.pngs import PngFiles, png_name, png_names
from ddt_accel.drawing.run_folder import RunFolder
from ddt_accel.errors import ArtifactError
from ddt_accel.locks import Say
from ddt_accel.report.pictures import captioned_sheet, captions_of, cell, png

if TYPE_CHECKING:
    from ddt_accel.drawing.drawer import Drawer


def missing(
    run: RunFolder, ranges: Iterable[range], say: Say, *, pngs: PngFiles | None = None
) -> Iterator[tuple[range, bool]]:
    """Each of `ranges`, and whether it has to be drawn: where there is no file, or one whose checksum does not fit,
    which is said, and removed. Pictures of finished ranges that are not among the `pngs` are written."""
    present = set(png_names(run.pictures)) if pngs is not None else set()
    for indices in ranges:
        images = None
        if run.path(indices).exists():
            try:
                images = run.read(indices)
            except ArtifactError as error:
                say(f"Images {indices.start} to {indices.stop - 1} have to be drawn again: {error}")
                run.remove(indices)
        if images is not None and pngs is not None:
            names = (png_name(index, int(label)) for index, label in zip(indices, images.labels, strict=True))
            if not present.issuperset(names):
                pngs.add(images.first, images.rows, images.labels)
        yield indices, images is None


def drawn_here(ranges: Iterable[range], drawer: Drawer, on_images: Callable[[int], None]) -> Iterator[Images]:
    """The images of `ranges`, drawn in this process; `on_images` is told how many more there are, part by part."""
    for indices in ranges:
        parts = []
        for part in drawer.draw(indices):
            parts.append(part)
            on_images(len(part.rows))
        yield Images.joined(parts)


def keep(
    run: RunFolder,
    drawn: Iterable[Images],
    conditions: dict[str, Any],
    *,
    left: int,
    on_range: Callable[[range], None],
    pngs: PngFiles | None = None,
    npz: Path | None = None,
) -> None:
    """Writes each range as it is `drawn`, and then says so; `left` is how many images they will be.

    Raises ArtifactError after the first range where the disk has no space for the rest, or for the `npz` of all.
    """
    for number, images in enumerate(drawn):
        run.write(images, conditions)
        on_range(range(images.first, images.stop))
        if number == 0:
            _check_space(run, left - len(images.rows), images.rows[0].nbytes, npz)
        if pngs is not None:
            pngs.add(images.first, images.rows, images.labels)


def write_npz(run: RunFolder, path: Path, on_images: Callable[[int], None], *, alone: bool) -> None:
    """All images of a finished run as `arr_0`, their labels as `arr_1`; one range is in memory at a time.

    Where this process is `alone` with the run, it takes the place of what one before it was killed over: gigabytes that
    nobody would look for. Raises ArtifactError where a range is missing or damaged, or the file cannot be written.
    """
    mine = hashlib.sha256(f"{os.path.realpath(run.folder)} {path.name}".encode()).hexdigest()[:16]
    with NpzRows(path, run.images, temporary=mine if alone else None) as rows:
        for indices in run.ranges():
            images = run.read(indices)
            rows.write(images.rows, images.labels)
            on_images(len(indices))


def write_sheet(run: RunFolder, names: tuple[str, ...] | None) -> Path:
    """The first pictures of a finished run at a glance, beside the folder of PNGs and not in it."""
    cells: list[NDArray[np.uint8]] = []
    labels: list[int] = []
    for indices in run.ranges():
        images = run.read(indices)
        labels += images.labels[: SHEET - len(cells)].tolist()
        cells += [cell(row) for row in images.rows[: SHEET - len(cells)].astype(np.uint8, copy=False)]
        if len(cells) == SHEET:
            break
    path = run.folder / "contact-sheet.png"
    write_atomic(path, png(captioned_sheet(cells, captions_of(labels, names))))
    return path


def _check_space(run: RunFolder, images: int, size: int, npz: Path | None) -> None:
    """Before most of the work, whether the rest and the npz of all find their place; `size` is an image's, in bytes."""
    needed, whole = images * size, run.images * size
    if npz is None:
        check_space(run.folder, needed)
    elif os.stat(run.folder).st_dev == os.stat(next(one for one in npz.absolute().parents if one.is_dir())).st_dev:
        check_space(run.folder, needed + whole)
    else:
        check_space(run.folder, needed)
        check_space(npz, whole)
