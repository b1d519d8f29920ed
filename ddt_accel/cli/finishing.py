"""`sample --finish`: what draws nothing, and needs no network."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from ddt_accel.cli.console import emit, following, say
from ddt_accel.cli.options import typed

if TYPE_CHECKING:
    from ddt_accel.drawing.run_folder import RunFolder
    from ddt_accel.schedule import Schedule
    from ddt_accel.workspace import Workspace

# What is of drawing alone, by the names of the options.
_DRAWING = {
    "shard": "--shard", "workers": "--workers", "ray": "--ray", "cpus_per_worker": "--cpus-per-worker"
}  # fmt: skip
# What would take a network to be compared with a run.
_OF_NETWORKS = {
    "model": "--model", "config": "--config", "weights": "--weights", "guide": "--guide", "decoder": "--decoder"
}  # fmt: skip


def finish_run(context: typer.Context, place: Workspace, folder: Path) -> None:
    """Completes the run in a folder, if it is the one that the command's options are of.

    Raises ConfigError for options that it has no use for, MismatchError for those of another run.
    """
    from ddt_accel.artifacts import check_writable
    from ddt_accel.cli.drawing import finish
    from ddt_accel.drawing.run_folder import FILE_NAME, RunFolder
    from ddt_accel.errors import ConfigError

    options: dict[str, Any] = context.params
    given = {name for name in options if typed(context, name)}
    if useless := [option for name, option in _DRAWING.items() if name in given]:
        raise ConfigError(f"--finish draws nothing, and needs no {' or '.join(useless)}; leave out one or the other.")
    if (folder / FILE_NAME).exists():
        plan = place.schedule(_path(options["schedule"])) if given & {"schedule", "full"} else None
        plan = plan.unshared() if plan is not None and options["full"] else plan
        _check_same(RunFolder.load(folder), {name: options[name] for name in given}, plan)
        if unseen := [option for name, option in _OF_NETWORKS.items() if name in given]:
            unknown = f"{' and '.join(unseen)} {'are' if unseen[1:] else 'is'}"
            say(f"--finish opens no network: whether {unknown} the run's is not looked at.")
    if (npz := _path(options["npz"])) is not None:
        check_writable(npz)
    run, drawn = finish(folder, npz, options["png"])
    emit(
        drawn.facts(folder, run.images),
        as_json=options["json"],
        text=f"All {run.images} images are in {folder}"
        + "".join(f"\nWritten: {path}" for path in drawn.files)
        + (f"\nAt a glance: {drawn.sheet}" if drawn.sheet else "")
        + f"\n{following('ddt-accel status', workspace=place.folder)}",
    )


def _check_same(run: RunFolder, given: dict[str, Any], plan: Schedule | None) -> None:
    """Raises MismatchError where options say something else than the run was begun with."""
    from ddt_accel.drawing.identity import differences, schedule_identity
    from ddt_accel.errors import MismatchError

    there, sampling = run.identity, str(run.identity.get("sampling"))
    here = {**there, **({} if plan is None else schedule_identity(plan))}
    if "seed" in given:
        here["seed"] = given["seed"]
    if (shape := given.get("latent_shape")) is not None:
        here["latents"] = shape
    listed = ",".join(part.strip() for part in str(given.get("labels", there.get("labels"))).split(","))
    if not _alike(listed, str(there.get("labels"))):
        here["labels"] = listed
    differs = differences(there, here)
    if "images" in given and given["images"] != run.images:
        differs.append(f"--images is {run.images} there and {given['images']} here")
    if (steps := given.get("steps_wanted")) is not None and not sampling.startswith(f"{steps} steps "):
        differs.append(f"the sampling is {sampling} there, and --steps {steps} here")
    if (guidance := given.get("guidance")) is not None and guidance != _guidance(sampling):
        differs.append(f"the sampling is {sampling} there, and --guidance {guidance:g} here")
    if differs:
        raise MismatchError(
            f"{run.folder} holds another run than these options are of: {'; '.join(differs)}. Leave them out to finish "
            "it, or give the --out of yours."
        )


def _alike(asked: str, there: str) -> bool:
    """Whether labels may be those of a run; names of classes, and all classes in turn, are known to networks alone."""
    if asked in ("equal", "random") or there == "random":
        return asked == there
    return asked == there or there == "equal" or "…" in there or not asked.replace(",", "").isdecimal()


def _guidance(sampling: str) -> float:
    """Of a schedule in words, as `schedule_identity` has them."""
    found = re.search(r"guidance ([\d.e+-]+)", sampling)
    return float(found[1]) if found else math.nan


def _path(given: str | None) -> Path | None:
    """Of an option as it was typed."""
    return None if given is None else Path(given)
