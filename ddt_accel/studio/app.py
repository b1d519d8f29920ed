"""`open_studio`: the page for a network, from its name to something to launch."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import Tensor

from ddt_accel.backends.pytorch import TorchBackend
from ddt_accel.collection import Named
from ddt_accel.errors import ConfigError
from ddt_accel.networks.class_names import names_of
from ddt_accel.networks.config import LatentShape
from ddt_accel.networks.split import SplitNetwork, latent_shape_of
from ddt_accel.sampling.backend import Backend
from ddt_accel.schedule import Schedule
from ddt_accel.studio.page import build, launched
from ddt_accel.studio.race import Race
from ddt_accel.studio.stops import Say, stops_of
from ddt_accel.studio.visit import Visits
from ddt_accel.workspace import DEFAULT_MODEL, Workspace


class Studio:
    """The page for networks that are open; `launch` serves it, and takes what Gradio's `launch` does.

    Raises ConfigError where the networks draw latents and there is no `decode`, MismatchError for a schedule of other
    weights.
    """

    def __init__(
        self,
        backend: Backend,
        latent_shape: LatentShape,
        *,
        name: str,
        class_names: tuple[str, ...] | None = None,
        place: Workspace,
        given: Named | None = None,
        decode: Callable[[Tensor], Tensor] | None = None,
        say: Say = lambda _: None,
    ) -> None:
        race = Race(backend, latent_shape, decode=decode)
        self.stops = stops_of(backend, latent_shape, place, given, say, name=name)
        race.warm_up(self.stops.stops[0].schedule)
        names = names_of(backend.config.num_classes, class_names)
        self.page = build(Visits(race, self.stops, names), model=name, backend=backend.name)

    def launch(self, **settings: Any) -> Any:
        return launched(self.page, **settings)


def open_studio(
    model: SplitNetwork | str | Path = DEFAULT_MODEL,
    *,
    schedule: str | Path | None = None,
    workspace: str | Path = "ddt-accel-run",
    decode: Callable[[Tensor], Tensor] | None = None,
) -> Studio:
    """The page for whatever `load_model` takes, run by PyTorch: `open_studio().launch()`.

    `schedule` is a file, or the name of a shipped one; without it the slider has those of the `workspace`, or the
    shipped ones for this network. `decode` makes images [B, 3, H, W] in −1 … 1 of latents, as `LatentDecoder` does.
    """
    from ddt_accel.networks.checkpoints import load_model

    network = model if isinstance(model, SplitNetwork) else load_model(model)
    if network.source is None:
        raise ConfigError("The model does not say what it is; load it with ddt_accel.load_model.")
    return Studio(
        TorchBackend(network),
        latent_shape_of(network),
        name=network.source.name,
        class_names=network.source.class_names,
        place=Workspace(Path(workspace)),
        given=None if schedule is None else named(schedule),
        decode=decode,
    )


def named(schedule: str | Path) -> Named:
    """A schedule by its file or its shipped name."""
    return Named(name=Path(schedule).stem, schedule=Schedule.load(schedule))
