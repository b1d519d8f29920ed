"""`bench`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ddt_accel.cli.console import emit, following, given, say, show, stages
from ddt_accel.cli.networks import BackendOption, Opened, open_networks
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
    model_options,
)

if TYPE_CHECKING:
    from ddt_accel.calibration.statistics import Calibration
    from ddt_accel.evaluation.budgets import Target
    from ddt_accel.evaluation.costs import Costs
    from ddt_accel.evaluation.fidelity import Interval
    from ddt_accel.report.study import Study
    from ddt_accel.schedule import Schedule


def bench(
    workspace: WorkspaceOption = DEFAULT_WORKSPACE,
    calibration: Annotated[Path | None, typer.Option(help="A calibration file.")] = None,
    schedule: Annotated[Path | None, typer.Option(help="A schedule file, or the name of a shipped one.")] = None,
    backend: BackendOption = "onnx",
    export_folder: Annotated[Path | None, typer.Option("--export", help="An export folder.")] = None,
    model: ModelOption = None,
    config: ConfigOption = None,
    weights: WeightsOption = None,
    latent_shape: LatentOption = None,
    guide: GuideOption = None,
    device: DeviceOption = "cpu",
    threads: ThreadsOption = None,
    images: Annotated[int, typer.Option("--images", "-n", help="Held-out images for the table.")] = 64,
    curve_images: Annotated[int, typer.Option(help="Held-out images for the curve over the budgets.")] = 16,
    seed: Annotated[int, typer.Option(help="Seed of the held-out images; not the calibrated one.")] = 1,
    batch_size: BatchOption = 16,
    budget_ms: Annotated[
        float | None, typer.Option(help="The report begins with what ends closest in so many milliseconds per image.")
    ] = None,
    speedup: Annotated[float | None, typer.Option(help="The same, for so many times the speed.")] = None,
    min_psnr: Annotated[float | None, typer.Option(help="The same: with the fastest of at least so many dB.")] = None,
    folder: Annotated[
        Path | None, typer.Option("--out", help="Folder for the report; the workspace by default.")
    ] = None,
    json: JsonOption = False,
) -> None:
    """Measure speed and fidelity, and write the report."""
    from ddt_accel.artifacts import check_writable
    from ddt_accel.errors import ArtifactError, ConfigError
    from ddt_accel.evaluation.budgets import Target
    from ddt_accel.locks import making
    from ddt_accel.workspace import Workspace

    if images < 2 or curve_images < 2 or batch_size < 1:
        raise ConfigError(
            f"--images is {images}, --curve-images {curve_images} and --batch-size {batch_size}; an interval needs at "
            "least 2 images, and a batch 1."
        )
    target = Target(milliseconds=budget_ms, speedup=speedup, psnr=min_psnr)
    place = Workspace(workspace, say)
    check_writable((folder or place.folder) / "report.html")
    keeps = True
    try:
        check_writable(place.costs_path)
    except ArtifactError as error:
        keeps = False
        say(f"What the parts take is not kept for `solve --target-ms` and `plan`: {error}")
    said = model_options(model, config, weights, latent_shape, guide)
    networks = open_networks(place, backend, export_folder, said, device, batch_size)
    statistics, plan = place.calibration(calibration), place.schedule(schedule)
    with making((folder or place.folder) / "report.html", say):  # two at once would measure each other
        study = _study(networks, statistics, plan, target, images, curve_images, seed, batch_size)
        if keeps:
            _costs(study, networks, batch_size).save(place.costs_path)
        used = f" --backend {networks.option}{given('--export', export_folder)}{given('--schedule', schedule)}"
        _report(study, folder or place.folder, f"ddt-accel sample{used}", workspace, device, as_json=json)


def _study(
    networks: Opened,
    statistics: Calibration,
    plan: Schedule,
    target: Target,
    images: int,
    curve_images: int,
    seed: int,
    batch_size: int,
) -> Study:
    from ddt_accel.report.study import conduct

    with stages() as on_stage:
        return conduct(
            networks.backend,
            statistics,
            plan,
            model_name=networks.name,
            latent_shape=networks.latent_shape,
            num_images=images,
            curve_images=curve_images,
            seed=seed,
            batch_size=batch_size,
            on_stage=on_stage,
            target=target,
        )


def _costs(study: Study, networks: Opened, batch_size: int) -> Costs:
    """What the parts of a trajectory were measured to take, for `solve --target-ms` and `plan`."""
    from ddt_accel.evaluation.costs import counted_of, measured_costs
    from ddt_accel.evaluation.timing import timed_costs
    from ddt_accel.report.study import UNSHARED

    by_name = {m.name: m for m in study.measurements}
    told = ", ".join(study.conditions[key] for key in ("backend", "device", "machine", "batch"))
    counted = counted_of(networks.backend, networks.latent_shape)
    unshared, chosen = by_name[UNSHARED], by_name[study.chosen]
    costs = measured_costs(unshared, study.calibrated, chosen, study.schedule, told, counted)
    if costs.narrow:
        timed = timed_costs(networks.backend, study.calibrated, networks.latent_shape, batch_size, told)
        costs = costs.with_narrow_of(timed)
    return costs.named(networks.backend)


def _report(study: Study, folder: Path, then: str, workspace: Path, device: str, *, as_json: bool) -> None:
    from rich.table import Table

    from ddt_accel.report.render import as_json as numbers
    from ddt_accel.report.render import write_report
    from ddt_accel.report.words import busy, pays

    page, *_ = write_report(study, folder)
    if not as_json:
        replayed = any(m.call_seconds is not None for m in study.measurements)
        columns = ["schedule", "encoder runs", "ms per image"] + ["call by call, ms"] * replayed
        columns += ["speed-up", "ideal", "PSNR, dB", "relative L2"]
        table = Table(*columns, *(["to the reference, dB"] if study.limits else []))
        for m in study.measurements:
            table.add_row(
                m.name,
                f"{len(m.refresh_steps)} of {m.num_evaluations}",
                f"{m.seconds * 1000:.1f}",
                *(["-" if m.call_seconds is None else f"{m.call_seconds * 1000:.1f}"] if replayed else []),
                f"{m.speedup:.2f}×",
                f"{m.ideal_speedup:.2f}×",
                _mean(m.psnr, 1) if m.psnr_values else "no pixels",
                _mean(m.relative_l2, 3),
                *([_mean(study.limit[m.name], 1)] if study.limits else []),
            )
        show(table)
    verdict, why = pays(study)
    told = [busy(study), f"Does sharing pay here? {verdict}. {why}", f"Report: {page}"]
    emit(
        {**numbers(study), "report": str(page)},
        as_json=as_json,
        text="\n".join([*filter(None, told), following(then, workspace=workspace, device=device)]),
    )


def _mean(value: Interval | None, digits: int) -> str:
    """A mean with half the width of its interval, or what stands for identical images."""
    return f"{value.mean:.{digits}f} ± {(value.high - value.low) / 2:.{digits}f}" if value else "identical"
