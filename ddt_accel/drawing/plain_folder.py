"""A few samples as files: one PNG each, a contact sheet beside them, and one npz of all."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType

import numpy as np
from numpy.typing import NDArray

from ddt_accel.artifacts import TEMPORARY, unwritable, write_atomic
from ddt_accel.drawing.images import Images
from ddt_accel.drawing.npz_rows import NpzRows
from ddt_accel.drawing.pngs import PngFiles, png_name, png_names
from ddt_accel.errors import ConfigError
from ddt_accel.report.pictures import captioned_sheet, captions_of, cell, png

SHEET = 100  # samples on a contact sheet, at most
LATENTS = "latents.npz"


class SampleWriter:
    """Writes `count` samples as they come, in memory that does not grow with them.

    Pictures become PNGs in `folder`, named by index and label, and nothing else is written there; latents become
    `latents.npz`, for the user's own decoder. It and `npz` hold all samples or do not come into being: leaving the
    context gives them their names. Where the folder is `ours`, and no other process writes there, what earlier runs
    left is removed before the first sample is written; in a folder of the user's it stays.
    """

    def __init__(
        self,
        folder: Path,
        npz: Path | None,
        *,
        count: int,
        pixels: bool,
        as_png: bool = True,
        ours: bool = False,
    ) -> None:
        check_pixels(npz, pixels)
        self.folder, self.count = folder, count
        self.whole = npz if pixels else folder / LATENTS
        self._pixels, self._as_png, self._ours = pixels, pixels and as_png, ours
        self._labels: list[int] = []
        self._cells: list[NDArray[np.uint8]] = []
        self._stack = ExitStack()
        self._pngs = PngFiles(folder)
        self._rows: NpzRows | None = None

    def __enter__(self) -> SampleWriter:
        if self._ours:
            self._remove(path.name for path in self.folder.glob(f"{TEMPORARY}*"))  # of a run that was killed
        with ExitStack() as stack:
            if self.whole is not None:
                self._rows = stack.enter_context(NpzRows(self.whole, self.count))
            stack.enter_context(self._pngs)
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.__exit__(kind, error, trace)

    def add(self, images: Images) -> None:
        """Writes the next samples."""
        if self._ours and not self._labels:
            self._remove(png_names(self.folder) + [LATENTS] * self._pixels)
        self._labels += images.labels.tolist()
        if self._rows is not None:
            self._rows.write(images.rows, images.labels)
        if self._as_png:
            self._pngs.add(images.first, images.rows, images.labels)
        if self._pixels:
            shown = images.rows[: SHEET - len(self._cells)].astype(np.uint8, copy=False)
            self._cells += [cell(row) for row in shown]

    def kept(self) -> str:
        """What there is of an unfinished run, in words."""
        kept = "Nothing is kept"
        if self._pngs.written:
            kept = f"{self._pngs.written} of {self.count} pictures are in {self.folder}"
        return kept + (f"; {self.whole} holds all or none, and was not written." if self.whole else ".")

    def files(self) -> list[Path]:
        """All that a finished run has written."""
        return [self.folder / name for name in self._names()] + ([self.whole] if self.whole else [])

    def left(self) -> list[str]:
        """The names of pictures of an earlier run, which would pass for this one's."""
        return sorted(set(png_names(self.folder)) - set(self._names())) if self._as_png else []

    def write_sheet(self, names: Sequence[str] | None) -> Path | None:
        """A contact sheet of the first samples with the names of their classes; by number without `names`.

        It lies beside the folder; None for latents, and for a folder such as ".", beside which nothing is the user's.
        Raises ArtifactError where it cannot be written.
        """
        if not self._cells or self.folder.name in ("", ".."):
            return None
        path = self.folder.with_name(f"{self.folder.name}-contact-sheet.png")
        captions = captions_of(self._labels[: len(self._cells)], names)
        write_atomic(path, png(captioned_sheet(self._cells, captions)))
        return path

    def _names(self) -> list[str]:
        return [png_name(*one) for one in enumerate(self._labels)] if self._as_png else []

    def _remove(self, names: Iterable[str]) -> None:
        for name in names:
            try:
                (self.folder / name).unlink(missing_ok=True)
            except OSError as error:
                raise unwritable(self.folder / name, error) from None


def check_pixels(npz: Path | None, pixels: bool) -> None:
    """Raises ConfigError for an npz of pictures where there are none."""
    if npz is not None and not pixels:
        raise ConfigError("--npz holds images, but these are latents; give the model's autoencoder with --decoder.")
