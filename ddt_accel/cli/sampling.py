"""`sample`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ddt_accel.cli.console import emit, following, say
from ddt_accel.cli.networks import BackendOption, open_networks
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
    model_options,
)

if TYPE_CHECKING:
    from ddt_accel.sampling.labels import Labels
    from ddt_accel.spec import SamplingSpec

MOST_PNGS = 1000  # images that are PNGs where nobody says whether they shall be


def sample(
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
    decoder: Annotated[
        str | None,
        typer.Option(
            "--decoder",
            "--vae",
            help="Makes pictures of latents: the folder or Hugging Face repository of an autoencoder, Stable "
            "Diffusion's or RAE's, or RAE's YAML.",
        ),
    ] = None,
    decode_batch: Annotated[
        int | None, typer.Option("--decode-batch", min=1, help="Latents that --decoder takes at a time.")
    ] = None,
    json: JsonOption = False,
) -> None:
    """Draw images along the schedule."""
    from ddt_accel.artifacts import check_writable
    from ddt_accel.backends.decoders import BATCH, decoder_sha256, open_decoder
    from ddt_accel.backends.sampler import Sampler
    from ddt_accel.cli.drawing import Wanted, draw_few, draw_many
    from ddt_accel.drawing.drawer import Drawer
    from ddt_accel.drawing.identity import RunIdentity, backend_identity, schedule_identity
    from ddt_accel.drawing.plain_folder import check_pixels
    from ddt_accel.drawing.run_folder import MANY, check_no_run
    from ddt_accel.errors import ConfigError
    from ddt_accel.workspace import Workspace

    if images < 1 or batch_size < 1:
        raise ConfigError(f"--images is {images} and --batch-size {batch_size}; give at least 1 of each.")
    if decode_batch is not None and decoder is None:
        raise ConfigError("--decode-batch is of --decoder, and there is none; give that, too, or leave both out.")
    place = Workspace(workspace, say)
    plan = place.schedule(schedule)
    check_asked(plan.spec, schedule or place.schedule_path, steps_wanted, guidance)
    if full:
        plan = plan.unshared()
    many = images > MANY
    folder = out or (place.images_path if many else place.samples_path)
    if not many:
        check_no_run(folder)
    for path in (folder / "000000.png", npz):
        if path is not None:
            check_writable(path)
    said = model_options(model, config, weights, latent_shape, guide)
    opened = open_networks(place, backend, export_folder, said, device, min(batch_size, images))
    chosen = parse_labels(labels, opened.backend.config.num_classes, opened.class_names)
    draws_pixels = opened.backend.config.pixel_space
    if decoder is not None and draws_pixels:
        raise ConfigError("--decoder makes pictures of latents, and this model draws pictures itself; leave it out.")
    pixels = draws_pixels or decoder is not None
    check_pixels(npz, pixels)
    if png and not pixels:
        raise ConfigError("--png is for pictures, but these are latents; give the model's autoencoder with --decoder.")
    if png is False and npz is None and pixels and not many:
        raise ConfigError("--no-png without --npz would leave nothing of what is drawn; give --npz, too.")
    decode = None
    if decoder is not None:
        decode = open_decoder(decoder, opened.latent_shape, device=device, batch_size=decode_batch or BATCH)
    sampler = Sampler(opened.backend, plan, latent_shape=opened.latent_shape, batch_size=batch_size)
    drawer = Drawer(
        sampler,
        chosen,
        seed=seed,
        pixels=pixels,
        decode=decode,
        decode_batch=None if decode is None else decode.batch_size,
    )
    wanted = Wanted(
        folder=folder,
        images=images,
        npz=npz,
        png=pixels and (images <= MOST_PNGS if png is None else png),
        ours=out is None,
        class_names=opened.class_names,
    )
    compiling_before = getattr(opened.backend, "compile_seconds", 0.0)
    if many:
        identity = RunIdentity(
            seed=seed,
            labels=chosen.described,
            **schedule_identity(plan),
            latents=",".join(map(str, opened.latent_shape)),
            checkpoint_sha256=opened.backend.checkpoint_sha256,
            guide_sha256=None if opened.backend.guide is None else opened.backend.guide.checkpoint_sha256,
            backend=backend_identity(opened.backend.name),
            decoder_sha256=None if decode is None else decoder_sha256(decode),
        )
        drawn = draw_many(wanted, drawer, identity)
    else:
        drawn = draw_few(wanted, drawer)
    compiling = getattr(opened.backend, "compile_seconds", 0.0) - compiling_before
    each = (drawer.seconds - compiling) / drawn.images if drawn.images else None
    then = "ddt-accel status" if (place.folder / "report.json").exists() else f"ddt-accel bench --backend {backend}"
    emit(
        {
            "folder": str(folder),
            "contact_sheet": drawn.sheet and str(drawn.sheet),
            "images": images,
            "drawn": drawn.images,
            "seconds_per_image": each,
            "compile_seconds": compiling,
            "files": [str(path) for path in drawn.files],
        },
        as_json=json,
        text=f"{images} image{'' if images == 1 else 's'}, "
        + (f"{each:.3f} s each, " if each is not None else "all of them drawn before, ")
        + f"{plan.budget} encoder runs of {plan.spec.num_evaluations}"
        + (f", compiled in {compiling:.0f} s before" if compiling else "")
        + f" → {folder}"
        + (f"\nAt a glance: {drawn.sheet}" if drawn.sheet else "")
        + f"\n{following(then, workspace=workspace)}",
    )


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


def parse_labels(text: str | None, num_classes: int, names: tuple[str, ...] | None) -> Labels:
    """Labels of words, or of class numbers or names, which images take in turn; equal where nothing is given."""
    from ddt_accel.errors import ConfigError
    from ddt_accel.sampling.labels import Labels

    if text is None or text.strip() == "equal":
        return Labels.equal(num_classes)
    if text.strip() == "random":
        return Labels.random(num_classes)
    numbers = {name: number for number, name in reversed(list(enumerate(names or ())))}
    chosen = []
    for part in (part.strip() for part in text.split(",")):
        if part in numbers:
            chosen.append(numbers[part])
        elif part.isdecimal() and int(part) < num_classes:
            chosen.append(int(part))
        else:
            known = f" or one of {', '.join(names)}" if names else ""
            raise ConfigError(
                f"--labels has {part!r}; give equal, random, or numbers from 0 to {num_classes - 1}{known}."
            )
    return Labels(num_classes=num_classes, in_turn=tuple(chosen))
