"""Calibration by workers: batches of samples are their units, whose statistics are merged here."""

from __future__ import annotations

import io
from collections.abc import Callable
from contextlib import redirect_stderr
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ddt_accel.cli.console import keeping, say, steps
from ddt_accel.cli.opening import said_anywhere
from ddt_accel.cli.workers import Tally

if TYPE_CHECKING:
    from ddt_accel.calibration.statistics import Calibration
    from ddt_accel.cluster.crew import Crew
    from ddt_accel.networks.recipe import Recipe
    from ddt_accel.sampling.noise import ImageRange
    from ddt_accel.spec import SamplingSpec
    from ddt_accel.workspace import Workspace


@dataclass(frozen=True, kw_only=True)
class CalibratorSettings:
    """All that it takes to calibrate on any samples; paths are absolute, for workers have folders of their own."""

    workspace: Path
    said: dict[str, Any]  # about the model, as `Workspace.load_model` takes it
    recipe: Recipe | None
    sampling: dict[str, Any]  # as `sampling_said`
    device: str
    threads: int | None
    batch_size: int
    sensitivity_samples: int

    def anywhere(self) -> CalibratorSettings:
        return replace(self, said=said_anywhere(self.said))


@dataclass(frozen=True, kw_only=True)
class Told:
    """What is known of networks that are ready to be calibrated."""

    spec: SamplingSpec
    checkpoint_sha256: str
    latent_shape: tuple[int, int, int]
    guide_sha256: str | None
    widths: tuple[float, ...]
    said: tuple[str, ...]


class CalibratorWork:
    """Networks in a worker's process: batches of samples become statistics of them."""

    def __init__(self, settings: CalibratorSettings, cores: int) -> None:
        from ddt_accel.calibration.calibrate import calibrated_at
        from ddt_accel.cli.networks import load_networks
        from ddt_accel.cli.options import check_device
        from ddt_accel.cli.recipes import sampling_of
        from ddt_accel.networks.config import UNKNOWN
        from ddt_accel.networks.split import latent_shape_of
        from ddt_accel.networks.threads import use_threads
        from ddt_accel.workspace import Workspace

        self._settings = settings
        use_threads(settings.threads or cores, measure=False)
        with redirect_stderr(io.StringIO()) as said:  # nobody reads it here
            place, device = Workspace(settings.workspace, say), check_device(settings.device)
            self._network, self._guide = load_networks(place, settings.said, device)
            spec = sampling_of(self._network, settings.recipe, settings.sampling, guided=self._guide is not None)
        source, second = self._network.source, self._guide
        guide_sha256 = None if second is None else second.source.sha256 if second.source else UNKNOWN
        self.told = Told(
            spec=spec,
            checkpoint_sha256=source.sha256 if source else UNKNOWN,
            latent_shape=latent_shape_of(self._network, None),
            guide_sha256=guide_sha256,
            widths=calibrated_at(self._network, self._guide),
            said=tuple(said.getvalue().splitlines()),
        )

    def __call__(self, images: ImageRange) -> Calibration:
        from ddt_accel.calibration.calibrate import calibrate

        followed = min(images.stop, self._settings.sensitivity_samples) - images.first
        return calibrate(
            self._network,
            self.told.spec,
            images.count,
            images.seed,
            first_image=images.first,
            batch_size=self._settings.batch_size,
            sensitivity_samples=max(0, followed),
            guide=self._guide,
        )


def widths_said(widths: tuple[float, ...]) -> list[str]:
    """That narrow networks are measured, too, where there are any."""
    if len(widths) == 1:
        return []
    return [f"The network has the widths {', '.join(f'{width:g}' for width in widths)}, all of which are measured."]


def calibrate_by(
    crew: Crew,
    settings: CalibratorSettings,
    place: Workspace,
    *,
    samples: int,
    seed: int,
    out: Path,
    beginning: Callable[[Told, ImageRange], Calibration | None],
) -> Calibration:
    """The calibration of so many samples of a seed, and its file; in batches of the same size that of one process.

    `beginning` is what an interrupted run has left of it.
    """
    from ddt_accel.calibration.calibrate import batches_of
    from ddt_accel.sampling.noise import ImageRange

    job = partial(CalibratorWork, settings)
    told: Told = crew.first(job)
    for line in (*told.said, *widths_said(told.widths)):
        say(line)
    wanted = ImageRange(seed=seed, first=0, stop=samples)
    merged = _Merged(beginning(told, wanted), place.partial_path)
    units = batches_of(wanted, merged.stop, settings.batch_size)
    following = sum(unit.first < settings.sensitivity_samples for unit in units)
    if 0 < following < crew.size:
        say(
            f"Samples whose errors are followed take most of the time, and {following} of {crew.size} workers "
            f"{'has' if following == 1 else 'have'} any; a smaller --batch-size shares them among more."
        )

    def misfit(other: Told) -> str | None:
        alike = replace(other, said=told.said) == told
        return None if alike else "Its checkpoint, latents or sampling are others."

    tally = Tally()
    with keeping(merged.told), steps("calibrating", samples, begun=merged.stop, unit="samples") as bar:
        for member, unit, part in crew.work(job, iter(units), len(units), misfit):
            merged.add(unit, part)
            tally.add(member, unit.count)
            bar.advance(unit.count, tally.text())
    done = merged.done
    assert done is not None
    done.save(out)
    place.partial_path.unlink(missing_ok=True)
    return done


class _Merged:
    """Statistics of neighbouring batches, merged in their order whoever is done first, and kept in a file."""

    def __init__(self, begun: Calibration | None, path: Path) -> None:
        self.done, self._path = begun, path
        self._waiting: dict[int, Calibration] = {}

    @property
    def stop(self) -> int:
        return self.done.ranges[0].stop if self.done is not None else 0

    def add(self, images: ImageRange, part: Calibration) -> None:
        self._waiting[images.first] = part
        before = self.stop
        while self.stop in self._waiting:
            following = self._waiting.pop(self.stop)
            self.done = following if self.done is None else self.done.merge(following)
        if self.done is not None and self.stop > before:
            self.done.save(self._path)

    def told(self) -> str:
        if not self.stop:
            return "The first batch of samples was not finished; the same command starts anew."
        return f"The first {self.stop} samples are kept in {self._path}; the same command goes on from there."
