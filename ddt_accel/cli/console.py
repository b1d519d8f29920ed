"""How the commands talk: results on stdout, progress and errors on stderr."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

from ddt_accel.cli.options import DEFAULT_WORKSPACE
from ddt_accel.cli.tables import laid_out
from ddt_accel.stages import OnStage

# Paths and names are printed as they are: brackets in them are no markup.
out = Console(highlight=False, markup=False, emoji=False, soft_wrap=True)
err = Console(stderr=True, highlight=False, markup=False, emoji=False, soft_wrap=True)

_LINE_EVERY = 10.0  # seconds between lines where stderr is no terminal
_SLOW_LINE_EVERY = 60.0  # of work that may take days


def emit(result: dict[str, Any], *, as_json: bool, text: str) -> None:
    """Prints a command's result: as JSON, or as text for people."""
    if as_json:
        out.file.write(json.dumps(result, indent=1, allow_nan=False) + "\n")
    else:
        out.print(text)


def say(text: str) -> None:
    """A line about what is going on."""
    err.print(text)


def show(table: Table) -> None:
    """Prints a table of plain strings on stdout, no word of it lost.

    In a pipe every row is a line; a width that is known, of the terminal or from COLUMNS, is kept within.
    """
    known = out.file.isatty() or os.environ.get("COLUMNS", "").isdigit()
    width = shutil.get_terminal_size().columns if known else None
    errors = getattr(out.file, "errors", None) or "strict"
    out.file.write(laid_out(table, width, encoding=out.encoding, errors=errors, colour=out.is_terminal))


_ON_A_DEVICE = ("bench", "calibrate", "compare", "fit", "optimize", "plan", "sample")


def following(*commands: str, workspace: Path = DEFAULT_WORKSPACE, device: str = "cpu") -> str:
    """The line that tells what to type next; another workspace than the usual one is repeated in it, and a GPU.

    >>> following("ddt-accel export", "ddt-accel sample --backend torch", workspace=Path("my run"))
    "Next: ddt-accel export -w 'my run', or ddt-accel sample --backend torch -w 'my run'"
    """
    place = given("-w", None if workspace == DEFAULT_WORKSPACE else workspace)

    def on(command: str) -> str:
        taking = device != "cpu" and "--device" not in command and command.split()[1] in _ON_A_DEVICE
        return f"{command} --device {device}" if taking else command

    return "Next: " + ", or ".join(on(command) + place for command in commands)


def given(option: str, path: Path | None) -> str:
    """An option as it is typed again in a hint, with a space before it; nothing where it was not given."""
    return f" {option} {shlex.quote(str(path))}" if path is not None else ""


class Interrupted(BaseException):
    """A command was stopped from outside; says what is kept of its work."""

    last = signal.SIGINT  # the signal that was caught, where a library has raised its own KeyboardInterrupt

    def __init__(self, stop: KeyboardInterrupt, kept: str) -> None:
        super().__init__(kept)
        # Ctrl-C raises KeyboardInterrupt(); other signals come with their number.
        self.signum: int = stop.args[0] if stop.args else self.last

    @property
    def name(self) -> str:
        return "Interrupted" if self.signum == signal.SIGINT else "Stopped"


@contextmanager
def keeping(kept: Callable[[], str]) -> Iterator[None]:
    """Says, where the work inside is stopped, what is kept of it and how it goes on."""
    try:
        yield
    except KeyboardInterrupt as stop:
        raise Interrupted(stop, kept()) from None


class _Lines:
    """Plain lines about progress, one every so many seconds at most, however many stages there are."""

    def __init__(self, every: float = _LINE_EVERY) -> None:
        self._spoken: float | None = None
        self._every = every

    def tell(self, steps: Steps) -> None:
        now = time.monotonic()
        last = self._spoken
        if last is None and steps.done < steps.total:
            last = steps.started  # short work ends with a line and has no other
        if last is None or now - last >= self._every:
            self._spoken = now
            done, spent = max(steps.done - steps.begun, 1), now - steps.started
            told = f", {done / spent:.3g} {steps.unit}/s" if steps.unit and spent > 0 else ""
            told += f" ({steps.detail})" * bool(steps.detail)
            told += f", about {duration(spent / done * (steps.total - steps.done))} left" * (steps.done < steps.total)
            err.print(f"{steps.label}: {steps.done}/{steps.total}{told}")


class Steps:
    """How far work is: advances a bar, or prints a plain line now and then. Of `unit`s the number in a second is told.

    What was done before, `begun`, has taken no time. `detail` is what else there is to say of it.
    """

    def __init__(self, label: str, total: int, shown: Progress | _Lines, *, begun: int = 0, unit: str = "") -> None:
        self.label, self.total, self.begun, self.done, self.unit, self.detail = label, total, begun, begun, unit, ""
        self.started = time.monotonic()
        self._shown = shown
        self._task = shown.add_task(label, total=total, completed=begun) if isinstance(shown, Progress) else None

    def to(self, done: int) -> None:
        self.done = done
        if isinstance(self._shown, _Lines):
            self._shown.tell(self)
        elif self._task is not None:
            told = f"{self.label} ({self.detail})" if self.detail else self.label
            self._shown.update(self._task, completed=done, description=told)

    def advance(self, by: int = 1, detail: str = "") -> None:
        self.detail = detail
        self.to(self.done + by)


class _Rate(ProgressColumn):
    """How many units are done in a second, of late."""

    def __init__(self, unit: str) -> None:
        super().__init__()
        self._unit = unit

    def render(self, task: Task) -> Text:
        return Text(f"{task.speed:.3g} {self._unit}/s ·" if task.speed else "")


@contextmanager
def steps(label: str, total: int, lines: _Lines | None = None, *, begun: int = 0, unit: str = "") -> Iterator[Steps]:
    """A bar with the time left on a terminal, plain lines in a log, whatever FORCE_COLOR says; of units that are
    counted, a line a minute."""
    if not err.file.isatty() or err.is_dumb_terminal:
        yield Steps(label, total, lines or _Lines(_SLOW_LINE_EVERY if unit else _LINE_EVERY), begun=begun, unit=unit)
        return
    columns = (
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("·"),
        *([_Rate(unit)] if unit else []), TimeRemainingColumn(), TextColumn("left"),
    )  # fmt: skip
    with Progress(*columns, console=err) as progress:
        yield Steps(label, total, progress, begun=begun, unit=unit)


@contextmanager
def stages() -> Iterator[OnStage]:
    """One bar after the other: each stage ends the one before."""
    lines = _Lines()
    with ExitStack() as bars:

        def on_stage(label: str, total: int) -> Callable[[], None]:
            bars.close()
            return bars.enter_context(steps(label, total, lines)).advance

        yield on_stage


def duration(seconds: float) -> str:
    """A time that is left, as people say it."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 90 * 60 else f"{seconds / 3600:.1f} h"


def say_threads(threads: int | None, device: str) -> None:
    """Tells, before long work on the CPU, with how many threads it is done, whether fewer would be faster, and of a GPU
    that nobody has asked for."""
    if device == "cpu":
        import torch

        from ddt_accel.networks.threads import use_threads

        say(f"Computing with {use_threads(threads)}.")
        if torch.cuda.is_available():
            say(
                "There is a GPU here: `ddt-accel optimize`, and whatever else has the option, uses it by --device cuda."
            )
