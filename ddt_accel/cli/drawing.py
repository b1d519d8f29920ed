"""How `sample` draws: a few images into a plain folder, many in ranges that outlive whatever stops a process."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ddt_accel.cli.console import keeping, say, steps
from ddt_accel.cli.options import MOST_PNGS
from ddt_accel.drawing import run as drawing
from ddt_accel.drawing.claims import Claims
from ddt_accel.drawing.plain_folder import LATENTS, SampleWriter, check_pixels
from ddt_accel.drawing.pngs import PngFiles
from ddt_accel.drawing.run import keep
from ddt_accel.drawing.run_folder import FILE_NAME, RunFolder, range_size
from ddt_accel.errors import ArtifactError, BusyError
from ddt_accel.locks import joining, making

if TYPE_CHECKING:
    from ddt_accel.cli.hands import Hands
    from ddt_accel.drawing.drawer import Drawer
    from ddt_accel.drawing.shard import Shard


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What is asked for."""

    folder: Path
    images: int
    npz: Path | None
    png: bool
    ours: bool  # the folder is the workspace's
    class_names: tuple[str, ...] | None


@dataclass(frozen=True, kw_only=True)
class Drawn:
    """What there is now; of `images` images it was not there before."""

    images: int
    sheet: Path | None
    files: list[Path]

    def facts(self, folder: Path, images: int) -> dict[str, Any]:
        """For `--json`; `images` is how many there are in the folder."""
        return {
            "folder": str(folder),
            "contact_sheet": self.sheet and str(self.sheet),
            "images": images,
            "drawn": self.images,
            "files": [str(path) for path in self.files],
        }


def draw_few(wanted: Wanted, drawer: Drawer) -> Drawn:
    """PNGs and nothing else in the folder, or latents; begun anew where it is stopped."""
    with making(wanted.folder, say) as alone:
        writer = SampleWriter(
            wanted.folder,
            wanted.npz,
            count=wanted.images,
            pixels=drawer.pictures,
            as_png=wanted.png,
            ours=wanted.ours and alone,
        )
        with keeping(writer.kept), writer, steps("sampling", wanted.images, unit="images") as bar:
            for part in drawer.draw(range(wanted.images)):
                writer.add(part)
                bar.to(part.stop)
        sheet = _sheet(lambda: writer.write_sheet(wanted.class_names))
    if left := writer.left():
        said = f"{left[0]} to {left[-1]}, which are none" if len(left) > 1 else f"{left[0]}, which is none"
        say(
            f"{wanted.folder} still holds {len(left)} picture{'s' if len(left) > 1 else ''} of an earlier run, {said} "
            "of these; remove what you do not want, or give another --out."
        )
    return Drawn(images=wanted.images, sheet=sheet, files=writer.files())


def draw_many(wanted: Wanted, hands: Hands, shard: Shard | None) -> Drawn:
    """A run, or a shard of it, continued where there is one of the same identity; whole it gets its npz and a sheet."""
    folder, told = wanted.folder, hands.told
    with joining(folder, alone=shard is None) as certain:
        with making(folder / FILE_NAME):  # all shards agree on the ranges
            run = RunFolder.begun(folder, told.identity, wanted.images, range_size(told.batch_size))
        alone = certain and shard is None
        if alone:
            run.tidy()
        mine = list(run.ranges() if shard is None else shard.of(run.ranges()))
        drawn = _drawn(run, mine, wanted, hands)
        if shard is None:
            return replace(_completed(run, wanted, told.pictures, told.class_names, alone=alone), images=drawn)
    # Whoever is the last to come here finds all ranges, and nobody at work.
    if (present := run.present()) == run.images:
        with suppress(BusyError), joining(folder, alone=True) as alone:
            if alone:
                run.tidy()
            return replace(_completed(run, wanted, told.pictures, told.class_names, alone=alone), images=drawn)
    rest = "another process completes it" if present == run.images else "its last shard completes it"
    say(f"{present} of {run.images} images are in {folder}; {rest}, or `ddt-accel sample --finish --out {folder}`.")
    return Drawn(images=drawn, sheet=None, files=[])


def finish(folder: Path, npz: Path | None, png: bool | None) -> tuple[RunFolder, Drawn]:
    """Completes a run of which every range is there, without a network. Raises ArtifactError where one is not."""
    if not (folder / FILE_NAME).exists():
        raise ArtifactError(
            f"{folder} holds no run to finish; `ddt-accel sample --images N --out {folder}` begins one."
        )
    with joining(folder, alone=True) as alone:
        run = RunFolder.load(folder)
        if alone:
            run.tidy()
        missing = [indices for indices in run.ranges() if not run.path(indices).exists()]
        if not missing:
            first = run.read(next(run.ranges())).rows
            pictures = first.dtype == np.uint8
            check_pixels(npz, pictures)
            wanted = Wanted(folder=folder, images=run.images, npz=npz, png=pictures and as_png(png, run.images),
                            ours=False, class_names=None)  # fmt: skip
            with ExitStack() as threads:
                pngs = threads.enter_context(PngFiles(run.pictures)) if wanted.png else None
                missing = _missing(run, list(run.ranges()), pngs)
        if missing:
            raise ArtifactError(
                f"{folder} lacks {sum(map(len, missing))} of {run.images} images, such as {missing[0].start} to "
                f"{missing[0].stop - 1}; the command that began it draws them."
            )
        return run, _completed(run, wanted, pictures, None, alone=alone)


def as_png(png: bool | None, images: int) -> bool:
    """Whether so many pictures become PNGs, where that is said and where it is not."""
    return images <= MOST_PNGS if png is None else png


def _drawn(run: RunFolder, mine: list[range], wanted: Wanted, hands: Hands) -> int:
    """Draws those of `mine` that are missing; how many images they were."""

    def kept() -> str:
        return f"{run.present()} of {run.images} images are kept in {run.folder}; the same command goes on from there."

    count = sum(map(len, mine))
    with keeping(kept), ExitStack() as threads:
        pngs = threads.enter_context(PngFiles(run.pictures)) if wanted.png else None
        missing = _missing(run, mine, pngs)
        left = sum(map(len, missing))
        if not missing:
            return 0
        told, drawn = hands.told, 0
        conditions = {"batch_size": told.batch_size, "decode_batch": told.decode_batch, "device": told.device}

        def written(indices: range) -> None:
            nonlocal drawn
            claims.release(indices)
            drawn += len(indices)

        with steps("sampling", count, begun=count - left, unit="images") as bar, Claims(run) as claims:
            images = hands.draw(claims.of(missing), len(missing), bar)
            keep(
                run, images, conditions, left=left, on_range=written, pngs=pngs, npz=_whole(run, wanted, told.pictures)
            )
    return drawn


def _completed(run: RunFolder, wanted: Wanted, pictures: bool, names: tuple[str, ...] | None, *, alone: bool) -> Drawn:
    """The npz and the contact sheet of a run that is whole."""

    def kept() -> str:
        return f"All {run.images} images are kept in {run.folder}; the same command goes on from there."

    whole = _whole(run, wanted, pictures)
    with keeping(kept):
        if whole is not None:
            with steps(f"writing {whole.name}", run.images) as bar:
                drawing.write_npz(run, whole, bar.advance, alone=alone)
        sheet = _sheet(lambda: drawing.write_sheet(run, names) if pictures else None)
    return Drawn(images=0, sheet=sheet, files=[whole] if whole is not None else [])


def _whole(run: RunFolder, wanted: Wanted, pictures: bool) -> Path | None:
    """The file of all images: pictures in an npz that was asked for, latents in one of the run's."""
    return wanted.npz if pictures else run.folder / LATENTS


def _missing(run: RunFolder, mine: list[range], pngs: PngFiles | None) -> list[range]:
    """Those of `mine` that have to be drawn; says how many images do not."""
    if not any(run.path(indices).exists() for indices in mine):
        return mine
    missing, count = [], sum(map(len, mine))
    with steps("checking what is there", count) as bar:
        for indices, absent in drawing.missing(run, mine, say, pngs=pngs):
            if absent:
                missing.append(indices)
            bar.advance(len(indices))
    say(f"{count - sum(map(len, missing))} of {count} images are in {run.folder} already.")
    return missing


def _sheet(write: Callable[[], Path | None]) -> Path | None:
    try:
        return write()
    except ArtifactError as error:
        say(f"There is no contact sheet: {error}")
        return None
