"""`serve`."""

from __future__ import annotations

import json as text
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ddt_accel.cli.console import out, say
from ddt_accel.cli.networks import BackendOption, check_backend
from ddt_accel.cli.opening import DecodeBatchOption, DecoderOption
from ddt_accel.cli.options import (
    DEFAULT_WORKSPACE,
    BatchOption,
    ConfigOption,
    DeviceOption,
    GuideOption,
    LatentOption,
    ModelOption,
    ThreadsOption,
    WeightsOption,
    WorkspaceOption,
    check_device,
    model_options,
)
from ddt_accel.cli.workers import CoresOption, RayOption, site_of

if TYPE_CHECKING:
    from ddt_accel.collection import Named

HOST, PORT = "127.0.0.1", 8000


def serve(
    host: Annotated[
        str, typer.Option("--host", help="Address to listen at; others than this machine's need a key.")
    ] = HOST,
    port: Annotated[
        int, typer.Option("--port", min=0, max=65535, help="0 takes one that is free, and prints it.")
    ] = PORT,
    key_file: Annotated[
        Path | None,
        typer.Option("--api-key-file", help="Keys that clients send as Authorization: Bearer KEY, one a line."),
    ] = None,
    workspace: WorkspaceOption = DEFAULT_WORKSPACE,
    schedule: Annotated[
        list[Path] | None,
        typer.Option(
            "--schedule",
            help="A schedule file, or the name of a shipped one. Repeatable; the first is the "
            "usual one. The workspace's, or else the shipped ones, are served beside them.",
        ),
    ] = None,
    name: Annotated[str | None, typer.Option("--name", help="What the model is called in answers.")] = None,
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
    decode_batch: DecodeBatchOption = None,
    batch_size: BatchOption = 16,
    batch_wait: Annotated[
        float, typer.Option("--batch-wait", min=0, help="Milliseconds that a batch stays open for further images.")
    ] = 10.0,
    workers: Annotated[
        str | None,
        typer.Option(
            "--workers", help="Replicas of the network: auto (one a GPU; on a CPU one for 4 cores) or a number."
        ),
    ] = None,
    ray: RayOption = None,
    cores: CoresOption = None,
    autoscaling: Annotated[
        str | None,
        typer.Option(
            "--autoscaling",
            help="Ray Serve's autoscaling_config as JSON, in the place of a number: "
            '{"min_replicas": 1, "max_replicas": 4}.',
        ),
    ] = None,
    max_images: Annotated[int, typer.Option("--max-images", help="Images of a request, at most.")] = 16,
    max_body: Annotated[int, typer.Option("--max-body", help="Bytes of a request, at most.")] = 64 << 10,
    max_queue: Annotated[
        int, typer.Option("--max-queue", help="Requests that wait or are drawn at a time; those beyond get 429.")
    ] = 256,
    timeout: Annotated[
        float, typer.Option("--timeout", help="Seconds that a request has; one that takes longer gets 504.")
    ] = 120.0,
) -> None:
    """Serve images over HTTP, in the shape of the OpenAI images API. Needs the extra cluster."""
    from ddt_accel.cli.painters import PainterSettings, open_painter
    from ddt_accel.cluster.instance import Site
    from ddt_accel.errors import ConfigError
    from ddt_accel.serving.keys import Keys
    from ddt_accel.serving.limits import Limits
    from ddt_accel.serving.needs import check_ray

    keys = Keys.read(key_file)
    keys.check_host(host)
    limits = Limits(images=max_images, body_bytes=max_body, queue=max_queue, timeout=timeout)
    if not batch_wait < float("inf"):
        raise ConfigError(f"--batch-wait is {batch_wait:g}; give milliseconds, 0 or more.")
    scaling = _scaling(autoscaling)
    check_backend(backend)
    if decode_batch is not None and decoder is None:
        raise ConfigError("--decode-batch is of --decoder, and there is none; give that, too, or leave both out.")
    if scaling and workers is not None:
        raise ConfigError("--autoscaling decides how many replicas there are, and so does --workers; give one of them.")
    if ray is None and workers is None:
        workers = "auto"
    site = site_of(workers, ray, cores, device) or Site()
    if ray is None and device.lower() != "cpu":
        check_device(device)
    check_ray()
    from ddt_accel.serving.pool import Settings, check_scaling, pool

    check_scaling(scaling)
    settings = PainterSettings(
        workspace=workspace,
        said=model_options(model, config, weights, latent_shape, guide),
        given=_given(schedule or []),
        name=name,
        backend=backend,
        export_folder=export_folder,
        device=device,
        threads=threads,
        batch_size=batch_size,
        decoder=decoder,
        decode_batch=decode_batch,
    ).anywhere()
    from ddt_accel.serving.server import listening, run

    place = listening(host, port)
    say(f"Beginning replicas {site.words} ...")
    wanted = Settings(site=site, limits=limits, batch_size=batch_size, wait=batch_wait / 1000, autoscaling=scaling)
    with place, pool(partial(open_painter, settings), wanted, say) as (replicas, offer, count):
        from ddt_accel.serving.app import application

        for line in offer.said:
            say(line)
        many = "as many replicas as Ray Serve scales to" if scaling else f"{count} replica{'s' * (count > 1)}"
        shelf = f"{len(offer.schedules)} schedules"
        say(f"{offer.model} by {offer.backend}, {many}, batches of up to {batch_size}, {shelf}.")
        if not keys.keys:
            say("Only this machine is listened to, for there is no --api-key-file.")
        shown = f"[{host}]" if ":" in host else host
        out.print(f"Serving at http://{shown}:{place.getsockname()[1]}")
        out.file.flush()
        left = run(application(replicas, offer, limits, keys), place, drain=limits.timeout, on_stop=_stopping)
    if left:
        say(f"{left} request{' was' if left == 1 else 's were'} not answered.")
        raise typer.Exit(1)
    say("All requests are answered.")


def _stopping(name: str) -> None:
    say(f"{name}: nobody new is let in, and those who wait are answered. Once more ends it at once.")


def _given(paths: list[Path]) -> tuple[Named, ...]:
    """Schedules by what they are called in requests: the shipped name, or the file's without its ending."""
    from ddt_accel.collection import Named
    from ddt_accel.errors import ConfigError
    from ddt_accel.schedule import Schedule
    from ddt_accel.serving.offer import RESERVED

    found: dict[str, Named] = {}
    for path in paths:
        name = path.stem if path.suffix == ".json" else path.name
        if name in found or name in RESERVED:
            other = "another --schedule" if name in found else "a quality"
            raise ConfigError(f"--schedule {path} would be called {name}, as {other} is; rename the file.")
        found[name] = Named(name=name, schedule=Schedule.load(path))
    return tuple(found.values())


def _scaling(given: str | None) -> dict[str, Any]:
    from ddt_accel.errors import ConfigError

    if given is None:
        return {}
    try:
        found = text.loads(given)
    except ValueError:
        found = None
    if not isinstance(found, dict) or not found:
        raise ConfigError(
            f"--autoscaling is {given!r}; give Ray Serve's settings as JSON, such as "
            '\'{"min_replicas": 1, "max_replicas": 4}\'.'
        )
    return found
