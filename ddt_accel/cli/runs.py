"""`export` and `sample`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ddt_accel.cli.console import emit, following, given, keeping, say, stages, steps
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
    SeedOption,
    ThreadsOption,
    WeightsOption,
    WorkspaceOption,
    model_options,
)

if TYPE_CHECKING:
    from ddt_accel.spec import SamplingSpec

DEFAULT_BATCH = "1:8:32"


def export(
    as_engines: Annotated[
        bool, typer.Option("--trt/--onnx", help="TensorRT engines, or ONNX files (the default).")
    ] = False,
    workspace: WorkspaceOption = DEFAULT_WORKSPACE,
    model: ModelOption = None,
    config: ConfigOption = None,
    weights: WeightsOption = None,
    latent_shape: LatentOption = None,
    guide: GuideOption = None,
    precision: Annotated[
        str | None, typer.Option(help="bf16 (engines only, their default), fp16, or fp32 (the default of ONNX).")
    ] = None,
    cache: Annotated[
        str, typer.Option(help="What is kept between refreshes: modulations; or state, smaller, with --sources.")
    ] = "modulations",
    sources: Annotated[
        int | None,
        typer.Option(
            help="Forecast inside the decoder, from 1 to 3 states; engines do, from 2, and ONNX files where a GPU is."
        ),
    ] = None,
    engine: Annotated[
        str,
        typer.Option(help="tensorrt, which needs the GPU; tensorrt-rtx, for RTX cards, which builds without; or auto."),
    ] = "auto",
    batch: Annotated[
        str, typer.Option(help="Images an engine is for, min:opt:max; several profiles by commas.")
    ] = DEFAULT_BATCH,
    optimization_level: Annotated[int | None, typer.Option(help="Of the engine builder, 0 to 5.")] = None,
    workspace_gib: Annotated[
        float | None, typer.Option(help="Of GPU memory, that a layer of an engine may use.")
    ] = None,
    version_compatible: Annotated[bool, typer.Option(help="Engines for later TensorRT versions, too.")] = False,
    hardware_compatible: Annotated[bool, typer.Option(help="Engines for other GPUs since Ampere, too.")] = False,
    out: Annotated[Path | None, typer.Option(help="Folder to write to; in the workspace by default.")] = None,
    json: JsonOption = False,
) -> None:
    """Write encoder and decoder as two networks of their own, compared with PyTorch."""
    from dataclasses import asdict

    import torch

    from ddt_accel.artifacts import check_writable
    from ddt_accel.exporting.engines import EngineOptions
    from ddt_accel.exporting.export import checked_cut
    from ddt_accel.exporting.export import export as run
    from ddt_accel.workspace import Workspace

    place = Workspace(workspace)
    settings = (engine, batch, optimization_level, workspace_gib, version_compatible, hardware_compatible)
    wanted = as_engines or settings != ("auto", DEFAULT_BATCH, None, None, False, False)
    options = EngineOptions(
        engine=engine,
        batches=EngineOptions.parse_batches(batch),
        optimization_level=optimization_level,
        workspace_gib=workspace_gib,
        version_compatible=version_compatible,
        hardware_compatible=hardware_compatible,
        timing_cache=place.timing_path,
    )
    said = model_options(model, config, weights, latent_shape, guide)
    format, engines = "tensorrt" if as_engines else "onnx", options if wanted else None
    precision = precision or ("bf16" if as_engines else "fp32")
    sources = checked_cut(format, precision, cache, sources, engines, on_gpu=torch.cuda.is_available()).sources
    folder = out or (place.engines_path if as_engines else place.export_path)
    check_writable(folder / "manifest.json")
    network, second = load_networks(place, said, "cpu")
    with keeping(lambda: "Nothing of this export is kept, and an earlier one is as it was."), stages() as on_stage:
        manifest = run(
            network,
            folder,
            format=format,
            precision=precision,
            cache=cache,
            sources=sources,
            engines=engines,
            on_stage=on_stage,
            say=say,
            guide=second,
        )
    made = f"Exported to {folder} in {manifest.precision}"
    if manifest.engine is not None:
        where = manifest.engine.gpu or "all RTX cards since Ampere"
        made = f"Built engines in {folder} in {manifest.precision}, by {manifest.engine.library} "
        made += f"{manifest.engine.version} for {where}; not verified: they have not been run"
    made += ", and so its guide, in guide/ there" if second is not None else ""
    run_by = (" --backend trt --device cuda" if as_engines else "") + given("--export", out)
    then = ["ddt-accel optimize --speedup 5"]
    if place.schedule_path.exists():
        then = [f"ddt-accel bench{run_by}", f"ddt-accel sample{run_by}"]
    measured = "of PyTorch in bf16" if manifest.precision == "bf16" else "of the ONNX files"
    emit(
        {
            "export": str(folder),
            "precision": manifest.precision,
            "parity": manifest.parity,
            "engine": manifest.engine and asdict(manifest.engine),
            "files": manifest.files,
            "guide_sha256": manifest.guide_sha256,
        },
        as_json=json,
        text=f"{made}\nLargest error against PyTorch in fp32, {measured} (relative): encoder "
        f"{manifest.parity['encoder']:.1e}, decoder {manifest.parity['decoder']:.1e}"
        f"\n{following(*then, workspace=workspace)}",
    )


def sample(
    images: Annotated[int, typer.Option("--images", "-n", help="How many images.")] = 16,
    seed: SeedOption = 0,
    labels: Annotated[
        str | None, typer.Option(help="Class numbers or names, separated by commas; used in turn. Default: all.")
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
    npz: Annotated[
        Path | None, typer.Option(help="Also write arr_0, uint8 NHWC, as ADM's evaluation reads it.")
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
    json: JsonOption = False,
) -> None:
    """Draw images along the schedule."""
    import time

    import torch

    from ddt_accel.artifacts import check_writable
    from ddt_accel.backends.decoders import open_decoder
    from ddt_accel.backends.sampler import Sampler
    from ddt_accel.errors import ArtifactError, ConfigError
    from ddt_accel.locks import making
    from ddt_accel.report.samples import SampleWriter
    from ddt_accel.sampling.noise import draw_noise, draw_step_noise
    from ddt_accel.workspace import Workspace

    if images < 1 or batch_size < 1:
        raise ConfigError(f"--images is {images} and --batch-size {batch_size}; give at least 1 of each.")
    place = Workspace(workspace, say)
    plan = place.schedule(schedule)
    check_asked(plan.spec, schedule or place.schedule_path, steps_wanted, guidance)
    if full:
        plan = plan.unshared()
    folder = out or place.samples_path
    for path in (folder / "000000.png", npz):
        if path is not None:
            check_writable(path)
    said = model_options(model, config, weights, latent_shape, guide)
    opened = open_networks(place, backend, export_folder, said, device, min(batch_size, images))
    networks, shape = opened.backend, opened.latent_shape
    classes = parse_labels(labels, networks.config.num_classes, opened.class_names)
    pixels = networks.config.pixel_space
    if decoder is not None and pixels:
        raise ConfigError("--decoder makes pictures of latents, and this model draws pictures itself; leave it out.")
    decode = open_decoder(decoder, shape, device=device) if decoder is not None else None
    sampler = Sampler(networks, plan, latent_shape=shape, batch_size=batch_size)
    seconds, compiling_before = 0.0, getattr(networks, "compile_seconds", 0.0)
    with making(folder, say) as alone:
        writer = SampleWriter(
            folder, npz, count=images, pixels=pixels or decode is not None, ours=out is None and alone
        )
        with keeping(writer.kept), writer, steps("sampling", images) as bar:
            for start in range(0, images, batch_size):
                indices = range(start, min(images, start + batch_size))
                chosen = torch.tensor([classes[index % len(classes)] for index in indices])
                noise = draw_noise(shape, seed=seed, indices=indices)
                step_noise = draw_step_noise(shape, seed=seed, indices=indices)
                started = time.perf_counter()
                latents = sampler.draw(noise, chosen, step_noise=step_noise).cpu()
                seconds += (time.perf_counter() - started) / images
                writer.add(latents if decode is None else decode(latents).cpu())
                bar.to(indices.stop)
        sheet = None
        try:
            sheet = writer.write_sheet(classes, opened.class_names)
        except ArtifactError as error:
            say(f"There is no contact sheet: {error}")
    if left := writer.left():
        say(
            f"{folder} still holds {len(left)} pictures of an earlier, longer run, {left[0]} to {left[-1]}, which are "
            "none of these; remove them, or give another --out."
        )
    compiling = getattr(networks, "compile_seconds", 0.0) - compiling_before
    seconds -= compiling / images
    then = "ddt-accel status" if (place.folder / "report.json").exists() else f"ddt-accel bench --backend {backend}"
    emit(
        {
            "folder": str(folder),
            "contact_sheet": sheet and str(sheet),
            "images": images,
            "seconds_per_image": seconds,
            "compile_seconds": compiling,
            "files": [str(path) for path in writer.files()],
        },
        as_json=json,
        text=f"{images} image{'' if images == 1 else 's'}, {seconds:.3f} s each, "
        f"{plan.budget} encoder runs of {plan.spec.num_evaluations}"
        + (f", compiled in {compiling:.0f} s before" if compiling else "")
        + f" → {folder}"
        + (f"\nAt a glance: {sheet}" if sheet else "")
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


def parse_labels(text: str | None, num_classes: int, names: tuple[str, ...] | None) -> list[int]:
    """Class numbers from numbers or names; all classes where nothing is given."""
    from ddt_accel.errors import ConfigError

    if text is None:
        return list(range(num_classes))
    chosen = []
    for part in (part.strip() for part in text.split(",")):
        if names and part in names:
            chosen.append(names.index(part))
        elif part.isdecimal() and int(part) < num_classes:
            chosen.append(int(part))
        else:
            known = f" or one of {', '.join(names)}" if names else ""
            raise ConfigError(f"--labels has {part!r}; give numbers from 0 to {num_classes - 1}{known}.")
    return chosen
