"""How `sample` draws: a few images into a plain folder, many in ranges that outlive whatever stops the process."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from ddt_accel.cli.console import keeping, say, steps
from ddt_accel.drawing import run as drawing
from ddt_accel.drawing.drawer import Drawer
from ddt_accel.drawing.identity import RunIdentity
from ddt_accel.drawing.plain_folder import LATENTS, SampleWriter
from ddt_accel.drawing.pngs import PngFiles
from ddt_accel.drawing.run_folder import RunFolder, range_size
from ddt_accel.errors import ArtifactError
from ddt_accel.locks import making


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


def draw_many(wanted: Wanted, drawer: Drawer, identity: RunIdentity) -> Drawn:
    """A run, continued where there is one of the same identity."""
    folder, total = wanted.folder, wanted.images
    batch, whole = drawer.sampler.batch_size, wanted.npz if drawer.pictures else folder / LATENTS
    with making(folder, say) as alone:
        run = RunFolder.begun(folder, identity, total, range_size(batch))
        if alone:
            run.tidy()

        def kept() -> str:
            return f"{run.present()} of {total} images are kept in {folder}; the same command goes on from there."

        with keeping(kept), ExitStack() as threads:
            pngs = threads.enter_context(PngFiles(run.pictures)) if wanted.png else None
            missing = _missing(run, pngs)
            left = sum(map(len, missing))
            if missing:
                conditions = {"batch_size": batch, "decode_batch": drawer.decode_batch, "device": drawer.device}
                with steps("sampling", total, begun=total - left, unit="images") as bar:
                    drawing.draw(run, missing, drawer, conditions, bar.advance, pngs=pngs, npz=whole)
            if whole is not None:
                with steps(f"writing {whole.name}", total) as bar:
                    drawing.write_npz(run, whole, bar.advance, alone=alone)
        sheet = _sheet(lambda: drawing.write_sheet(run, wanted.class_names) if drawer.pictures else None)
    return Drawn(images=left, sheet=sheet, files=[whole] if whole is not None else [])


def _missing(run: RunFolder, pngs: PngFiles | None) -> list[range]:
    """The ranges that have to be drawn; says how many images do not."""
    if not run.present():
        return list(run.ranges())
    missing = []
    with steps("checking what is there", run.images) as bar:
        for indices, absent in drawing.missing(run, say, pngs=pngs):
            if absent:
                missing.append(indices)
            bar.to(indices.stop)
    say(f"{run.images - sum(map(len, missing))} of {run.images} images are in {run.folder} already.")
    return missing


def _sheet(write: Callable[[], Path | None]) -> Path | None:
    try:
        return write()
    except ArtifactError as error:
        say(f"There is no contact sheet: {error}")
        return None
