"""`export`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ddt_accel.cli.console import emit, following, given, keeping, say, stages
from ddt_accel.cli.networks import load_networks
from ddt_accel.cli.options import (
    DEFAULT_WORKSPACE,
    ConfigOption,
    GuideOption,
    JsonOption,
    LatentOption,
    ModelOption,
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
