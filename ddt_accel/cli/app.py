"""The command line. Exit codes: 0 done; 2 a mistake that the user can correct; 130 interrupted, 143 terminated;
141 nobody reads the output any more; 1 a bug."""

from __future__ import annotations

import contextlib
import functools
import os
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer
from rich.text import Text
from typer.core import TyperCommand, TyperGroup

from ddt_accel.cli import (
    benchmark,
    calibration,
    comparing,
    evaluating,
    exports,
    fitting,
    narrowing,
    optimizing,
    planning,
    sampling,
    serving,
    solving,
    status,
    studio,
    training,
)
from ddt_accel.cli.console import Interrupted, err
from ddt_accel.cli.inspection.command import inspect
from ddt_accel.cli.options import DEFAULT_WORKSPACE
from ddt_accel.cli.plain import adapt
from ddt_accel.cli.sentences import spoken
from ddt_accel.errors import DDTAccelError


class Unread(Exception):  # noqa: N818
    """The other end of a pipe was closed: no bug, and nothing to say to anybody."""


@contextlib.contextmanager
def _ends() -> Iterator[None]:
    """How a command may end before its end, told in a way that typer leaves alone."""
    try:
        yield
    except KeyboardInterrupt as stop:
        raise Interrupted(stop, "What was finished before is kept; the same command starts anew.") from None
    except BrokenPipeError:
        raise Unread from None
    except SystemExit as end:
        if isinstance(end.__context__, BrokenPipeError):  # rich ends the process by itself
            raise Unread from None
        raise


class Commands(TyperGroup):
    """All commands."""

    def make_context(self, *args: Any, **kwargs: Any) -> Any:
        with _ends():  # --help is printed here
            return super().make_context(*args, **kwargs)

    def invoke(self, ctx: Any) -> Any:
        with _ends():
            return super().invoke(ctx)


class Mistake(DDTAccelError):  # noqa: N818
    """Of the library's, in the words of the command line."""


class Command(TyperCommand):
    """A command in whose paths ~ is the user's folder, however they were quoted; whose mistakes name its workspace."""

    def invoke(self, ctx: Any) -> Any:
        for name, value in ctx.params.items():
            if isinstance(value, Path):
                with contextlib.suppress(RuntimeError):  # there is no such user
                    ctx.params[name] = value.expanduser()
        try:
            return super().invoke(ctx)
        except DDTAccelError as error:
            raise Mistake(spoken(str(error), ctx.params.get("workspace"))) from error


app = typer.Typer(
    cls=Commands,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    help="Make a checkpoint of the DDT family sample faster, without retraining: run its encoder where it pays.\n\n"
    "Try `ddt-accel demo` first. With your own checkpoint: `ddt-accel optimize --model CHECKPOINT --speedup 5`, or its "
    "single steps: calibrate, solve, export, sample, bench, in this order; they share a workspace folder, so that no "
    "path needs typing. `ddt-accel status` shows what it holds.",
)
for command in (
    status.status,
    calibration.calibrate,
    solving.solve,
    planning.plan,
    fitting.fit,
    exports.export,
    sampling.sample,
    serving.serve,
    benchmark.bench,
    comparing.compare,
    evaluating.evaluate,
    optimizing.optimize,
    optimizing.demo,
    studio.studio,
    inspect,
    training.train,
    narrowing.narrow,
):
    app.command(cls=Command)(command)


@app.callback(invoke_without_command=True)
def _root(ctx: typer.Context, version: bool = typer.Option(False, "--version", help="Print the version.")) -> None:
    if version:
        from ddt_accel import __version__

        typer.echo(__version__)
        raise typer.Exit
    if ctx.invoked_subcommand is None:
        status.status(DEFAULT_WORKSPACE, json=False)
        typer.echo("\n`ddt-accel --help` lists all commands.")


def main() -> None:
    """Runs a command; mistakes end in a sentence, not in a traceback."""
    adapt()
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, _terminated)
    try:
        with _ends():
            try:
                _run()
            finally:
                if sys.stdout is not None:  # it was closed from the beginning
                    sys.stdout.flush()
    except Interrupted as stop:  # before or after a command was at work
        _stopped(stop)
    except Unread:
        for stream in filter(None, (sys.stdout, sys.stderr)):  # what their buffers hold must not fail once more
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
        sys.exit(141)  # as a process that the system ends for writing to nobody


@functools.cache
def _command() -> Any:
    """All commands with their options, made of their functions once a process."""
    return typer.main.get_command(app)


def _run() -> None:
    try:
        _command()()
    except Interrupted as stop:
        _stopped(stop)
    except DDTAccelError as error:
        _fail(str(error))
    except OSError as error:
        _fail(f"{error.filename or 'A file'}: {error.strerror or error}; check the path, its permissions and space.")
    except (MemoryError, RuntimeError) as error:
        from ddt_accel.backends.choose import is_no_memory

        if not isinstance(error, MemoryError) and not is_no_memory(error):
            raise
        _fail(
            "There is not enough memory; try a smaller --batch-size, or fewer steps. `ddt-accel inspect` of the model "
            "says what it keeps of each image."
        )


def _terminated(signum: int, frame: object) -> None:
    Interrupted.last = signal.Signals(signum)
    raise KeyboardInterrupt(signum)


def _stopped(stop: Interrupted) -> None:
    err.print(Text.assemble((f"{stop.name}. ", "bold"), str(stop)))
    # Python ends itself by SIGINT, whatever the exit code, where an interrupt went through an exec of text, as
    # dataclasses and PyTorch have them; the next exec forgets it.
    exec("")
    sys.exit(128 + stop.signum)


def _fail(sentence: str) -> None:
    err.print(Text.assemble(("error: ", "bold red"), sentence))
    sys.exit(2)
