"""Options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

WorkspaceOption = Annotated[Path, typer.Option("--workspace", "-w", help="Folder that the commands share.")]
ModelOption = Annotated[
    str | None,
    typer.Option("--model", "-m", help="Embedded model, checkpoint file or folder, or Hugging Face repository id."),
]
ConfigOption = Annotated[str | None, typer.Option("--config", help="Published YAML with the network's configuration.")]
WeightsOption = Annotated[
    str | None, typer.Option("--weights", help="Which weights of a checkpoint: ema (the default) or raw.")
]
LatentOption = Annotated[
    str | None, typer.Option("--latent-shape", help="C,H,W of the latents, where nothing else says.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print the result as JSON on stdout.")]
SeedOption = Annotated[int, typer.Option("--seed", help="Seed of the noise and the labels.")]
BatchOption = Annotated[int, typer.Option("--batch-size", help="Images run at a time.")]
ThreadsOption = Annotated[
    int | None, typer.Option("--threads", help="Threads on the CPU; fewer are faster beside other busy processes.")
]
DeviceOption = Annotated[str, typer.Option("--device", help="cpu or cuda.")]

DEFAULT_WORKSPACE = Path("ddt-accel-run")


def model_options(
    model: str | None, config: str | None, weights: str | None, latent_shape: str | None
) -> dict[str, Any]:
    """What was said about the model, as `Workspace.load_model` takes it."""
    said = {"source": model, "config": config, "weights": weights, "latent_shape": parse_latent_shape(latent_shape)}
    return {key: value for key, value in said.items() if value is not None}


def parse_latent_shape(text: str | None) -> tuple[int, int, int] | None:
    if text is None:
        return None
    from ddt_accel.errors import ConfigError

    try:
        channels, height, width = (int(part) for part in text.replace("x", ",").split(","))
    except ValueError:
        raise ConfigError(f"--latent-shape is {text!r}; give it as channels,height,width, such as 4,32,32.") from None
    return channels, height, width


def check_device(device: str) -> str:
    """Refuses a device that is not there."""
    import torch

    from ddt_accel.errors import ConfigError

    if device not in ("cpu", "cuda"):
        raise ConfigError(f"--device is {device!r}; choose cpu or cuda.")
    if device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("--device is cuda, but this PyTorch sees no GPU; use --device cpu.")
    return device
