"""The command line. Exit codes: 0 done; 2 a mistake that the user can correct; 130 interrupted; 1 a bug."""

from __future__ import annotations

import io
import re
import sys

import typer
from rich.text import Text

from ddt_accel.cli import benchmark, calibration, fitting, inspection, planning, runs, solving, training
from ddt_accel.cli.console import err
from ddt_accel.errors import DDTAccelError

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    help="Make a DDT checkpoint sample faster, without retraining: run its encoder only where it pays.\n\n"
    "Try `ddt-accel demo` first. With your own checkpoint: calibrate, solve, export, sample, bench, in this order; "
    "they share a workspace folder, so that no path needs typing.",
)
app.command()(calibration.calibrate)
app.command()(solving.solve)
app.command()(planning.plan)
app.command()(fitting.fit)
app.command()(runs.export)
app.command()(runs.sample)
app.command()(benchmark.bench)
app.command()(benchmark.demo)
app.command()(inspection.inspect)
app.command()(training.train)


@app.callback(invoke_without_command=True)
def _root(version: bool = typer.Option(False, "--version", help="Print the version.")) -> None:
    if version:
        from ddt_accel import __version__

        typer.echo(__version__)
        raise typer.Exit


def main() -> None:
    """Runs a command; mistakes end in a sentence, not in a traceback."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal of another encoding gets question marks
    try:
        app()
    except DDTAccelError as error:
        _fail(str(error))
    except OSError as error:
        _fail(f"{error.filename or 'A file'}: {error.strerror or error}; check the path, its permissions and space.")
    except (MemoryError, RuntimeError) as error:
        # PyTorch has no one exception for this: on a CPU it is a RuntimeError that says so.
        if not isinstance(error, MemoryError) and not re.search("out of memory|can't allocate", str(error)):
            raise
        _fail("There is not enough memory; try a smaller --batch-size, or fewer steps.")


def _fail(sentence: str) -> None:
    err.print(Text.assemble(("error: ", "bold red"), sentence))
    sys.exit(2)
