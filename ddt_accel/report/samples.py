"""Samples as files: one PNG each, a contact sheet, and the npz of the ADM evaluation suite."""

from __future__ import annotations

import re
import shutil
import zipfile
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from ddt_accel.artifacts import TEMPORARY, replacing, unwritable, write_atomic
from ddt_accel.errors import ArtifactError, ConfigError
from ddt_accel.evaluation.fidelity import to_uint8
from ddt_accel.report.pictures import captioned_sheet, cell, legible, png

SHEET = 100  # samples on a contact sheet, at most
LATENTS = "latents.npz"
_NAME = re.compile(r"(\d{6,})\.png")


class SampleWriter:
    """Writes `count` samples as they come, in memory that does not grow with them.

    Pictures become PNGs in `folder`, 000000.png and so on, and nothing else is written there; latents become
    `latents.npz`, for the user's own decoder. It and `npz` hold all samples or do not come into being: leaving the
    context gives them their names. Where the folder is `ours`, and no other process writes there, what earlier runs
    left is removed before the first sample is written; in a folder of the user's it stays.
    """

    def __init__(self, folder: Path, npz: Path | None, *, count: int, pixels: bool, ours: bool = False) -> None:
        if npz is not None and not pixels:
            raise ConfigError("--npz holds images, but these are latents; give the model's autoencoder with --decoder.")
        self.folder, self.count, self.written = folder, count, 0
        self.whole = npz if pixels else folder / LATENTS
        self._pixels, self._ours = pixels, ours
        self._cells: list[NDArray[np.uint8]] = []
        self._stack = ExitStack()
        self._rows: NpzRows | None = None

    def __enter__(self) -> SampleWriter:
        if self._ours:
            self._remove(path.name for path in self.folder.glob(f"{TEMPORARY}*"))  # of a run that was killed
        if self.whole is not None:
            self._rows = self._stack.enter_context(NpzRows(self.whole, self.count))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.__exit__(kind, error, trace)

    def add(self, samples: Tensor) -> None:
        """Writes a batch of final latents, or of the pictures that were made of them, [B, C, H, W]."""
        if self._ours and not self.written:
            self._remove([name for name, _ in self._pictures()] + [LATENTS] * self._pixels)
        rows: NDArray[Any] = to_uint8(samples) if self._pixels else samples.numpy()
        if self._rows is not None:
            self._rows.write(rows)
        for row in rows:
            if self._pixels:
                write_atomic(self.path(self.written), png(row))
                if self.written < SHEET:
                    self._cells.append(cell(row))
            self.written += 1

    def path(self, index: int) -> Path:
        return self.folder / f"{index:06d}.png"

    def kept(self) -> str:
        """What there is of an unfinished run, in words."""
        kept = "Nothing is kept"
        if self._pixels and self.written:
            kept = f"{self.written} of {self.count} pictures are in {self.folder}"
        return kept + (f"; {self.whole} holds all or none, and was not written." if self.whole else ".")

    def files(self) -> list[Path]:
        """All that a finished run has written."""
        pictures = [self.path(index) for index in range(self.written if self._pixels else 0)]
        return pictures + ([self.whole] if self.whole else [])

    def left(self) -> list[str]:
        """The names of pictures of an earlier, longer run, which would pass for this one's."""
        return sorted(name for name, index in self._pictures() if index >= self.count) if self._pixels else []

    def write_sheet(self, classes: Sequence[int], names: Sequence[str] | None) -> Path | None:
        """A contact sheet of the first samples, which were drawn of these classes in turn; by number without `names`.

        It lies beside the folder; None for latents, and for a folder such as ".", beside which nothing is the user's.
        Raises ArtifactError where it cannot be written.
        """
        if not self._cells or self.folder.name in ("", ".."):
            return None
        captions = [names[one] if names and legible(names[one]) else str(one) for one in classes]
        path = self.folder.with_name(f"{self.folder.name}-contact-sheet.png")
        write_atomic(path, png(captioned_sheet(self._cells, captions)))
        return path

    def _pictures(self) -> list[tuple[str, int]]:
        if not self.folder.is_dir():
            return []
        matches = [(path.name, _NAME.fullmatch(path.name)) for path in self.folder.iterdir()]
        return [(name, int(match[1])) for name, match in matches if match]

    def _remove(self, names: Iterable[str]) -> None:
        for name in names:
            try:
                (self.folder / name).unlink(missing_ok=True)
            except OSError as error:
                raise unwritable(self.folder / name, error) from None


class NpzRows:
    """An npz with one array, `arr_0`, of `count` rows that are written as they come; it gets its name where the context
    ends without an error."""

    def __init__(self, path: Path, count: int) -> None:
        self.path, self.count, self._done = path, count, 0
        self._stack = ExitStack()

    def __enter__(self) -> NpzRows:
        try:
            with ExitStack() as stack:
                archive = zipfile.ZipFile(stack.enter_context(replacing(self.path)), "w")
                stack.enter_context(archive)
                self._member = stack.enter_context(archive.open("arr_0.npy", "w", force_zip64=True))
                self._stack = stack.pop_all()
        except OSError as error:
            raise unwritable(self.path, error) from error
        return self

    def write(self, rows: NDArray[Any]) -> None:
        """The next rows, [B, …]; all have the shape and the type of the first."""
        rows = np.ascontiguousarray(rows)
        try:
            if not self._done:
                self._check_space(rows)
                header = np.lib.format.header_data_from_array_1_0(rows) | {"shape": (self.count, *rows.shape[1:])}
                np.lib.format.write_array_header_1_0(self._member, header)
            self._member.write(rows.data)
        except OSError as error:
            raise unwritable(self.path, error) from error
        self._done += len(rows)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None and self._done != self.count:
            error = ValueError(f"{self.path} was to have {self.count} rows and has {self._done}.")
            self._stack.__exit__(ValueError, error, None)
            raise error
        try:
            self._stack.__exit__(kind, error, trace)
        except OSError as failed:
            if kind is None:  # else that is the reason, and there is nothing left to lose
                raise unwritable(self.path, failed) from failed

    def _check_space(self, rows: NDArray[Any]) -> None:
        needed = rows[0].nbytes * self.count
        disk = shutil.disk_usage(self.path.parent)
        if disk.total and needed > disk.free:
            raise ArtifactError(
                f"{self.path} will take {needed / 1e9:,.2f} GB, and {disk.free / 1e9:,.2f} GB are free there; free "
                "space, choose another place, or draw fewer."
            )
