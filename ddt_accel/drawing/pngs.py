"""PNGs of samples, written by threads beside the drawing."""

from __future__ import annotations

import os
import re
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ddt_accel.artifacts import write_atomic
from ddt_accel.report.pictures import png

_WAITING = 64  # pictures in memory that are not written yet, at most
_NAME = re.compile(r"(\d{6,})(?:-\d+)?\.png")  # without a label in earlier versions


class PngFiles:
    """Pictures of `folder`, by index and label.

    Leaving the context waits for those that were given; what could not be written is raised by the next call.
    """

    def __init__(self, folder: Path, *, threads: int | None = None) -> None:
        self.folder, self.written = folder, 0
        self._pool = ThreadPoolExecutor(threads or min(4, os.cpu_count() or 1), thread_name_prefix="png")
        self._free, self._lock = threading.Semaphore(_WAITING), threading.Lock()
        self._failed: BaseException | None = None

    def __enter__(self) -> PngFiles:
        return self

    def add(self, first: int, rows: NDArray[Any], labels: NDArray[np.int64]) -> None:
        """Pictures [B, H, W, 3] uint8 of the images from `first` on, and their labels [B]."""
        for offset, (row, label) in enumerate(zip(rows, labels, strict=True)):
            self._free.acquire()
            if self._failed is not None:
                raise self._failed
            self._pool.submit(self._write, self.path(first + offset, int(label)), row)

    def path(self, index: int, label: int) -> Path:
        return self.folder / png_name(index, label)

    def _write(self, path: Path, row: NDArray[np.uint8]) -> None:
        try:
            if self._failed is None:
                write_atomic(path, png(row))
                with self._lock:
                    self.written += 1
        except BaseException as error:
            self._failed = error
        finally:
            self._free.release()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.shutdown()
        if kind is None and self._failed is not None:
            raise self._failed


def png_name(index: int, label: int) -> str:
    """The name of a sample.

    >>> png_name(17, 207)
    '000017-207.png'
    """
    return f"{index:06d}-{label}.png"


def png_names(folder: Path) -> list[str]:
    """The names of all samples in a folder, in order; none where there is no folder."""
    return sorted(path.name for path in folder.iterdir() if _NAME.fullmatch(path.name)) if folder.is_dir() else []
