"""`fit`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ddt_accel.cli.console import emit, following, given, keeping, say, say_threads, stages
from ddt_accel.cli.networks import load_networks
from ddt_accel.cli.opening import NetworkSettings
from ddt_accel.cli.options import (
    DEFAULT_WORKSPACE,
    ConfigOption,
    DeviceOption,
    GuideOption,
    JsonOption,
    LatentOption,
    ModelOption,
    ThreadsOption,
    WeightsOption,
    WorkspaceOption,
    check_device,
    model_options,
)
from ddt_accel.cli.preparation import keep
from ddt_accel.cli.references import follow
from ddt_accel.cli.workers import CoresOption, RayOption, WorkersOption, site_of

if TYPE_CHECKING:
    import torch

    from ddt_accel.evaluation.converged import Reference
    from ddt_accel.evaluation.costs import Costs
    from ddt_accel.evaluation.fidelity import Interval
    from ddt_accel.fitting.joint import JointFit
    from ddt_accel.networks.split import SplitNetwork
    from ddt_accel.sampling.backend import Backend
    from ddt_accel.schedule import Schedule
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
    iterations: Annotated[int, typer.Option(min=1, help="Gradient steps.")] = 40,
    images: Annotated[int, typer.Option("--images", "-n", min=1, help="Images to fit on.")] = 64,
    held_out: Annotated[int, typer.Option(help="Images to choose the best iterate on, and as many to report on.")] = 32,
    batch_size: Annotated[int, typer.Option(min=1, help="Images a gradient step.")] = 12,
    micro_batch: Annotated[
        str, typer.Option(metavar="INTEGER|auto", help="Of them, how many at a time; auto: as many as fit into memory.")
    ] = "auto",
    learning_rate: Annotated[float, typer.Option(help="Of Adam; it decays to 0.")] = 5e-2,
    reference_steps: Annotated[
        int | None, typer.Option(help="Of the reference solution that is fitted to; at least 120 by default.")
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
    guide: GuideOption = None,
    device: DeviceOption = "cpu",
    threads: ThreadsOption = None,
    seed: Annotated[int, typer.Option(help="Seed of the images; not the calibrated one.")] = 3,
    out: Annotated[Path | None, typer.Option(help="Where to write; over the workspace's schedule by default.")] = None,
    workers: WorkersOption = None,
    ray: RayOption = None,
    cpus_per_worker: CoresOption = None,
    json: JsonOption = False,
) -> None:
    """Fit a schedule's own numbers, its times and weights, to where the reference solution ends.

    --workers follow the reference trajectories; the rest is done here.
    """
    import dataclasses

    import torch

    from ddt_accel.artifacts import check_writable
    from ddt_accel.errors import ConfigError, MismatchError
    from ddt_accel.evaluation.converged import Keeper
    from ddt_accel.fitting.fit import Fitter
    from ddt_accel.fitting.fit_spec import FitSpec
    from ddt_accel.fitting.joint import JointFit
    from ddt_accel.fitting.scalars import KINDS
    from ddt_accel.locks import making
    from ddt_accel.networks.split import latent_shape_of
    from ddt_accel.schedule import Schedule
    from ddt_accel.workspace import Workspace

    held = [] if fixed is None else [part.strip() for part in fixed.split(",")]
    if unknown := sorted(set(held) - set(KINDS)):
        raise ConfigError(f"--fixed has {', '.join(unknown)}; give some of {', '.join(KINDS)}.")
    site = site_of(workers, ray, cpus_per_worker, device)
    place = Workspace(workspace)
    path = out or place.schedule_path
    check_writable(path)
    said = model_options(model, config, weights, latent_shape, guide)
    device = check_device(device)
    searched = not (steps is None and budget is None and cost is None)
    if searched and schedule is not None:
        raise ConfigError("Give a --schedule to start from, or --steps, --budget and --cost to search one; not both.")
    spec = FitSpec(
        iterations=iterations,
        images=images,
        held_out=held_out,
        batch_size=min(batch_size, images),
        micro_batch=_micro_batch(micro_batch),
        learning_rate=learning_rate,
        reference_steps=reference_steps,
        seed=seed,
        free=tuple(kind for kind in KINDS if kind not in held),
        sources=sources,
        autocast=wants_autocast(precision, torch.device(device)),
    )
    known = place.calibration(calibration) if calibration or searched or place.calibration_path.exists() else None
    if known is not None and any(map(known.contains, spec.ranges[1:])):
        raise MismatchError(f"Seed {seed} was calibrated on; fit with another --seed.")
    start = None if searched else place.schedule(schedule)
    network, second = load_networks(place, said, device)
    costs = _costs(place, network, second)
    say_threads(threads, device)
    with making(place.fit_path, say), keeping(lambda: kept(place.fit_path)), stages() as on_stage:

        def followed(backend: Backend, references: list[Reference]) -> None:
            if site is not None:
                settings = NetworkSettings(
                    workspace=workspace,
                    said=said,
                    backend="torch",
                    export_folder=None,
                    device=device,
                    threads=threads,
                    batch_size=spec.batch_size,
                )
                keeper = Keeper(backend, latent_shape_of(network), place.fit_path)
                follow(site, settings, keeper, dict.fromkeys(references, spec.batch_size), on_stage)

        if start is None:
            assert known is not None
            joint = JointFit(
                network, known, costs, spec, steps=steps, folder=place.fit_path, on_stage=on_stage, guide=second
            )
            followed(joint.backend, joint.references)
            start, spec = _searched(joint, steps, budget, cost), joint.spec
        unshared = Schedule.full(known.spec) if known is not None else start.unshared()
        if searched:
            say(f"Found to start from: {_told_size(start, costs, unshared)}.")
        fitter = Fitter(
            network, start, spec, state_path=place.fit_path / "state.safetensors", cache=place.fit_path,
            on_stage=on_stage, guide=second,
        )  # fmt: skip
        if fitter.state_path is not None and fitter.state_path.exists() and not fitter.continues():
            say(
                f"{fitter.state_path} is of an interrupted fit with other settings, or by another version, or damaged; "
                "it is replaced."
            )
            fitter.state_path.unlink()
        followed(fitter.backend, fitter.references)
        fitted = fitter.run()
        keep(place, fitted.schedule, path)
        if fitter.state_path is not None:
            fitter.state_path.unlink(missing_ok=True)
    made = fitted.schedule
    emit(
        {
            "schedule": str(path),
            "steps": made.spec.num_steps,
            "encoder_runs": made.budget,
            "cost": costs.of(made) / costs.of(unshared),
            "improved": fitted.improved,
            "iteration": fitted.iteration,
            **{name: dataclasses.asdict(getattr(fitted, name)) for name in ("before", "after", "gain")},
        },
        as_json=json,
        text=f"On {held_out} images that were not fitted, against {fitter.reference_steps} steps of AB2, "
        f"95 % intervals: {_told(fitted.before)} before, {_told(fitted.after)} after iteration {fitted.iteration}, "
        f"gain {_told(fitted.gain)}.\n"
        + ("" if fitted.improved else "That is no significant gain: the schedule it started from is kept.\n")
        + f"{_told_size(made, costs, unshared)} → {path}\n"
        + following(
            f"ddt-accel bench{given('--schedule', out)}" if place.export_path.exists() else "ddt-accel export",
            f"ddt-accel sample --backend torch{given('--schedule', out)}",
            workspace=workspace,
            device=device,
        ),
    )


def _micro_batch(asked: str) -> int | None:
    """None for "auto"; raises ConfigError for what is neither that nor a number of images."""
    from ddt_accel.errors import ConfigError

    if asked == "auto":
        return None
    if not asked.isdecimal() or int(asked) < 1:
        raise ConfigError(f"--micro-batch is {asked!r}; give a whole number of at least 1, or auto.")
    return int(asked)


def kept(folder: Path) -> str:
    """What an interrupted fit leaves in its folder."""
    patterns = {"converged trajectories": "converged-*.safetensors", "the fit so far": "state*.safetensors"}
    found = [name for name, pattern in patterns.items() if any(folder.glob(pattern))]
    if not found:
        return "Nothing was finished yet; the same command starts anew."
    return f"{' and '.join(found).capitalize()} are kept in {folder}; the same command goes on from there."


def _costs(place: Workspace, network: SplitNetwork, guide: SplitNetwork | None) -> Costs:
    """As `bench` measured them in this workspace, else counted."""
    from ddt_accel.backends.guided import backend_of
    from ddt_accel.evaluation.costs import costs_here
    from ddt_accel.networks.split import latent_shape_of

    return costs_here(place.costs_path, backend_of(network, guide), latent_shape_of(network), say)


def _told_size(schedule: Schedule, costs: Costs, unshared: Schedule) -> str:
    from ddt_accel.evaluation.costs import SECONDS

    spec, share = schedule.spec, costs.of(schedule) / costs.of(unshared)
    solver = "its own integrator" if schedule.is_fitted else spec.solver
    unit = "time" if costs.unit == SECONDS else costs.unit
    return (
        f"{spec.num_steps} steps of {solver}, {schedule.budget} encoder runs in {spec.num_evaluations} "
        f"evaluations, {share:.2f} of the {unit} of {unshared.spec.num_steps} steps without sharing"
    )


def wants_autocast(precision: str | None, device: torch.device) -> bool:
    """Whether networks multiply in bfloat16 while a schedule is fitted: as asked for, else on a GPU that has it."""
    from ddt_accel.errors import ConfigError
    from ddt_accel.networks.device import supports_bf16

    if precision not in (None, "bf16", "fp32"):
        raise ConfigError(f"--precision is {precision!r}; choose bf16 or fp32.")
    return precision == "bf16" or (precision is None and device.type == "cuda" and supports_bf16(device))


def _searched(joint: JointFit, steps: int | None, budget: int | None, cost: float | None) -> Schedule:
    """The schedule to start from."""
    from ddt_accel.errors import ConfigError

    unshared_only = budget is None and cost is None
    found = joint.find(budget=budget, cost=cost, shared=False if unshared_only else None)
    if found is None:
        asked = {"--steps": steps, "--budget": budget, "--cost": cost}
        said = ", ".join(f"{name} {value}" for name, value in asked.items() if value is not None)
        raise ConfigError(f"There is no schedule within {said}; allow more.")
    return found


def _told(value: Interval) -> str:
    return f"{value.mean:.1f} dB ({value.low:.1f} … {value.high:.1f})"
