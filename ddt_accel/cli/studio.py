"""`studio`."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Annotated

import typer

from ddt_accel.cli.console import keeping, say
from ddt_accel.cli.networks import BackendOption, open_networks
from ddt_accel.cli.opening import DecoderOption, open_decoder_of
from ddt_accel.cli.options import (
    DEFAULT_WORKSPACE,
    ConfigOption,
    DeviceOption,
    GuideOption,
    LatentOption,
    ModelOption,
    ThreadsOption,
    WeightsOption,
    WorkspaceOption,
    model_options,
)

PORTS = range(7860, 7960)


def studio(
    workspace: WorkspaceOption = DEFAULT_WORKSPACE,
    schedule: Annotated[
        Path | None,
        typer.Option(help="A schedule file, or the name of a shipped one: where the slider stands at first."),
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
    decoder: DecoderOption = None,
    host: Annotated[
        str, typer.Option(help="Address to listen on; 0.0.0.0 lets other machines in, without a password.")
    ] = "127.0.0.1",
    port: Annotated[
        int | None, typer.Option(min=0, max=65535, help="0 for any that is free. Default: the first free from 7860.")
    ] = None,
) -> None:
    """Serve a page to try it on: the same noise along the original sampler and along a schedule.

    The slider has the schedules of the workspace, or where it has none the shipped ones for the model. Needs the extra
    `web`. Ctrl-C ends it.
    """
    from ddt_accel.studio.app import Studio, named
    from ddt_accel.studio.race import MOST_PICTURES
    from ddt_accel.workspace import Workspace

    listening = _free(host, port)
    place = Workspace(workspace, say)
    given = None if schedule is None else named(schedule)
    said = model_options(model, config, weights, latent_shape, guide)
    opened = open_networks(place, backend, export_folder, said, device, MOST_PICTURES)
    page = Studio(
        opened.backend,
        opened.latent_shape,
        name=opened.name,
        class_names=opened.class_names,
        place=place,
        given=given,
        decode=open_decoder_of(opened, decoder, device),
        say=say,
    )
    _, address, _ = page.launch(server_name=host, server_port=listening, quiet=True, prevent_thread_lock=True)
    say(f"The studio: {address}   (Ctrl-C ends it)")
    with keeping(lambda: "The page is closed."):
        threading.Event().wait()  # Gradio's own waiting keeps Ctrl-C to itself


def _free(host: str, port: int | None) -> int:
    """The port that is asked for, or one that nobody listens on; raises ConfigError where there is none."""
    import socket

    from ddt_accel.errors import ConfigError

    for candidate in PORTS if port is None else (port,):
        try:
            with socket.socket() as found:
                found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                found.bind((host, candidate))
                return int(found.getsockname()[1])
        except OSError as error:
            reason = error.strerror or str(error)
    tried = f"--port is {port}" if port is not None else f"Ports {PORTS.start} to {PORTS.stop - 1} were tried"
    raise ConfigError(f"{tried}, and nothing can listen there on {host} ({reason}); give another --port, or 0.")
