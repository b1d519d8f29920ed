"""Options that several commands share."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Annotated, Any

import typer

WorkspaceOption = Annotated[Path, typer.Option("--workspace", "-w", help="Folder that the commands share.")]
ModelOption = Annotated[
    str | None,
    typer.Option(
        "--model", "-m", help="Embedded model, checkpoint file or folder, or Hugging Face owner/name, owner/name:path."
    ),
]
ConfigOption = Annotated[Path | None, typer.Option("--config", help="Published YAML with the network's configuration.")]
WeightsOption = Annotated[
    str | None,
    typer.Option(
        "--weights", help="Which weights of a checkpoint: ema (the default), raw, or a set by its name in the file."
    ),
]
GuideOption = Annotated[
    str | None,
    typer.Option(
        "--guide",
        help="A second network that guides in the place of the null label, as --model takes it; none for no more.",
    ),
]
LatentOption = Annotated[
    str | None, typer.Option("--latent-shape", help="C,H,W of the latents, where nothing else says: 4,32,32.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print the result as JSON on stdout.")]
SeedOption = Annotated[int, typer.Option("--seed", min=0, max=2**32 - 1, help="Seed of the noise and the labels.")]
BatchOption = Annotated[int, typer.Option("--batch-size", min=1, help="Images run at a time.")]


def _use(threads: int | None) -> int | None:
    if threads is not None:
        from ddt_accel.networks.threads import use_threads

        use_threads(threads, measure=False)
    return threads


ThreadsOption = Annotated[
    int | None,
    typer.Option("--threads", callback=_use, help="Threads on the CPU; fewer are faster beside other busy processes."),
]
DeviceOption = Annotated[str, typer.Option("--device", help="cpu, cuda, or cuda:N for the GPU of that number.")]

DEFAULT_WORKSPACE = Path("ddt-accel-run")
MOST_PNGS = 1000  # images that are PNGs where nobody says whether they shall be


def model_options(
    model: str | None, config: Path | None, weights: str | None, latent_shape: str | None, guide: str | None = None
) -> dict[str, Any]:
    """What was said about the model, as `Workspace.load_model` takes it; checked before anything is read."""
    said = {
        "source": model,
        "config": config and str(config),
        "weights": weights,
        "latent_shape": parse_latent_shape(latent_shape),
        "guide": guide,
    }
    return {key: value for key, value in said.items() if value is not None}


def parse_latent_shape(text: str | None) -> tuple[int, int, int] | None:
    """Three sizes as people write them: 4,32,32 or 4x32x32 or "[4, 32, 32]"."""
    if text is None:
        return None
    from ddt_accel.errors import ConfigError

    found = re.fullmatch(r"[\[(]?\s*(\d+)\s*[,x×\s]\s*(\d+)\s*[,x×\s]\s*(\d+)\s*[\])]?", text.strip())
    channels, height, width = map(int, found.groups()) if found else (0, 0, 0)
    if 0 in (channels, height, width):
        raise ConfigError(f"--latent-shape is {text!r}; give channels,height,width, such as 4,32,32.")
    return channels, height, width


def device_here(device: str) -> str:
    """The GPU of this process where torchrun has started one for each, and no number is given."""
    local = os.environ.get("LOCAL_RANK", "")
    return f"{device}:{local}" if device.lower() == "cuda" and local.isdecimal() else device


def check_device(device: str) -> str:
    """The device as PyTorch takes it, after a look at whether it is there; a GPU becomes the process's own."""
    import torch

    from ddt_accel.errors import ConfigError

    device = device.lower()
    if device == "cpu":
        return device
    known = re.fullmatch(r"cuda(?::(\d+))?", device)
    gpus = range(torch.cuda.device_count()) if torch.cuda.is_available() else range(0)
    here = ", ".join(["cpu", *(f"cuda:{index} ({torch.cuda.get_device_name(index)})" for index in gpus)])
    if known is None:
        raise ConfigError(f"--device is {device}, which is not supported; here you have {here}.")
    if not gpus:
        raise ConfigError(f"--device is {device}, but this PyTorch sees no GPU; here you have {here}.")
    if known[1] is not None:
        if int(known[1]) not in gpus:
            raise ConfigError(f"--device is {device}, and there is no such GPU; here you have {here}.")
        torch.cuda.set_device(int(known[1]))  # so that engines, and whatever asks for "the" GPU, take it
    return device


def typed(context: typer.Context, name: str) -> bool:
    """Whether an option was given, and is not its default."""
    return getattr(context.get_parameter_source(name), "name", "") == "COMMANDLINE"
