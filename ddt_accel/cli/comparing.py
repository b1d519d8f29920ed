"""`compare`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ddt_accel.cli.console import emit, following, keeping, say, say_threads, show, stages
from ddt_accel.cli.fitting import wants_autocast
from ddt_accel.cli.networks import BackendOption, load_networks, open_networks
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
from ddt_accel.cli.preparation import known

if TYPE_CHECKING:
    from ddt_accel.calibration.statistics import Calibration
    from ddt_accel.comparison.contest import Contest
    from ddt_accel.evaluation.costs import Costs
    from ddt_accel.fitting.joint import JointFit
    from ddt_accel.rivals.rival import Rival

DEFAULT_COSTS = "0.16,0.2,0.3"


def compare(
    cost: Annotated[
        str | None, typer.Option("--cost", help=f"In terms of the unshared sampler. Default: {DEFAULT_COSTS}.")
    ] = None,
    milliseconds: Annotated[
        str | None, typer.Option("--ms", help="The same in milliseconds an image, as bench or optimize measured them.")
    ] = None,
    workspace: WorkspaceOption = DEFAULT_WORKSPACE,
    calibration: Annotated[Path | None, typer.Option(help="A calibration file.")] = None,
    aim: Annotated[
        str,
        typer.Option(
            "--to", help="What all come close to: the reference solution, or the unshared sampler on its own grid."
        ),
    ] = "reference",
    only: Annotated[
        str | None, typer.Option("--rivals", help="Some of them, by name: TaylorSeer,Spectrum. Default: all.")
    ] = None,
    backend: BackendOption = "torch",
    export_folder: Annotated[Path | None, typer.Option("--export", help="An export folder.")] = None,
    model: ModelOption = None,
    config: ConfigOption = None,
    weights: WeightsOption = None,
    latent_shape: LatentOption = None,
    guide: GuideOption = None,
    device: DeviceOption = "cpu",
    threads: ThreadsOption = None,
    images: Annotated[int, typer.Option("--images", "-n", help="Held-out images to report on.")] = 32,
    seed: Annotated[int, typer.Option(help="Seed of the held-out images; not the calibrated one.")] = 4,
    batch_size: BatchOption = 16,
    fit: Annotated[
        bool, typer.Option("--fit", help="Fit ours, and the solvers among the rivals, to every cost; minutes for each.")
    ] = False,
    out: Annotated[
        Path | None,
        typer.Option(help="Folder for results. Default: compare/ or compare-unshared/ in the workspace."),
    ] = None,
    json: JsonOption = False,
) -> None:
    """Put ours beside what others have published, at the same cost, on the same noises.

    Every method chooses among what its paper lets it choose, by images that nothing is reported on. What each chose is
    kept, so that an interrupted comparison goes on. Ours are solved schedules, the same aligned with the unshared
    trajectory, fits in closed form to what all come close to, and fits by gradients: those of the workspace or the
    package for this checkpoint, and with --fit new ones.
    """
    import torch

    from ddt_accel.artifacts import check_writable
    from ddt_accel.comparison.compare import compare as comparison
    from ddt_accel.comparison.contest import UNSHARED, Field
    from ddt_accel.evaluation.costs import costs_here
    from ddt_accel.fitting.fit_spec import FitSpec
    from ddt_accel.fitting.joint import JointFit
    from ddt_accel.locks import making
    from ddt_accel.report.comparison import facts, write_comparison
    from ddt_accel.report.conditions import machine
    from ddt_accel.report.numbers import COMPARISON_NAME
    from ddt_accel.rivals.table import RIVALS
    from ddt_accel.workspace import Workspace

    chosen = _rivals(only, RIVALS)
    place = Workspace(workspace)
    folder = out or (place.compared_unshared_path if aim == UNSHARED else place.compared_path)
    check_writable(folder / COMPARISON_NAME)
    statistics = place.calibration(calibration)
    said = model_options(model, config, weights, latent_shape, guide)
    say_threads(threads, device)
    networks = open_networks(place, backend, export_folder, said, device, batch_size)
    costs = costs_here(place.costs_path, networks.backend, networks.latent_shape, say)
    targets = _targets(cost, milliseconds, costs, statistics)
    field = Field(
        backend=networks.backend, calibration=statistics, costs=costs, num_images=images, seed=seed,
        batch_size=batch_size, aim=aim,
    )  # fmt: skip
    there = [one for one in known(place, statistics) if one.is_fitted and not field.seen.overlaps_any(one.fitted_on)]
    kept = f"What was chosen so far is kept in {folder}; the same command goes on from there."
    with making(folder, say), keeping(lambda: kept), stages() as on_stage:
        joint: JointFit | None = None
        if fit:
            network, second = load_networks(place, said, check_device(device))
            spec = FitSpec(autocast=wants_autocast(None, torch.device(device)))
            joint = JointFit(network, statistics, costs, spec, folder=place.fit_path, on_stage=on_stage, guide=second)
        contests = comparison(field, targets, chosen, there, folder, on_stage=on_stage, joint=joint)
    numbers = facts(contests, field, machine(networks.backend, batch_size))
    page = write_comparison(contests, field, numbers, folder)
    if not json:
        for contest in contests:
            _print(contest, aim)
    emit(
        numbers | {"page": str(page)},
        as_json=json,
        text=f"dB on {images} images of seed {seed}, which nothing was calibrated, fitted or chosen on; costs are "
        f"{costs.unit} ({costs.conditions}), 1 is the unshared sampler.\nMade: {page}, {folder / COMPARISON_NAME}\n"
        f"{following('ddt-accel optimize', workspace=place.folder, device=device)}",
    )


def _rivals(only: str | None, every: tuple[Rival, ...]) -> list[Rival]:
    from ddt_accel.errors import ConfigError

    if only is None:
        return list(every)
    wanted = [name.strip().lower() for name in only.split(",")]
    by_name = {rival.name.lower(): rival for rival in every}
    if unknown := [name for name in wanted if name not in by_name]:
        raise ConfigError(f"--rivals has {unknown[0]!r}; there are {', '.join(rival.name for rival in every)}.")
    return [by_name[name] for name in dict.fromkeys(wanted)]


def _targets(cost: str | None, milliseconds: str | None, costs: Costs, statistics: Calibration) -> list[float]:
    """The costs that are asked for, in terms of the unshared sampler."""
    from ddt_accel.errors import ConfigError
    from ddt_accel.evaluation.costs import SECONDS
    from ddt_accel.schedule import Schedule

    if cost is not None and milliseconds is not None:
        raise ConfigError("--cost and --ms both say what schedules may cost; give one of them.")
    if milliseconds is None:
        return _numbers("--cost", DEFAULT_COSTS if cost is None else cost)
    if costs.unit != SECONDS:
        raise ConfigError(
            "--ms needs times that were measured here, and there are none; run `ddt-accel bench` or `ddt-accel "
            "optimize` first, or give --cost."
        )
    unit = 1000 * costs.of(Schedule.full(statistics.spec))
    return [value / unit for value in _numbers("--ms", milliseconds)]


def _numbers(option: str, text: str) -> list[float]:
    from ddt_accel.errors import ConfigError

    try:
        return sorted({float(part) for part in text.split(",")})
    except ValueError:
        raise ConfigError(f"{option} is {text!r}; give numbers with commas between them: {DEFAULT_COSTS}.") from None


def _print(contest: Contest, aim: str) -> None:
    from rich.table import Table

    from ddt_accel.comparison.contest import REFERENCE
    from ddt_accel.comparison.ours import FITTED
    from ddt_accel.report.comparison import ordered, told

    title = "dB to the reference solution" if aim == REFERENCE else "dB to the unshared sampler"
    other = "to the unshared sampler" if aim == REFERENCE else "to the reference solution"
    table = Table(
        f"at cost {contest.cost:.3g}", "settings", "runs", "cost", "ms per image", title, "ours ahead by", other
    )
    for row in ordered(contest, aim):
        best = contest.ours
        behind = "" if best is None or row is best else told(best.ahead_of(row, aim), sign=True)
        schedule = row.entry.schedule
        table.add_row(
            row.entry.name,
            row.entry.settings,
            f"{schedule.budget} of {schedule.spec.num_evaluations}",
            f"{row.cost:.3f}",
            f"{1000 * row.seconds:.1f}",
            told(row.interval(aim)),
            behind,
            told(row.interval("unshared" if aim == REFERENCE else REFERENCE)),
        )
    if contest.rows:
        show(table)
    if contest.missing:
        fits = " --fit makes fits." if FITTED in contest.missing else ""
        say(f"No schedule for a cost of {contest.cost:.3g}: {', '.join(contest.missing)}.{fits}")
