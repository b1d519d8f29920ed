"""From the options of `sample` to what draws, in this process or in a worker's."""

from __future__ import annotations

import io
from contextlib import redirect_stderr
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from ddt_accel.cli.opening import NetworkSettings
from ddt_accel.drawing.identity import RunIdentity, backend_identity, schedule_identity
from ddt_accel.schedule import Schedule

if TYPE_CHECKING:
    from ddt_accel.backends.rae_decoder import RAEDecoder
    from ddt_accel.backends.vae import LatentDecoder
    from ddt_accel.cli.networks import Opened
    from ddt_accel.drawing.drawer import Drawer
    from ddt_accel.drawing.images import Images
    from ddt_accel.sampling.labels import Labels


@dataclass(frozen=True, kw_only=True)
class DrawerSettings(NetworkSettings):
    """All that it takes to draw, whoever does it."""

    schedule: Schedule
    seed: int
    labels: str | None
    at_once: int  # images that a batch really has, where there are fewer of them


@dataclass(frozen=True, kw_only=True)
class Told:
    """What is known of a drawer that is ready."""

    identity: RunIdentity
    pictures: bool  # else latents
    class_names: tuple[str, ...] | None
    backend: str  # as it is chosen by --backend
    batch_size: int
    decode_batch: int | None
    device: str
    said: tuple[str, ...] = ()  # about opening it, where nobody could read that
    compile_seconds: float = 0.0


@dataclass(frozen=True, kw_only=True, eq=False)
class OpenDrawer:
    """A drawer whose networks are open, and what it was made of."""

    drawer: Drawer
    settings: DrawerSettings
    opened: Opened
    labels: Labels
    decoder: LatentDecoder | RAEDecoder | None

    @property
    def compile_seconds(self) -> float:
        """What compiling has taken so far."""
        return float(getattr(self.opened.backend, "compile_seconds", 0.0))

    def told(self) -> Told:
        from ddt_accel.backends.decoders import decoder_sha256

        backend = self.opened.backend
        identity = RunIdentity(
            seed=self.settings.seed,
            labels=self.labels.described,
            **schedule_identity(self.settings.schedule),
            latents=",".join(map(str, self.opened.latent_shape)),
            checkpoint_sha256=backend.checkpoint_sha256,
            guide_sha256=None if backend.guide is None else backend.guide.checkpoint_sha256,
            backend=backend_identity(backend.name),
            decoder_sha256=None if self.decoder is None else decoder_sha256(self.decoder),
        )
        return Told(
            identity=identity,
            pictures=self.drawer.pictures,
            class_names=self.opened.class_names,
            backend=self.opened.option,
            batch_size=self.drawer.sampler.batch_size,
            decode_batch=self.drawer.decode_batch,
            device=self.drawer.device,
        )


def open_drawer(settings: DrawerSettings) -> OpenDrawer:
    """Raises what opening the networks, --labels or --decoder are refused with."""
    from ddt_accel.backends.sampler import Sampler
    from ddt_accel.drawing.drawer import Drawer

    _, opened, decoder = settings.open(settings.at_once)
    config = opened.backend.config
    labels = parse_labels(settings.labels, config.num_classes, opened.class_names)
    drawer = Drawer(
        Sampler(opened.backend, settings.schedule, latent_shape=opened.latent_shape, batch_size=settings.batch_size),
        labels,
        seed=settings.seed,
        pixels=config.pixel_space or decoder is not None,
        decode=decoder,
        decode_batch=None if decoder is None else decoder.batch_size,
    )
    return OpenDrawer(drawer=drawer, settings=settings, opened=opened, labels=labels, decoder=decoder)


class DrawerWork:
    """A drawer in a worker's process: ranges of indices become images."""

    def __init__(self, settings: DrawerSettings, cores: int) -> None:
        from ddt_accel.networks.threads import use_threads

        use_threads(settings.threads or cores, measure=False)
        with redirect_stderr(io.StringIO()) as said:  # nobody reads it here
            opened = open_drawer(settings)
        self._drawer = opened.drawer
        before = opened.compile_seconds
        if hasattr(opened.opened.backend, "compile_seconds") or self._drawer.device != "cpu":
            # Compiled and captured before time is counted.
            for _ in self._drawer.draw(range(settings.batch_size)):
                pass
        self.told = replace(
            opened.told(), said=tuple(said.getvalue().splitlines()), compile_seconds=opened.compile_seconds - before
        )

    def __call__(self, indices: range) -> Images:
        from ddt_accel.drawing.images import Images

        return Images.joined(list(self._drawer.draw(indices)))


def parse_labels(text: str | None, num_classes: int, names: tuple[str, ...] | None) -> Labels:
    """Labels of words, or of class numbers or names, which images take in turn; equal where nothing is given."""
    from ddt_accel.errors import ConfigError
    from ddt_accel.sampling.labels import Labels

    if text is None or text.strip() == "equal":
        return Labels.equal(num_classes)
    if text.strip() == "random":
        return Labels.random(num_classes)
    numbers = {name: number for number, name in reversed(list(enumerate(names or ())))}
    chosen = []
    for part in (part.strip() for part in text.split(",")):
        if part in numbers:
            chosen.append(numbers[part])
        elif part.isdecimal() and int(part) < num_classes:
            chosen.append(int(part))
        else:
            known = f" or one of {', '.join(names)}" if names else ""
            raise ConfigError(
                f"--labels has {part!r}; give equal, random, or numbers from 0 to {num_classes - 1}{known}."
            )
    return Labels(num_classes=num_classes, in_turn=tuple(chosen))
