"""`fit`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ddt_accel.cli.console import emit, say, stages
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

if TYPE_CHECKING:
    import torch

    from ddt_accel.evaluation.fidelity import Interval
    from ddt_accel.fitting.fit_spec import FitSpec
    from ddt_accel.networks.ddt import DDT
    from ddt_accel.schedule import Schedule
    from ddt_accel.stages import OnStage
    from ddt_accel.workspace import Workspace


def fit(
    schedule: Annotated[
        Path | None, typer.Option(help="The schedule to start from; the workspace's by default.")
    ] = None,
    steps: Annotated[
        int | None,
        typer.Option("--steps", help="Instead of --schedule: search one of so many steps."),
    ] = None,
    budget: Annotated[int | None, typer.Option("--budget", "-k", help="Search one of no more encoder runs.")] = None,
    cost: Annotated[
        float | None,
        typer.Option(help="Search one of no higher cost; 1 is the calibrated trajectory, unshared."),
    ] = None,
    fixed: Annotated[
        str | None, typer.Option("--fixed", help="What stays as it is: times, integrator, forecasts; by commas.")
    ] = None,
    sources: Annotated[int, typer.Option(help="States that a forecast reads, or the schedule's, if more.")] = 2,
    iterations: Annotated[int, typer.Option(help="Gradient steps.")] = 40,
    images: Annotated[int, typer.Option("--images", "-n", help="Images to fit on.")] = 64,
    held_out: Annotated[int, typer.Option(help="Images to choose the best iterate on, and as many to report on.")] = 32,
    batch_size: Annotated[int, typer.Option(help="Images a gradient step.")] = 12,
    micro_batch: Annotated[int, typer.Option(help="Of them, how many at a time.")] = 12,
    learning_rate: Annotated[float, typer.Option(help="Of Adam; it decays to 0.")] = 5e-2,
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
    from ddt_accel.fitting.fit import Fitter
    from ddt_accel.fitting.fit_spec import FitSpec
    from ddt_accel.fitting.scalars import KINDS
    from ddt_accel.locks import making
    from ddt_accel.workspace import Workspace

    held = [] if fixed is None else [part.strip() for part in fixed.split(",")]
    if unknown := sorted(set(held) - set(KINDS)):
        raise ConfigError(f"--fixed has {', '.join(unknown)}; give some of {', '.join(KINDS)}.")
    place = Workspace(workspace)
    path = out or place.schedule_path
    check_writable(path)
    network = place.load_model(model_options(model, config, weights, latent_shape)).to(check_device(device))
    searched = not (steps is None and budget is None and cost is None)
    if searched and schedule is not None:
        raise ConfigError("Give a --schedule to start from, or --steps, --budget and --cost to search one; not both.")
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
        autocast=wants_autocast(precision, torch.device(device)),
    )
    if (calibration or place.calibration_path.exists()) and any(
        map(place.calibration(calibration).contains, spec.ranges[1:])
    ):
        raise MismatchError(f"Seed {seed} was calibrated on; fit with another --seed.")
    with making(place.fit_path, say), stages() as on_stage:
        if searched:
            start, spec = _searched(place, network, calibration, spec, steps, budget, cost, on_stage)
        else:
            start = place.schedule(schedule)
        fitter = Fitter(
            network, start, spec, state_path=place.fit_path / "state.safetensors", cache=place.fit_path,
            on_stage=on_stage,
        )  # fmt: skip
        if fitter.state_path is not None and fitter.state_path.exists() and not fitter.continues():
            say(
                f"{fitter.state_path} is of an interrupted fit with other settings, or by another version, or damaged; "
                "it is replaced."
            )
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


def wants_autocast(precision: str | None, device: torch.device) -> bool:
    """Whether networks multiply in bfloat16 while a schedule is fitted: as asked for, else on a GPU that has it."""
    from ddt_accel.errors import ConfigError
    from ddt_accel.networks.device import supports_bf16

    if precision not in (None, "bf16", "fp32"):
        raise ConfigError(f"--precision is {precision!r}; choose bf16 or fp32.")
    return precision == "bf16" or (precision is None and device.type == "cuda" and supports_bf16(device))


def _searched(
    place: Workspace, network: DDT, calibration: Path | None, spec: FitSpec, steps: int | None, budget: int | None,
    cost: float | None, on_stage: OnStage,
) -> tuple[Schedule, FitSpec]:  # fmt: skip
    """The schedule to start from, and the fit with as many reference steps as the search has used."""
    from ddt_accel.errors import ConfigError
    from ddt_accel.evaluation.costs import counted_costs, kept_costs
    from ddt_accel.fitting.joint import JointFit
    from ddt_accel.networks.ddt import latent_shape_of

    statistics = place.calibration(calibration)
    costs = kept_costs(place.costs_path, statistics.checkpoint_sha256, say) or counted_costs(
        network.config, latent_shape_of(network)
    )
    joint = JointFit(network, statistics, costs, spec, steps=steps, folder=place.fit_path, on_stage=on_stage)
    unshared_only = budget is None and cost is None
    found = joint.find(budget=budget, cost=cost, shared=False if unshared_only else None)
    if found is None:
        asked = {"--steps": steps, "--budget": budget, "--cost": cost}
        said = ", ".join(f"{name} {value}" for name, value in asked.items() if value is not None)
        raise ConfigError(f"There is no schedule within {said}; allow more.")
    return found, joint.spec


def _told(value: Interval) -> str:
    return f"{value.mean:.1f} dB ({value.low:.1f} … {value.high:.1f})"
