"""How the commands talk: results on stdout, progress and errors on stderr."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from ddt_accel.stages import OnStage

# Paths and names are printed as they are: brackets in them are no markup.
out = Console(highlight=False, markup=False, soft_wrap=True)
err = Console(stderr=True, highlight=False, markup=False, soft_wrap=True)

_LINE_EVERY = 5.0  # seconds between lines where stderr is no terminal


def emit(result: dict[str, Any], *, as_json: bool, text: str) -> None:
    """Prints a command's result: as JSON, or as text for people."""
    if as_json:
        sys.stdout.write(json.dumps(result, indent=1, allow_nan=False) + "\n")
    else:
        out.print(text)


def say(text: str) -> None:
    """A line about what is going on."""
    err.print(text)


class Steps:
    """Advances a progress bar, or prints a plain line now and then."""

    def __init__(self, label: str, total: int, progress: Progress | None) -> None:
        self.label, self.total, self.done = label, total, 0
        self._progress = progress
        self._task = progress.add_task(label, total=total) if progress else None
        self._spoken = time.monotonic()

    def to(self, done: int) -> None:
        self.done = done
        if self._progress is not None and self._task is not None:
            self._progress.update(self._task, completed=done)
        elif done == self.total or time.monotonic() - self._spoken > _LINE_EVERY:
            self._spoken = time.monotonic()
            err.print(f"{self.label}: {done}/{self.total}")

    def advance(self) -> None:
        self.to(self.done + 1)


@contextmanager
def steps(label: str, total: int) -> Iterator[Steps]:
    """A progress bar on a terminal, plain lines on a pipe."""
    if not err.is_terminal:
        yield Steps(label, total, None)
        return
    columns = (
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn()
    )  # fmt: skip
    with Progress(*columns, console=err) as progress:
        yield Steps(label, total, progress)


@contextmanager
def stages() -> Iterator[OnStage]:
    """One bar after the other: each stage ends the one before."""
    with ExitStack() as bars:

        def on_stage(label: str, total: int) -> Callable[[], None]:
            bars.close()
            return bars.enter_context(steps(label, total)).advance

        yield on_stage
