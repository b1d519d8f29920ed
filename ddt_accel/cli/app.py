"""The command line. Exit codes: 0 done; 2 a mistake that the user can correct; 130 interrupted; 1 a bug."""

from __future__ import annotations

import sys

import typer

from ddt_accel.cli import benchmark, calibration, inspection, planning, runs, solving, training
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
    try:
        app()
    except DDTAccelError as error:
        err.print(f"[bold red]error:[/] {_escaped(str(error))}")
        sys.exit(2)
    except KeyboardInterrupt:
        err.print("interrupted; what was finished has been kept.")
        sys.exit(130)


def _escaped(text: str) -> str:
    return text.replace("[", r"\[")
