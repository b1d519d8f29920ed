"""`fit`."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ddt_accel.cli.console import emit, say
from ddt_accel.cli.console import steps as steps_bar
from ddt_accel.cli.options import (
    DEFAULT_WORKSPACE,
    ConfigOption,
    DeviceOption,
    JsonOption,
    LatentOption,
    ModelOption,
    WeightsOption,
    WorkspaceOption,
    check_device,
    model_options,
)
from ddt_accel.cli.solving import on_grid

if TYPE_CHECKING:
    from ddt_accel.calibration.statistics import Calibration
    from ddt_accel.evaluation.fidelity import Interval
    from ddt_accel.schedule import Schedule


def fit(
    schedule: Annotated[
        Path | None, typer.Option(help="The schedule to start from; the workspace's by default.")
    ] = None,
    budget: Annotated[
        int | None, typer.Option("--budget", "-k", help="Start from one solved for now, of this many encoder runs.")
    ] = None,
    steps: Annotated[
        int | None, typer.Option("--steps", help="Of that schedule; without --budget, every step runs the encoder.")
    ] = None,
    solver: Annotated[str | None, typer.Option(help="Of that schedule; ab2 where there are --steps.")] = None,
    timeshift: Annotated[
        float | None, typer.Option(help="Of that schedule; `plan` finds one that suits. Default: the calibrated one.")
    ] = None,
    fixed: Annotated[
        str | None, typer.Option("--fixed", help="What stays as it is: times, integrator, forecasts; by commas.")
    ] = None,
    sources: Annotated[int, typer.Option(help="From how many refreshed states forecasts are made, at least.")] = 2,
    iterations: Annotated[int, typer.Option(help="Gradient steps.")] = 120,
    images: Annotated[int, typer.Option("--images", "-n", help="Images to fit on.")] = 64,
    held_out: Annotated[int, typer.Option(help="Images to choose the best iterate on, and as many to report on.")] = 32,
    batch_size: Annotated[int, typer.Option(help="Images a gradient step.")] = 12,
    micro_batch: Annotated[int, typer.Option(help="Of them, how many at a time.")] = 12,
    learning_rate: Annotated[float, typer.Option(help="Of Adam; it decays to 0.")] = 2e-2,
    reference_steps: Annotated[
        int | None, typer.Option(help="Of the converged trajectories that are fitted to; at least 120 by default.")
    ] = None,
    precision: Annotated[
        str | None, typer.Option(help="bf16 or fp32; by default bf16 on a GPU that has it, fp32 on a CPU.")
    ] = None,
    workspace: WorkspaceOption = DEFAULT_WORKSPACE,
    calibration: Annotated[Path | None, typer.Option(help="A calibration file.")] = None,
    model: ModelOption = None,
    config: ConfigOption = None,
    weights: WeightsOption = None,
    latent_shape: LatentOption = None,
    device: DeviceOption = "cpu",
    seed: Annotated[int, typer.Option(help="Seed of the images; not the calibrated one.")] = 3,
    out: Annotated[Path | None, typer.Option(help="Where to write; over the workspace's schedule by default.")] = None,
    json: JsonOption = False,
) -> None:
    """Fit a schedule's own numbers, its times and weights, to where the converged trajectory ends."""
    import dataclasses

    import torch

    from ddt_accel.artifacts import check_writable
    from ddt_accel.errors import ConfigError, MismatchError
    from ddt_accel.fitting.fit import FitSpec, Fitter
    from ddt_accel.fitting.scalars import KINDS
    from ddt_accel.networks.precision import supports_bf16
    from ddt_accel.workspace import Workspace

    held = [] if fixed is None else [part.strip() for part in fixed.split(",")]
    if unknown := sorted(set(held) - set(KINDS)):
        raise ConfigError(f"--fixed has {', '.join(unknown)}; give some of {', '.join(KINDS)}.")
    if precision not in (None, "bf16", "fp32"):
        raise ConfigError(f"--precision is {precision!r}; choose bf16 or fp32.")
    place = Workspace(workspace)
    path = out or place.schedule_path
    check_writable(path)
    network = place.load_model(model_options(model, config, weights, latent_shape)).to(check_device(device))
    if budget is None and steps is None:
        if solver is not None or timeshift is not None:
            raise ConfigError("--solver and --timeshift are of a schedule made for --steps or --budget; give one.")
        start = place.schedule(schedule)
    elif schedule is not None:
        raise ConfigError("Give a --schedule to start from, or --steps and --budget, not both.")
    else:
        start = _solved(place.calibration(calibration), steps, budget, solver, timeshift)
    on = torch.device(device)
    spec = FitSpec(
        iterations=iterations,
        images=images,
        held_out=held_out,
        batch_size=min(batch_size, images),
        micro_batch=micro_batch,
        learning_rate=learning_rate,
        reference_steps=reference_steps,
        seed=seed,
        free=tuple(kind for kind in KINDS if kind not in held),
        sources=sources,
        autocast=precision == "bf16" or (precision is None and on.type == "cuda" and supports_bf16(on)),
    )
    if (calibration or place.calibration_path.exists()) and any(
        map(place.calibration(calibration).contains, spec.ranges[1:])
    ):
        raise MismatchError(f"Seed {seed} was calibrated on; fit with another --seed.")
    with ExitStack() as bars:

        def on_stage(label: str, total: int) -> Callable[[], None]:
            bars.close()
            return bars.enter_context(steps_bar(label, total)).advance

        fitter = Fitter(
            network, start, spec, state_path=place.fit_path / "state.safetensors", cache=place.fit_path,
            on_stage=on_stage,
        )  # fmt: skip
        if fitter.state_path is not None and fitter.state_path.exists() and not fitter.continues():
            say(f"{fitter.state_path} is of an interrupted fit with other settings, or damaged; it is replaced.")
            fitter.state_path.unlink()
        fitted = fitter.run()
    fitted.schedule.save(path)
    if fitter.state_path is not None:
        fitter.state_path.unlink(missing_ok=True)
    emit(
        {
            "schedule": str(path),
            "improved": fitted.improved,
            "iteration": fitted.iteration,
            **{name: dataclasses.asdict(getattr(fitted, name)) for name in ("before", "after", "gain")},
        },
        as_json=json,
        text=f"On {held_out} images that were not fitted, against {fitter.reference_steps} steps of AB2, "
        f"95 % intervals: {_told(fitted.before)} before, {_told(fitted.after)} after iteration {fitted.iteration}, "
        f"gain {_told(fitted.gain)}.\n"
        + ("" if fitted.improved else "That is no significant gain: the schedule it started from is kept.\n")
        + f"→ {path}\nNext: ddt-accel sample --backend torch",
    )


def _solved(
    calibration: Calibration, steps: int | None, budget: int | None, solver: str | None, timeshift: float | None
) -> Schedule:
    """What `solve` makes of a calibration, on the grid that is asked for."""
    import dataclasses

    from ddt_accel.schedule import Schedule
    from ddt_accel.solver.solve import solve_curve

    spec = calibration.spec
    if steps is not None:
        spec = dataclasses.replace(spec, num_steps=steps, solver=solver or "ab2", last_step=None)
    elif solver is not None:
        spec = dataclasses.replace(spec, solver=solver)
    if timeshift is not None:
        spec = dataclasses.replace(spec, timeshift=timeshift)
    if budget is None:
        return dataclasses.replace(Schedule.full(spec), checkpoint_sha256=calibration.checkpoint_sha256)
    return solve_curve(on_grid(calibration, spec), budget)[-1][0]


def _told(value: Interval) -> str:
    return f"{value.mean:.1f} dB ({value.low:.1f} … {value.high:.1f})"
