"""The npz of ADM's evaluation suite, written as images come."""

from __future__ import annotations

import shutil
import zipfile
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ddt_accel.artifacts import replacing, unwritable
from ddt_accel.errors import ArtifactError


class NpzRows:
    """An npz of `count` rows that are written as they come, in memory that does not grow with them.

    `arr_0` are the rows, and `arr_1` their labels where they have some. It gets its name where the context ends without
    an error; `temporary` is what it is called until then, as `artifacts.replacing` takes it. The same rows make the
    same bytes. Raises ArtifactError where it cannot be written, or the disk has no space for it.
    """

    def __init__(self, path: Path, count: int, *, temporary: str | None = None) -> None:
        self.path, self.count, self._temporary, self._done = path, count, temporary, 0
        self._labels: list[NDArray[np.int64]] = []
        self._stack = ExitStack()

    def __enter__(self) -> NpzRows:
        try:
            with ExitStack() as stack:
                self._archive = zipfile.ZipFile(
                    stack.enter_context(replacing(self.path, temporary=self._temporary)), "w"
                )
                stack.enter_context(self._archive)
                stack.push(self._finished)
                self._member = stack.enter_context(self._archive.open("arr_0.npy", "w", force_zip64=True))
                self._stack = stack.pop_all()
        except OSError as error:
            raise unwritable(self.path, error) from error
        return self

    def write(self, rows: NDArray[Any], labels: NDArray[np.int64] | None = None) -> None:
        """The next rows, [B, …], and their labels, [B]; all rows have the shape and the type of the first."""
        rows = np.ascontiguousarray(rows)
        try:
            if not self._done:
                check_space(self.path, rows[0].nbytes * self.count)
                header = np.lib.format.header_data_from_array_1_0(rows) | {"shape": (self.count, *rows.shape[1:])}
                np.lib.format.write_array_header_1_0(self._member, header)
            self._member.write(rows.data)
        except OSError as error:
            raise unwritable(self.path, error) from error
        self._done += len(rows)
        if labels is not None:
            self._labels.append(labels)

    def _finished(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Labels follow all rows: a zip is written from beginning to end."""
        if kind is None and self._labels:
            with self._archive.open("arr_1.npy", "w") as member:
                np.lib.format.write_array(member, np.concatenate(self._labels), version=(1, 0))

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


def check_space(path: Path, needed: int) -> None:
    """Raises ArtifactError where fewer than `needed` bytes are free where `path` is to be."""
    place = next(one for one in (path, *path.absolute().parents) if one.is_dir())
    disk = shutil.disk_usage(place)
    if disk.total and needed > disk.free:
        raise ArtifactError(
            f"{path} will take {needed / 1e9:,.2f} GB, and {disk.free / 1e9:,.2f} GB are free there; free "
            "space, choose another place, or draw fewer."
        )
