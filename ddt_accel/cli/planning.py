"""`plan`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ddt_accel.cli.console import emit, following, given, keeping, out, say, say_threads, show, stages
from ddt_accel.cli.fitting import kept, wants_autocast
from ddt_accel.cli.networks import BackendOption, load_networks, open_networks
from ddt_accel.cli.opening import NetworkSettings
from ddt_accel.cli.options import (
    DEFAULT_WORKSPACE,
    BatchOption,
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
    from ddt_accel.evaluation.converged import Reference
    from ddt_accel.evaluation.fidelity import Interval
    from ddt_accel.evaluation.judge import Plan
    from ddt_accel.evaluation.plan import Row
    from ddt_accel.schedule import Schedule
    from ddt_accel.workspace import Workspace


def plan(
    cost: Annotated[
        list[float] | None,
        typer.Option("--cost", help="Repeatable. Default: 0.12, 0.16, 0.2, 0.25, 0.3, 0.4."),
    ] = None,
    workspace: WorkspaceOption = DEFAULT_WORKSPACE,
    calibration: Annotated[Path | None, typer.Option(help="A calibration file, of a fine grid.")] = None,
    backend: BackendOption = "torch",
    export_folder: Annotated[Path | None, typer.Option("--export", help="An export folder.")] = None,
    model: ModelOption = None,
    config: ConfigOption = None,
    weights: WeightsOption = None,
    latent_shape: LatentOption = None,
    guide: GuideOption = None,
    device: DeviceOption = "cpu",
    threads: ThreadsOption = None,
    images: Annotated[
        int, typer.Option("--images", "-n", help="Held-out images to choose on, and as many to report on.")
    ] = 16,
    seed: Annotated[int, typer.Option(help="Seed of the held-out images; not the calibrated one.")] = 2,
    batch_size: BatchOption = 16,
    fit: Annotated[
        bool, typer.Option("--fit", help="Search and fit schedules for every cost, too; minutes for each.")
    ] = False,
    iterations: Annotated[int | None, typer.Option(help="Gradient steps of a fit. Default: 40.")] = None,
    fit_seed: Annotated[
        int | None, typer.Option(help="Seed of the images that are fitted to; not the others. Default: 3.")
    ] = None,
    schedule: Annotated[Path | None, typer.Option("--out", help="Where to write the best schedule.")] = None,
    workers: WorkersOption = None,
    ray: RayOption = None,
    cpus_per_worker: CoresOption = None,
    json: JsonOption = False,
) -> None:
    """Choose steps, integrator and refreshes together, by where the trajectory ends.

    Costs are in terms of the calibrated trajectory, unshared: seconds as the last `bench` of this workspace measured
    them, else counted multiply-adds. The best plan of the highest cost becomes the workspace's schedule; fitted ones of
    every cost are kept in `plans/` there. --workers follow the reference trajectories; the rest is done here.
    """
    import dataclasses
    from contextlib import ExitStack

    import torch

    from ddt_accel.artifacts import check_writable
    from ddt_accel.errors import ConfigError, MismatchError
    from ddt_accel.evaluation.converged import Keeper
    from ddt_accel.evaluation.costs import costs_here
    from ddt_accel.evaluation.plan import make_plans
    from ddt_accel.fitting.fit_spec import FitSpec
    from ddt_accel.fitting.joint import JointFit
    from ddt_accel.locks import making
    from ddt_accel.sampling.noise import ImageRange
    from ddt_accel.workspace import Workspace

    if not fit and (iterations is not None or fit_seed is not None):
        raise ConfigError("--iterations and --fit-seed are for fits; add --fit.")
    site = site_of(workers, ray, cpus_per_worker, device)
    place = Workspace(workspace)
    path = schedule or place.schedule_path
    check_writable(path)
    statistics = place.calibration(calibration)
    said = model_options(model, config, weights, latent_shape, guide)
    say_threads(threads, device)
    networks = open_networks(place, backend, export_folder, said, device, batch_size)
    costs = costs_here(place.costs_path, networks.backend, networks.latent_shape, say)
    spec = None
    if fit:
        usual = FitSpec(autocast=wants_autocast(None, torch.device(check_device(device))))
        spec = dataclasses.replace(
            usual,
            seed=usual.seed if fit_seed is None else fit_seed,
            iterations=usual.iterations if iterations is None else iterations,
        )
        if spec.seed == seed:
            raise MismatchError(
                f"--seed and --fit-seed are both {seed}; plans are compared on images that no fit has seen."
            )
    with ExitStack() as stack:
        if fit or site is not None:
            stack.enter_context(making(place.fit_path, say))
            stack.enter_context(keeping(lambda: kept(place.fit_path)))
        on_stage = stack.enter_context(stages())
        batches: dict[Reference, int] = {}
        fitted = None
        if spec is not None:
            network, second = load_networks(place, said, check_device(device))
            joint = JointFit(network, statistics, costs, spec, folder=place.fit_path, on_stage=on_stage, guide=second)
            if networks.option == "torch":  # which fits run on: another backend's arithmetic is none to fit to
                batches = dict.fromkeys(joint.references, spec.batch_size)

            def fitted(target: float, shared: bool) -> Schedule | None:
                found = joint.fitted(cost=target, shared=shared)
                if found is not None:
                    found.save(place.plans_path / f"{target:g}-{'shared' if shared else 'unshared'}.json")
                return found

        def followed(references: list[Reference]) -> None:
            if site is not None:
                settings = NetworkSettings(
                    workspace=workspace,
                    said=said,
                    backend=networks.option,
                    export_folder=export_folder,
                    device=device,
                    threads=threads,
                    batch_size=batch_size,
                )
                keeper = Keeper(networks.backend, networks.latent_shape, place.fit_path)
                follow(site, settings, keeper, dict.fromkeys(references, batch_size) | batches, on_stage)

        rows = make_plans(
            networks.backend,
            statistics,
            costs,
            cost or [0.12, 0.16, 0.2, 0.25, 0.3, 0.4],
            latent_shape=networks.latent_shape,
            num_images=images,
            seed=seed,
            batch_size=batch_size,
            on_stage=on_stage,
            fitted=fitted,
            cache=None if site is None else place.fit_path,
            follow=followed,
        )
    best = rows[-1].best
    if best is not None:
        # That it was chosen on these images is remembered as that a fit has used them: neither is reported on.
        chosen_on = ImageRange(seed=seed, first=0, stop=images).joined(best.schedule.fitted_on)
        keep(place, dataclasses.replace(best.schedule, fitted_on=chosen_on), path)
    if not json:
        _print(rows)
    emit(
        {"unit": costs.unit, "conditions": costs.conditions, "rows": [_facts(row) for row in rows]},
        as_json=json,
        text=f"Costs are {costs.unit} ({costs.conditions}); 1 is the calibrated trajectory, unshared.\n"
        f"dB to the reference solution, with 95 % intervals, on {images} images of seed {seed}, not those that plans "
        "were chosen on.\n"
        + (
            f"The best at {rows[-1].cost:g}: {best.name} → {path}\n{_next(place, schedule, device)}"
            if best
            else _NOTHING
        ),
    )


_NOTHING = "Nothing is as cheap as that; give a higher --cost."


def _next(place: Workspace, schedule: Path | None, device: str) -> str:
    used = given("--schedule", schedule)
    measuring = f"ddt-accel bench{used}" if place.export_path.exists() else "ddt-accel export"
    return following(measuring, f"ddt-accel sample --backend torch{used}", workspace=place.folder, device=device)


WAYS = {
    "fewer": "fewer steps",
    "unshared": "and another time shift",
    "published": "published sharing",
    "shared": "shared",
    "fitted_unshared": "fitted",
    "fitted_shared": "fitted and shared",
}


def _print(rows: list[Row]) -> None:
    from rich.table import Table

    from ddt_accel.evaluation.judge import gain

    table = Table("cost", "way", "plan", "costs", "dB to the reference", "more than fewer steps")
    for row in rows:
        for way, said in WAYS.items():
            found: Plan | None = getattr(row, way)
            if found is not None:
                known = found.interval
                told = f"{known.mean:.1f} ({known.low:.1f} … {known.high:.1f})"
                more = "" if found is row.fewer else _gain(gain(found, row.fewer))
                table.add_row(f"{row.cost:g}", said, found.name, f"{found.cost:.3f}", told, more)
        table.add_section()
    show(table)
    for row in rows:
        out.print(_verdict(row))


def _verdict(row: Row) -> str:
    """Whether sharing pays at a cost: the best plan with it against the best without."""
    from ddt_accel.evaluation.judge import gain

    mine, without = row.best_shared, row.best_unshared
    found = gain(mine, without)
    if found is None or mine is None or without is None:
        return f"At {row.cost:g} there is nothing to compare sharing with."
    said = f"{_told(found)} dB, {mine.name} against {without.name}"
    if found.low > 0:
        return f"At {row.cost:g} sharing pays: {said}."
    return f"At {row.cost:g} sharing {'costs' if found.high < 0 else 'makes no clear difference'}: {said}."


def _gain(gain: Interval | None) -> str:
    if gain is None:
        return "–"
    return f"{_told(gain)} not significant" if gain.low <= 0 <= gain.high else _told(gain)


def _told(gain: Interval) -> str:
    return f"{gain.mean:+.1f} ({gain.low:+.1f} … {gain.high:+.1f})"


def _facts(row: Row) -> dict[str, Any]:
    from dataclasses import asdict

    from ddt_accel.evaluation.judge import gain

    plans: dict[str, Plan | None] = {way: getattr(row, way) for way in WAYS}
    return {
        "cost": row.cost,
        "verdict": _verdict(row),
        **{
            way: {
                "name": found.name,
                "cost": found.cost,
                "fidelity_db": found.mean,
                "interval_db": [found.interval.low, found.interval.high],
                "copying_db": float(found.copying.mean()) if found.copying is not None else None,
                "timeshift": found.schedule.spec.timeshift,
                "refresh_steps": list(found.schedule.refresh_steps),
                "unconditional_steps": found.schedule.unconditional_steps,
                "solver": found.schedule.spec.solver,
                "num_steps": found.schedule.spec.num_steps,
                "centred": found.schedule.centred,
                "gain_over": {
                    over: asdict(gained) if (gained := gain(found, plans[over])) else None
                    for over in ("fewer", "unshared", "fitted_unshared")
                },
            }
            if found
            else None
            for way, found in plans.items()
        },
    }
