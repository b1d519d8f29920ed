"""`calibrate`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ddt_accel.cli.console import emit, following, given, keeping, say, say_threads, stages
from ddt_accel.cli.networks import load_networks
from ddt_accel.cli.options import (
    DEFAULT_WORKSPACE,
    BatchOption,
    ConfigOption,
    DeviceOption,
    GuideOption,
    JsonOption,
    LatentOption,
    ModelOption,
    SeedOption,
    ThreadsOption,
    WeightsOption,
    WorkspaceOption,
    check_device,
    model_options,
)
from ddt_accel.cli.recipes import (
    ClosedOption,
    EndOption,
    GuidanceOption,
    IntervalOption,
    LastStepOption,
    LikeOption,
    ShiftOption,
    SolverOption,
    StepsOption,
    recipe_like,
    sampling_of,
    sampling_said,
)
from ddt_accel.cli.workers import CoresOption, RayOption, WorkersOption, crew_at, site_of

if TYPE_CHECKING:
    from ddt_accel.calibration.statistics import Calibration
    from ddt_accel.cli.calibrators import CalibratorSettings, Told
    from ddt_accel.cluster.instance import Site
    from ddt_accel.networks.split import SplitNetwork
    from ddt_accel.sampling.noise import ImageRange
    from ddt_accel.spec import SamplingSpec
    from ddt_accel.workspace import Workspace


def calibrate(
    workspace: WorkspaceOption = DEFAULT_WORKSPACE,
    model: ModelOption = None,
    config: ConfigOption = None,
    weights: WeightsOption = None,
    latent_shape: LatentOption = None,
    guide: GuideOption = None,
    like: LikeOption = None,
    steps: StepsOption = None,
    solver: SolverOption = None,
    guidance: GuidanceOption = None,
    guidance_interval: IntervalOption = None,
    closed_interval: ClosedOption = None,
    timeshift: ShiftOption = None,
    last_step: LastStepOption = None,
    end: EndOption = None,
    samples: Annotated[int, typer.Option(min=1, help="Sample trajectories to average over.")] = 64,
    sensitivity_samples: Annotated[
        int,
        typer.Option(
            min=0,
            help="On how many of them errors are followed to the picture; each costs 40 trajectories, with nested "
            "widths 90.",
        ),
    ] = 8,
    seed: SeedOption = 0,
    batch_size: BatchOption = 8,
    device: DeviceOption = "cpu",
    threads: ThreadsOption = None,
    out: Annotated[Path | None, typer.Option(help="Where to write; in the workspace by default.")] = None,
    workers: WorkersOption = None,
    ray: RayOption = None,
    cpus_per_worker: CoresOption = None,
    json: JsonOption = False,
) -> None:
    """Measure how the encoder's state changes along unshared trajectories."""
    from ddt_accel.artifacts import check_writable
    from ddt_accel.calibration.statistics import widths_of
    from ddt_accel.cli.calibrators import CalibratorSettings
    from ddt_accel.workspace import Workspace

    sampling = sampling_said(
        num_steps=steps,
        solver=solver,
        guidance=guidance,
        guidance_interval=guidance_interval,
        closed_interval=closed_interval,
        timeshift=timeshift,
        last_step=last_step,
        end=end,
    )
    place = Workspace(workspace)
    path = out or place.calibration_path
    said = model_options(model, config, weights, latent_shape, guide)
    recipe = recipe_like(like, sampling, guided=place.chosen(said).guide is not None)
    site = site_of(workers, ray, cpus_per_worker, device)
    device = device if site is not None else check_device(device)
    for needed in (path, place.partial_path):
        check_writable(needed)
    if site is not None:
        settings = CalibratorSettings(
            workspace=workspace.absolute(),
            said=said,
            recipe=recipe,
            sampling=sampling,
            device=device,
            threads=threads,
            batch_size=batch_size,
            sensitivity_samples=sensitivity_samples,
        )
        calibration = _by_workers(place, site, settings.anywhere(), samples=samples, seed=seed, out=path)
    else:
        say_threads(threads, device)
        network, second = load_networks(place, said, device)
        calibration = run_calibration(
            place,
            network,
            sampling_of(network, recipe, sampling, guided=second is not None),
            guide=second,
            samples=samples,
            sensitivity_samples=sensitivity_samples,
            seed=seed,
            batch_size=batch_size,
            out=path,
        )
    spec = calibration.spec
    widths = list(widths_of(calibration))
    with_widths = " --widths" if len(widths) > 1 else ""
    solving = f"ddt-accel solve{with_widths} --budget {max(1, spec.num_evaluations // 5)}{given('--calibration', out)}"
    emit(
        {
            "calibration": str(path),
            "samples": calibration.num_samples,
            "evaluations": spec.num_evaluations,
            "widths": widths,
            "mean_neighbour_similarity": float(calibration.similarity.diagonal(1).mean())
            if spec.num_evaluations > 1
            else 1.0,
        },
        as_json=json,
        text=f"Calibrated on {calibration.num_samples} trajectories of {spec.num_evaluations} steps → {path}\n"
        + following(*([] if out else ["ddt-accel optimize --speedup 5"]), solving, workspace=workspace, device=device),
    )


def run_calibration(
    place: Workspace, network: SplitNetwork, spec: SamplingSpec, *, out: Path, **settings: Any
) -> Calibration:
    """Calibrates in turn with other processes of this workspace, whose beginnings lie in one place."""
    from ddt_accel.locks import making

    with making(place.calibration_path, say):
        return _calibrated(place, network, spec, out=out, **settings)


def _calibrated(
    place: Workspace,
    network: SplitNetwork,
    spec: SamplingSpec,
    *,
    samples: int,
    sensitivity_samples: int,
    seed: int,
    batch_size: int,
    out: Path,
    sensitivity_steps: int | None = None,
    guide: SplitNetwork | None = None,
) -> Calibration:
    """Calibrates with a bar; continues what an interrupted run of the same settings left behind."""
    from ddt_accel.calibration.calibrate import calibrate as run
    from ddt_accel.calibration.calibrate import calibrated_at
    from ddt_accel.cli.calibrators import widths_said
    from ddt_accel.sampling.noise import ImageRange

    partial = place.partial_path
    widths = calibrated_at(network, guide)
    for line in widths_said(widths):
        say(line)
    resume = None
    source, wanted = network.source, ImageRange(seed=seed, first=0, stop=samples)
    if source is not None and source.latent_shape is not None:
        guide_sha256 = guide.source.sha256 if guide is not None and guide.source is not None else None
        resume = _beginning(
            partial, spec, source.sha256, source.latent_shape, wanted, sensitivity_samples, guide_sha256, widths
        )
    kept = resume.num_samples if resume else 0

    def on_batch(done: Calibration) -> None:
        nonlocal kept
        done.save(partial)
        kept = done.num_samples

    def told() -> str:
        if not kept:
            return "No batch of samples was finished; the same command starts anew."
        return f"{kept} of {samples} samples are kept in {partial}; the same command goes on from there."

    with keeping(told), stages() as on_stage:
        calibration = run(
            network,
            spec,
            samples,
            seed,
            batch_size=batch_size,
            sensitivity_samples=sensitivity_samples,
            sensitivity_steps=sensitivity_steps,
            resume=resume,
            on_batch=on_batch,
            on_stage=on_stage,
            guide=guide,
        )
        calibration.save(out)
    partial.unlink(missing_ok=True)
    return calibration


def _by_workers(
    place: Workspace, site: Site, settings: CalibratorSettings, *, samples: int, seed: int, out: Path
) -> Calibration:
    """Calibrates as `run_calibration` does, with a crew."""
    from ddt_accel.cli.calibrators import calibrate_by
    from ddt_accel.locks import making

    def beginning(told: Told, wanted: ImageRange) -> Calibration | None:
        return _beginning(
            place.partial_path,
            told.spec,
            told.checkpoint_sha256,
            told.latent_shape,
            wanted,
            settings.sensitivity_samples,
            told.guide_sha256,
            told.widths,
        )

    with making(place.calibration_path, say), crew_at(site) as crew:
        return calibrate_by(crew, settings, place, samples=samples, seed=seed, out=out, beginning=beginning)


def _beginning(
    partial: Path,
    spec: SamplingSpec,
    checkpoint_sha256: str,
    latent_shape: tuple[int, int, int],
    wanted: ImageRange,
    sensitivity_samples: int,
    guide_sha256: str | None,
    widths: tuple[float, ...],
) -> Calibration | None:
    """What an interrupted run of the same settings has left, if one has; says what becomes of it."""
    from ddt_accel.calibration.calibrate import check_beginning
    from ddt_accel.calibration.statistics import Calibration
    from ddt_accel.errors import ArtifactError, MismatchError

    if not partial.exists():
        return None
    try:
        found = Calibration.load(partial)
        check_beginning(
            found,
            spec,
            checkpoint_sha256,
            latent_shape,
            wanted,
            sensitivity_samples,
            guide_sha256=guide_sha256,
            widths=widths,
        )
    except MismatchError:  # an ArtifactError, too
        say(f"{partial} is of an interrupted calibration with other settings; it is replaced.")
        return None
    except ArtifactError:
        say(f"{partial} is damaged and is not used.")
        return None
    say(f"Continuing an interrupted calibration: {found.num_samples} of {wanted.count} samples are done.")
    return found
