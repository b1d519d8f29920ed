"""Ranges that one process draws and no other does, where several are at work in a run."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack

from ddt_accel.drawing.run_folder import RunFolder
from ddt_accel.errors import BusyError
from ddt_accel.locks import joining


class Claims:
    """Gives out ranges that have no file yet, each to one process; leaving the context gives up those that are left.

    Whatever shares processes have been told to draw, and if two have been told the same, no range is drawn twice.
    """

    def __init__(self, run: RunFolder) -> None:
        self._run = run
        self._held: dict[range, ExitStack] = {}

    def __enter__(self) -> Claims:
        return self

    def __exit__(self, *_: object) -> None:
        for indices in list(self._held):
            self.release(indices)

    def of(self, ranges: Iterable[range]) -> Iterator[range]:
        """Those that nobody has drawn by then, nor is drawing; this process has them until they are released."""
        for indices in ranges:
            path = self._run.path(indices)
            with ExitStack() as stack:
                try:
                    stack.enter_context(joining(path, alone=True))
                except BusyError:
                    continue
                if path.exists():
                    continue
                self._held[indices] = stack.pop_all()
            yield indices

    def release(self, indices: range) -> None:
        """Of a range that is written."""
        self._held.pop(indices).close()
