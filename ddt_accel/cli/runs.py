"""`export` and `sample`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ddt_accel.cli.console import emit, stages, steps
from ddt_accel.cli.networks import BackendOption, open_networks
from ddt_accel.cli.options import (
    DEFAULT_WORKSPACE,
    BatchOption,
    ConfigOption,
    DeviceOption,
    JsonOption,
    LatentOption,
    ModelOption,
    SeedOption,
    WeightsOption,
    WorkspaceOption,
    model_options,
)

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
    precision: Annotated[
        str | None, typer.Option(help="bf16 (engines only, their default), fp16, or fp32 (the default of ONNX).")
    ] = None,
    cache: Annotated[
        str, typer.Option(help="What is kept between refreshes: modulations; or state, smaller, with --sources.")
    ] = "modulations",
    sources: Annotated[
        int | None, typer.Option(help="Forecast inside the decoder, from 1 to 3 states; engines do, from 2.")
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

    from ddt_accel.exporting.engines import EngineOptions
    from ddt_accel.exporting.export import export as run
    from ddt_accel.workspace import Workspace

    place = Workspace(workspace)
    given = (engine, batch, optimization_level, workspace_gib, version_compatible, hardware_compatible)
    wanted = as_engines or given != ("auto", DEFAULT_BATCH, None, None, False, False)
    options = EngineOptions(
        engine=engine,
        batches=EngineOptions.parse_batches(batch),
        optimization_level=optimization_level,
        workspace_gib=workspace_gib,
        version_compatible=version_compatible,
        hardware_compatible=hardware_compatible,
        timing_cache=place.timing_path,
    )
    network = place.load_model(model_options(model, config, weights, latent_shape))
    folder = out or (place.engines_path if as_engines else place.export_path)
    with stages() as on_stage:
        manifest = run(
            network,
            folder,
            format="tensorrt" if as_engines else "onnx",
            precision=precision or ("bf16" if as_engines else "fp32"),
            cache=cache,
            sources=sources,
            engines=options if wanted else None,
            on_stage=on_stage,
        )
    made = f"Exported to {folder} in {manifest.precision}"
    if manifest.engine is not None:
        where = manifest.engine.gpu or "all RTX cards since Ampere"
        made = f"Built engines in {folder} in {manifest.precision}, by {manifest.engine.library} "
        made += f"{manifest.engine.version} for {where}; not verified: they have not been run"
    measured = "of PyTorch in bf16" if manifest.precision == "bf16" else "of the ONNX files"
    emit(
        {
            "export": str(folder),
            "precision": manifest.precision,
            "parity": manifest.parity,
            "engine": manifest.engine and asdict(manifest.engine),
            "files": manifest.files,
        },
        as_json=json,
        text=f"{made}\nLargest error against PyTorch in fp32, {measured} (relative): encoder "
        f"{manifest.parity['encoder']:.1e}, decoder {manifest.parity['decoder']:.1e}"
        + ("" if as_engines else "\nNext: ddt-accel sample, or ddt-accel bench"),
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
    device: DeviceOption = "cpu",
    batch_size: BatchOption = 16,
    out: Annotated[Path | None, typer.Option(help="Folder for the images; in the workspace by default.")] = None,
    npz: Annotated[
        Path | None, typer.Option(help="Also write arr_0, uint8 NHWC, as ADM's evaluation reads it.")
    ] = None,
    vae: Annotated[
        str | None,
        typer.Option(help="Makes pictures of latents: an autoencoder's Hugging Face repository or folder."),
    ] = None,
    json: JsonOption = False,
) -> None:
    """Draw images along the schedule."""
    import dataclasses
    import time

    import torch

    from ddt_accel.backends.sample import sample as draw
    from ddt_accel.backends.vae import LatentDecoder
    from ddt_accel.errors import ConfigError, MismatchError
    from ddt_accel.evaluation.benchmark import is_pixel_space
    from ddt_accel.report.pictures import SampleWriter
    from ddt_accel.sampling.noise import draw_noise, draw_step_noise
    from ddt_accel.workspace import Workspace

    if images < 1 or batch_size < 1:
        raise ConfigError(f"--images is {images} and --batch-size {batch_size}; give at least 1 of each.")
    place = Workspace(workspace)
    plan = place.schedule(schedule)
    asked = dataclasses.replace(
        plan.spec,
        num_steps=plan.spec.num_steps if steps_wanted is None else steps_wanted,
        guidance=plan.spec.guidance if guidance is None else guidance,
    )
    if differences := asked.differences(plan.spec):
        raise MismatchError(
            f"The schedule was solved for other sampling ({'; '.join(differences)}); calibrate and solve for it."
        )
    if full:
        plan = plan.unshared()
    said = model_options(model, config, weights, latent_shape)
    opened = open_networks(place, backend, export_folder, said, device, min(batch_size, images))
    networks, shape = opened.backend, opened.latent_shape
    classes = parse_labels(labels, networks.config.num_classes, opened.class_names)
    pixels = is_pixel_space(networks.config)
    if vae is not None and pixels:
        raise ConfigError("--vae makes pictures of latents, and this model draws pictures itself; leave it out.")
    decode = LatentDecoder(vae, device=device) if vae is not None else None
    writer = SampleWriter(out or place.samples_path, npz, pixels=pixels or decode is not None)
    seconds, compiling_before = 0.0, getattr(networks, "compile_seconds", 0.0)
    with steps("sampling", images) as bar:
        for start in range(0, images, batch_size):
            indices = range(start, min(images, start + batch_size))
            chosen = torch.tensor([classes[index % len(classes)] for index in indices])
            noise = draw_noise(shape, seed=seed, indices=indices)
            step_noise = draw_step_noise(shape, seed=seed, indices=indices)
            started = time.perf_counter()
            latents = draw(networks, plan, noise, chosen, step_noise=step_noise).cpu()
            seconds += (time.perf_counter() - started) / images
            writer.add(latents if decode is None else decode(latents).cpu())
            bar.to(indices.stop)
    written = writer.finish()
    compiling = getattr(networks, "compile_seconds", 0.0) - compiling_before
    seconds -= compiling / images
    if out is None:  # a folder of ours: what an earlier, longer run left would pass for this one's
        for stale in set(place.samples_path.glob("[0-9]*.png")) - set(written):
            stale.unlink()
    emit(
        {
            "folder": str(written[0].parent),
            "images": images,
            "seconds_per_image": seconds,
            "compile_seconds": compiling,
            "files": [str(p) for p in written],
        },
        as_json=json,
        text=f"{images} images, {seconds:.3f} s each, {plan.budget} encoder runs of {plan.spec.num_evaluations}"
        + (f", compiled in {compiling:.0f} s before" if compiling else "")
        + f" → {written[0]}",
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
