"""From the options of `serve` to what draws in a replica's process."""

from __future__ import annotations

import io
from contextlib import redirect_stderr
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from ddt_accel.cli.console import say
from ddt_accel.cli.opening import NetworkSettings

if TYPE_CHECKING:
    from ddt_accel.cli.networks import Opened
    from ddt_accel.collection import Named
    from ddt_accel.serving.offer import Offer
    from ddt_accel.serving.painter import Painter
    from ddt_accel.workspace import Workspace


@dataclass(frozen=True, kw_only=True)
class PainterSettings(NetworkSettings):
    """All that it takes to draw, whoever does it."""

    given: tuple[Named, ...]  # schedules
    name: str | None  # what the model is called in answers


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
    from ddt_accel.serving.painter import Painter

    place, opened, decoder = settings.open(settings.batch_size)
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
    from ddt_accel.studio.stops import stops_of

    backend, given = opened.backend, list(settings.given)
    schedules = schedules_for(backend, place, given, say, model=opened.name)
    shelf = served(schedules, backend, opened.latent_shape, place, say)
    first = given[0] if given else None
    stops = stops_of(backend, opened.latent_shape, place, first, lambda _: None, name=opened.name)  # said above
    classes = backend.config.num_classes
    offer = Offer(
        model=settings.name or opened.name,
        backend=backend.name,
        num_classes=classes,
        class_names=names_of(classes, opened.class_names),
        width=opened.latent_shape[2],
        height=opened.latent_shape[1],
        schedules=shelf,
        qualities=qualities(schedules, shelf, stops, None if first is None else first.name),
        batch_size=settings.batch_size,
    )
    return offer, schedules
