"""`status`, which is also what `ddt-accel` alone shows."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

from ddt_accel.cli.console import emit, following, out, show
from ddt_accel.cli.options import DEFAULT_WORKSPACE, JsonOption, WorkspaceOption

if TYPE_CHECKING:
    from rich.table import Table

    from ddt_accel.cli.holdings import Held, Holdings, ScheduleRow


def status(workspace: WorkspaceOption = DEFAULT_WORKSPACE, json: JsonOption = False) -> None:
    """Show what the workspace holds, and what to do next."""
    from ddt_accel.cli.holdings import holdings
    from ddt_accel.errors import ArtifactError
    from ddt_accel.workspace import Workspace

    if workspace.exists() and not workspace.is_dir():
        raise ArtifactError(f"{workspace} is a file; give the folder of a workspace.")
    found = holdings(Workspace(workspace))
    commands = next_commands(found)
    if json:
        emit({"workspace": str(workspace), **as_facts(found), "next": list(commands)}, as_json=True, text="")
        return
    if not found:
        out.print(f"There is nothing in {workspace} yet.")
    else:
        out.print(f"{workspace}")
        print_holdings(found)
    if commands:
        out.print(following(*commands, workspace=workspace))
    else:
        out.print("Next: the same `ddt-accel calibrate` as before, which goes on where it was interrupted")


def next_commands(found: Holdings) -> tuple[str, ...]:
    """What is sensible to type now; nothing where only the user knows what was interrupted."""
    usable = any(row.damage is None for row in found.schedules)
    if not found:
        return "ddt-accel demo", "ddt-accel optimize --model CHECKPOINT --speedup 5"
    if found.has("interrupted calibration") and not found.has("calibration"):
        return ()
    if not usable:
        return "ddt-accel optimize --speedup 5", *(
            [_solving(found.held["calibration"])] if found.has("calibration") else ["ddt-accel calibrate"]
        )
    measured = any(row.measured_ms is not None for row in found.schedules)
    if not found.has("export") and not found.has("engines"):
        return ("ddt-accel sample --backend auto",) if measured else (
            "ddt-accel export", "ddt-accel sample --backend torch"
        )  # fmt: skip
    by = "" if found.has("export") else " --backend trt --device cuda"
    if measured and found.has("export") and found.has("backends"):
        return ("ddt-accel sample --backend auto",)  # which of them is fastest was measured
    return (f"ddt-accel sample{by}",) if measured else (f"ddt-accel bench{by}", f"ddt-accel sample{by}")


def _solving(calibration: Held) -> str:
    """As `calibrate` proposes it."""
    return f"ddt-accel solve --budget {max(1, calibration.facts['evaluations'] // 5)}"


def as_facts(found: Holdings) -> dict[str, object]:
    """For programs."""
    held = {name.replace(" ", "_"): {"text": one.text, **one.facts} for name, one in found.held.items()}
    return held | {"schedules": [asdict(row) for row in found.schedules]}


def print_holdings(found: Holdings) -> None:
    """For people: a line for each thing, and a table of schedules."""
    width = max(map(len, found.held), default=0)
    for name, one in found.held.items():
        out.print(f"  {name:>{width}}  {one.text}")
    sound = [row for row in found.schedules if row.damage is None]
    if sound:
        show(_table(sound))
    if any(row.fitted for row in sound):
        out.print("dB are to the image without sharing; of fitted schedules (*), to the reference solution.")
    for row in found.schedules:
        if row.damage is not None:
            out.print(f"  {row.name} is damaged: {row.damage}")


def _table(rows: list[ScheduleRow]) -> Table:
    from rich.table import Table

    columns = {"predicted dB": "predicted_db", "measured dB": "measured_db", "predicted ms": "predicted_ms",
               "measured ms": "measured_ms"}  # fmt: skip
    known = {head: name for head, name in columns.items() if any(getattr(row, name) is not None for row in rows)}
    table = Table("schedule", "encoder runs", "steps", *known)
    for row in rows:
        values = [getattr(row, name) for name in known.values()]
        table.add_row(
            row.name + "*" * row.fitted,
            f"{row.encoder_runs} of {row.evaluations}",
            str(row.steps),
            *(f"{value:.1f}" if value is not None else "–" for value in values),
        )
    return table
