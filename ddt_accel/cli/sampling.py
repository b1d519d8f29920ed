"""`sample`."""

from __future__ import annotations

import os
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ddt_accel.cli.console import emit, following, say
from ddt_accel.cli.finishing import finish_run
from ddt_accel.cli.networks import BackendOption
from ddt_accel.cli.opening import DecodeBatchOption, DecoderOption
from ddt_accel.cli.options import (
    DEFAULT_WORKSPACE,
    MOST_PNGS,
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
    device_here,
    model_options,
    typed,
)
from ddt_accel.cli.sentences import counted
from ddt_accel.cli.workers import CoresOption, RayOption, WorkersOption, crew_at, site_of

if TYPE_CHECKING:
    from ddt_accel.drawing.shard import Shard
    from ddt_accel.spec import SamplingSpec


def sample(
    context: typer.Context,
    images: Annotated[
        int,
        typer.Option(
            "--images",
            "-n",
            help="How many images. More than 100 are drawn in ranges: the same command goes on.",
        ),
    ] = 16,
    seed: SeedOption = 0,
    labels: Annotated[
        str | None,
        typer.Option(
            help="equal (all classes in turn, the default), random, or class numbers or names separated by commas, "
            "used in turn."
        ),
    ] = None,
    workspace: WorkspaceOption = DEFAULT_WORKSPACE,
    schedule: Annotated[Path | None, typer.Option(help="A schedule file, or the name of a shipped one.")] = None,
    full: Annotated[bool, typer.Option("--full", help="Run the encoder at every step, for comparison.")] = False,
    steps_wanted: Annotated[int | None, typer.Option("--steps", help="Refuse a schedule for other steps.")] = None,
    guidance: Annotated[float | None, typer.Option(help="Refuse a schedule for other guidance.")] = None,
    backend: BackendOption = "onnx",
    export_folder: Annotated[Path | None, typer.Option("--export", help="An export folder.")] = None,
    model: ModelOption = None,
    config: ConfigOption = None,
    weights: WeightsOption = None,
    latent_shape: LatentOption = None,
    guide: GuideOption = None,
    device: DeviceOption = "cpu",
    threads: ThreadsOption = None,
    batch_size: BatchOption = 16,
    out: Annotated[Path | None, typer.Option(help="Folder for the images; in the workspace by default.")] = None,
    png: Annotated[
        bool | None, typer.Option("--png/--no-png", help=f"A PNG of every image; by default of up to {MOST_PNGS}.")
    ] = None,
    npz: Annotated[
        Path | None,
        typer.Option(help="Also write arr_0, uint8 NHWC, and arr_1, the labels, as ADM's evaluation reads them."),
    ] = None,
    decoder: DecoderOption = None,
    decode_batch: DecodeBatchOption = None,
    workers: WorkersOption = None,
    ray: RayOption = None,
    cpus_per_worker: CoresOption = None,
    shard: Annotated[
        str | None,
        typer.Option(
            help="I/N, from 0/N on: draw every N-th range, beside N - 1 others. torchrun and Slurm's arrays say it by "
            "themselves; 0/1 draws all."
        ),
    ] = None,
    finish: Annotated[
        bool, typer.Option("--finish", help="Only check that all ranges of a run are there, and write its npz.")
    ] = False,
    json: JsonOption = False,
) -> None:
    """Draw images along the schedule. Without --backend PyTorch draws where the workspace has no export."""
    from ddt_accel.workspace import Workspace

    place = Workspace(workspace, say)
    if finish:
        finish_run(context, place, out or place.images_path)
        return

    from ddt_accel.artifacts import check_writable
    from ddt_accel.backends.manifest import FILE_NAME as EXPORT_FILE
    from ddt_accel.cli.drawers import DrawerSettings, open_drawer
    from ddt_accel.cli.drawing import Drawn, Wanted, as_png, draw_few, draw_many
    from ddt_accel.cli.hands import Here, Workers
    from ddt_accel.drawing.plain_folder import check_pixels
    from ddt_accel.drawing.run_folder import MANY, check_no_run
    from ddt_accel.errors import ConfigError
    from ddt_accel.locks import joining

    if images < 1 or batch_size < 1:
        raise ConfigError(f"--images is {images} and --batch-size {batch_size}; give at least 1 of each.")
    if decode_batch is not None and decoder is None:
        raise ConfigError("--decode-batch is of --decoder, and there is none; give that, too, or leave both out.")
    many = images > MANY
    site = site_of(workers, ray, cpus_per_worker, device)
    part = _part(shard)
    if not many and (shard is not None or site is not None):
        raise ConfigError(
            f"--images is {images}, and up to {MANY} are drawn by one process; leave out --shard, --workers and --ray."
        )
    if not many and part is not None and part.index:
        emit(
            Drawn(images=0, sheet=None, files=[]).facts(out or place.samples_path, images),
            as_json=json,
            text=f"Nothing to do: up to {MANY} images are drawn by one process, and this is another.",
        )
        return
    if not many:
        part = None  # of a launcher's processes the first draws all
    elif part is not None and shard is None:
        say(f"This is process {part.index} of {part.count}, by {part.told_by}: it draws one range in {part.count}.")
    plan = place.schedule(schedule)
    check_asked(plan.spec, schedule or place.schedule_path, steps_wanted, guidance)
    if full:
        plan = plan.unshared()
    folder = out or (place.images_path if many else place.samples_path)
    if many:
        with joining(folder, alone=part is None):  # before anything is loaded, whether another process is in the way
            pass
    else:
        check_no_run(folder)
    for path in (folder / "000000.png", npz):
        if path is not None:
            check_writable(path)
    if not typed(context, "backend") and export_folder is None and not (place.export_path / EXPORT_FILE).exists():
        backend = "torch"
        say(f"{place.folder} has no export: drawing by PyTorch. --backend auto finds what is fastest here.")
    settings = DrawerSettings(
        workspace=workspace,
        said=model_options(model, config, weights, latent_shape, guide),
        schedule=plan,
        backend=backend,
        export_folder=export_folder,
        device=device if site is not None else device_here(device),
        threads=threads,
        seed=seed,
        labels=labels,
        batch_size=batch_size,
        at_once=min(batch_size, images),
        decoder=decoder,
        decode_batch=decode_batch,
    )
    with ExitStack() as stack:
        hands = (
            Here(open_drawer(settings))
            if site is None
            else Workers(stack.enter_context(crew_at(site)), settings.anywhere())
        )
        pictures = hands.told.pictures
        check_pixels(npz, pictures)
        if png and not pictures:
            raise ConfigError(
                "--png is for pictures, but these are latents; give the model's autoencoder with --decoder."
            )
        if png is False and npz is None and pictures and not many:
            raise ConfigError("--no-png without --npz would leave nothing of what is drawn; give --npz, too.")
        wanted = Wanted(
            folder=folder,
            images=images,
            npz=npz,
            png=pictures and as_png(png, images),
            ours=out is None,
            class_names=hands.told.class_names,
        )
        if isinstance(hands, Here) and not many:
            drawn = draw_few(wanted, hands.opened.drawer)
        else:
            drawn = draw_many(wanted, hands, part)
    each = hands.seconds / drawn.images if drawn.images else None
    compiling = hands.compile_seconds
    then = "ddt-accel status" if (place.folder / "report.json").exists() else f"ddt-accel bench --backend {backend}"
    emit(
        {
            **drawn.facts(folder, images),
            "seconds_per_image": each,
            "compile_seconds": compiling,
            **({"shard": str(part)} if part is not None else {}),
            **hands.facts(),
        },
        as_json=json,
        text=(f"Shard {part} of " if part is not None else "")
        + f"{images} image{'' if images == 1 else 's'}, "
        + (f"{each:.3f} s each, " if each is not None else "all of them drawn before, ")
        + f"{counted(plan.budget, 'encoder run')} of {plan.spec.num_evaluations}"
        + (f", compiled in {compiling:.0f} s before" if compiling else "")
        + f" → {folder}"
        + (f"\nAt a glance: {drawn.sheet}" if drawn.sheet else "")
        + f"\n{following(then, workspace=workspace)}",
    )


def _part(shard: str | None) -> Shard | None:
    """What this process draws of a run, as was said or as its environment has it; None for all of it."""
    from ddt_accel.drawing.shard import parse_shard, shard_of

    return shard_of(os.environ, say) if shard is None else parse_shard(shard)


def check_asked(spec: SamplingSpec, path: Path, steps_wanted: int | None, guidance: float | None) -> None:
    """Refuses a schedule for other sampling than --steps and --guidance ask for."""
    from ddt_accel.errors import MismatchError

    if steps_wanted is not None and steps_wanted != spec.num_steps:
        raise MismatchError(
            f"--steps is {steps_wanted}, but {path} is a schedule for {spec.num_steps} steps; leave --steps out to "
            f"sample in {spec.num_steps}, or make one with `ddt-accel solve --steps {steps_wanted}`."
        )
    if guidance is not None and guidance != spec.guidance:
        raise MismatchError(
            f"--guidance is {guidance:g}, but {path} is a schedule for guidance {spec.guidance:g}; leave --guidance "
            f"out to sample with that, or make one with `ddt-accel calibrate --guidance {guidance:g}`, then "
            "`ddt-accel solve`."
        )
