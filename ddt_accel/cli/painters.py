"""From the options of `serve` to what draws in a replica's process."""

from __future__ import annotations

import io
import os
from contextlib import redirect_stderr
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ddt_accel.cli.console import say

if TYPE_CHECKING:
    from ddt_accel.cli.networks import Opened
    from ddt_accel.collection import Named
    from ddt_accel.serving.offer import Offer
    from ddt_accel.serving.painter import Painter
    from ddt_accel.workspace import Workspace


@dataclass(frozen=True, kw_only=True)
class PainterSettings:
    """All that it takes to draw, whoever does it; paths are absolute where another process may have another folder."""

    workspace: Path
    said: dict[str, Any]  # about the model, as `Workspace.load_model` takes it
    given: tuple[Named, ...]  # schedules
    name: str | None  # what the model is called in answers
    backend: str
    export_folder: Path | None
    device: str
    threads: int | None
    batch_size: int
    decoder: str | None
    decode_batch: int | None

    def anywhere(self) -> PainterSettings:
        """The same for processes in other folders."""
        from ddt_accel.workspace import ModelChoice

        choice = asdict(ModelChoice(**self.said).resolved())
        decoder = self.decoder
        if decoder is not None and os.path.exists(local := os.path.expanduser(decoder)):
            decoder = os.path.abspath(local)
        return replace(
            self,
            workspace=self.workspace.absolute(),
            said={name: choice[name] for name in self.said},
            export_folder=self.export_folder and self.export_folder.absolute(),
            decoder=decoder,
        )


def open_painter(settings: PainterSettings, cores: int) -> tuple[Painter, Offer]:
    """Raises what opening the networks or --decoder is refused with."""
    from ddt_accel.networks.threads import use_threads

    use_threads(settings.threads or cores, measure=False)
    with redirect_stderr(io.StringIO()) as said:  # nobody reads it here
        painter, offer = _opened(settings)
        if hasattr(painter.backend, "compile_seconds") or painter.backend.device.type != "cpu":
            from ddt_accel.serving.painter import Image

            # Compiled and captured before anybody waits.
            whole = [Image(label=0, seed=0)] * settings.batch_size
            for _ in range(2):
                painter.paint(offer.qualities["standard"], whole)
    return painter, replace(offer, said=tuple(said.getvalue().splitlines()))


def _opened(settings: PainterSettings) -> tuple[Painter, Offer]:
    from ddt_accel.backends.decoders import BATCH, open_decoder
    from ddt_accel.cli.networks import open_networks
    from ddt_accel.errors import ConfigError
    from ddt_accel.serving.painter import Painter
    from ddt_accel.workspace import Workspace

    place = Workspace(settings.workspace, say)
    opened = open_networks(
        place, settings.backend, settings.export_folder, settings.said, settings.device, settings.batch_size
    )
    decoder = None
    if settings.decoder is not None:
        if opened.backend.config.pixel_space:
            raise ConfigError(
                "--decoder makes pictures of latents, and this model draws pictures itself; leave it out."
            )
        batch = settings.decode_batch or BATCH
        decoder = open_decoder(settings.decoder, opened.latent_shape, device=settings.device, batch_size=batch)
    offer, schedules = _offered(settings, opened, place)
    painter = Painter(
        opened.backend, schedules, latent_shape=opened.latent_shape, batch_size=settings.batch_size, decode=decoder
    )
    width, height = painter.size()
    return painter, replace(offer, width=width, height=height)


def _offered(settings: PainterSettings, opened: Opened, place: Workspace) -> tuple[Offer, dict[str, Any]]:
    from ddt_accel.networks.class_names import names_of
    from ddt_accel.serving.offer import Offer
    from ddt_accel.serving.shelf import qualities, schedules_for, served

    backend, given = opened.backend, list(settings.given)
    schedules = schedules_for(backend, place, given, say, model=opened.name)
    shelf = served(schedules, backend, opened.latent_shape, place, say)
    classes = backend.config.num_classes
    offer = Offer(
        model=settings.name or opened.name,
        backend=backend.name,
        num_classes=classes,
        class_names=names_of(classes, opened.class_names),
        width=opened.latent_shape[2],
        height=opened.latent_shape[1],
        schedules=shelf,
        qualities=qualities(schedules, shelf, given[0].name if given else None),
        batch_size=settings.batch_size,
    )
    return offer, schedules
