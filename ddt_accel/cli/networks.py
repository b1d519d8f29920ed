"""From `--backend` to networks that are ready to run."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ddt_accel.cli.console import say
from ddt_accel.cli.options import check_device

if TYPE_CHECKING:
    from collections.abc import Callable

    from ddt_accel.networks.split import SplitNetwork
    from ddt_accel.sampling.backend import Backend
    from ddt_accel.workspace import Workspace

BackendOption = Annotated[
    str,
    typer.Option(
        help="onnx or trt (the workspace's export), torch, compiled (torch.compile, bf16 where the hardware has it), "
        "or auto: the fastest of them, measured once."
    ),
]


@dataclass(frozen=True, kw_only=True)
class Opened:
    """Networks that are ready to run, and what is known of them."""

    backend: Backend
    option: str  # as it is chosen by --backend
    name: str
    latent_shape: tuple[int, int, int]
    class_names: tuple[str, ...] | None


def open_networks(
    place: Workspace,
    backend: str,
    folder: Path | None,
    said: dict[str, Any],
    device: str,
    batch: int,
    *,
    compiling: bool | None = None,
) -> Opened:
    """The workspace's export or that of `folder`, or the chosen model by PyTorch; `batch` is how many images will be
    drawn at once. With `compiling` the fastest may be one that is compiled first; where nothing is said, unless the
    workspace knows how fast the others are."""
    device = check_device(device)
    if backend == "auto":
        backend = _fastest(place, folder, said, device, batch, compiling)
    return _open(place, backend, folder, said, device, batch)


def load_networks(place: Workspace, said: dict[str, Any], device: str) -> tuple[SplitNetwork, SplitNetwork | None]:
    """The chosen model, and the second network that guides it, where there is one; says which model that is where
    nobody has chosen any."""
    from ddt_accel.workspace import DEFAULT_MODEL

    if "source" not in said and place.remembered() is None and not place.calibration_path.exists():
        say(f"No --model is given, and {place.folder} has none: taking the embedded model {DEFAULT_MODEL}.")
    network, guide = place.load_networks(said)
    return network.to(device), guide if guide is None else guide.to(device)


def check_backend(backend: str) -> None:
    """Refuses what is no backend."""
    from ddt_accel.errors import ConfigError

    if backend not in ("auto", "compiled", "onnx", "torch", "trt"):
        raise ConfigError(f"--backend is {backend!r}; choose auto, compiled, onnx, torch or trt.")


def _open(place: Workspace, backend: str, folder: Path | None, said: dict[str, Any], device: str, batch: int) -> Opened:
    from ddt_accel.backends.choose import cache_of
    from ddt_accel.backends.guided import GuidedBackend
    from ddt_accel.backends.pytorch import TorchBackend
    from ddt_accel.errors import ConfigError

    if backend in ("onnx", "trt"):
        return _open_export(place, backend, folder, said, device)
    check_backend(backend)
    network, guide = load_networks(place, said, device)
    source = network.source
    if source is None or source.latent_shape is None:
        raise ConfigError("The model does not say which latents it is for; give --latent-shape C,H,W.")
    run: Callable[[SplitNetwork], Backend] = TorchBackend
    if backend == "compiled":
        from ddt_accel.backends.compiled import CompiledBackend  # PyTorch's compiler takes seconds to import

        cache = cache_of(network, source.latent_shape, batch)
        if cache == "state":
            say(f"Modulations of batches of {batch} take more than half of the memory: states are kept in their place.")
        run = partial(CompiledBackend, cache=cache)
    return Opened(
        backend=run(network) if guide is None else GuidedBackend(run(network), run(guide)),
        option=backend,
        name=source.name,
        latent_shape=source.latent_shape,
        class_names=source.class_names,
    )


def _open_export(place: Workspace, backend: str, folder: Path | None, said: dict[str, Any], device: str) -> Opened:
    from ddt_accel.backends.guided import GuidedBackend
    from ddt_accel.backends.open import open_guide, open_network
    from ddt_accel.errors import ConfigError, MismatchError
    from ddt_accel.networks.config import UNKNOWN

    if backend == "trt" and device == "cpu":
        raise ConfigError(
            "Engines run on an NVIDIA GPU, and --device is cpu; add --device cuda, or use --backend onnx."
        )
    made = place.export_path if backend == "onnx" else place.engines_path
    engines = open_network(folder or made, device=device)
    told = engines.manifest
    if (told.engine is not None) != (backend == "trt"):
        kind, asked = ("engines", "trt") if told.engine is not None else ("ONNX files", "onnx")
        raise ConfigError(f"{engines.folder} holds {kind}, and --backend is {backend}; use --backend {asked}.")
    if (shape := said.get("latent_shape")) is not None and tuple(shape) != tuple(told.latent_shape):
        raise MismatchError(
            f"{engines.folder} is an export for latents of shape {list(told.latent_shape)}, and --latent-shape says "
            f"{list(shape)}; export for that first, or use --backend torch."
        )
    if said:
        network, guide = place.load_networks(said)
        chosen = network.source
        if chosen is None or chosen.sha256 != told.checkpoint_sha256:
            raise MismatchError(
                f"{engines.folder} is an export of {told.model}, other weights than the model that was asked for; "
                "export that one first, or use --backend torch."
            )
        sha256 = None if guide is None else guide.source.sha256 if guide.source else UNKNOWN
        if sha256 != told.guide_sha256:
            kept = "no guide" if told.guide_sha256 is None else f"the guide {told.guide_sha256[:12]}…"
            raise MismatchError(
                f"{engines.folder} is an export with {kept}, another than was asked for (--guide); export with that "
                "one first, or use --backend torch."
            )
    second = open_guide(engines, device=device)
    return Opened(
        backend=engines if second is None else GuidedBackend(engines, second),
        option=backend,
        name=told.model,
        latent_shape=told.latent_shape,
        class_names=told.class_names,
    )


def _fastest(
    place: Workspace, folder: Path | None, said: dict[str, Any], device: str, batch: int, compiling: bool | None
) -> str:
    """The name of what is fastest here with the chosen model, measured unless the workspace knows."""
    import torch

    from ddt_accel.artifacts import check_writable, checksum, read_json
    from ddt_accel.backends.choose import NO_MEMORY, installed, measure_all
    from ddt_accel.backends.manifest import FILE_NAME, FORMAT, VERSION
    from ddt_accel.errors import ArtifactError
    from ddt_accel.locks import making
    from ddt_accel.networks.device import device_name

    model = _open(place, "torch", None, said, device, batch)
    guide = model.backend.guide.checkpoint_sha256 if model.backend.guide is not None else None
    checkpoint, shape = model.backend.checkpoint_sha256, model.latent_shape
    del model  # large; candidates are opened anew
    found = {"onnx": (folder or place.export_path) / FILE_NAME}
    if device != "cpu":
        found["trt"] = (folder or place.engines_path) / FILE_NAME
    told = {}
    for name, path in found.items():
        if path.exists():
            try:
                told[name] = read_json(path, FORMAT, VERSION)
            except ArtifactError as error:
                say(f"  {name}: {error}")
    exports = {
        name: checksum({"files": content.get("files")})  # not what else it says: that engines were run
        for name, content in told.items()
        if (content.get("engine") is not None) == (name == "trt")
        and content.get("checkpoint_sha256") == checkpoint
        and content.get("latent_shape") == list(shape)
        and content.get("guide_sha256") == guide
    }
    conditions = {
        "checkpoint": checkpoint,
        "latents": list(shape),
        "batch": batch,
        "device": device_name(torch.device(device)),
        "threads": torch.get_num_threads(),
        "versions": installed(),
        "exports": exports,
        **({"guide": guide} if guide is not None else {}),
    }

    def opened(name: str) -> Backend:
        return _open(place, name, folder, said, device, batch).backend

    names = ["compiled", "torch", *exports]
    known = place.speeds(conditions)
    if known is None and not compiling:
        fewer = {**conditions, "left out": "compiled"}
        known = place.speeds(fewer)
        if known is not None or compiling is False:
            names.remove("compiled")
            conditions = fewer

    def measured() -> tuple[int, dict[str, float]]:
        keeps = True
        try:
            check_writable(place.speeds_path)
        except ArtifactError as error:
            keeps = False
            say(f"The choice cannot be kept, and is made anew next time unless --backend names it: {error}")
        took = " (compiling takes half a minute, once)" if "compiled" in names else ""
        say(f"Measuring which backend is fastest for batches of {batch}{took} ...")
        candidates = {name: partial(opened, name) for name in names}
        seconds, reasons = measure_all(candidates, shape, batch)
        for name, reason in reasons.items():
            say(f"  {name}: {reason}")
        if keeps and set(reasons.values()) <= {NO_MEMORY}:  # what failed otherwise may run another time
            place.keep_speeds(conditions, seconds)
        return batch, seconds

    if known is None:
        with making(place.speeds_path, say):  # whoever waits finds them measured
            known = place.speeds(conditions) or measured()
    images, seconds = known
    fastest_first = sorted(seconds.items(), key=itemgetter(1))
    chosen = fastest_first[0][0]
    shown = ", ".join(f"{name} {1e3 * taken / images:.1f} ms" for name, taken in fastest_first)
    untried = "" if "compiled" in names else "; not tried: --backend compiled"
    many = "" if images == batch else f" in batches of {images}"
    say(f"Backend: {chosen}. Measured{many}: one encoder and five decoder runs, per image: {shown}{untried}")
    return chosen
