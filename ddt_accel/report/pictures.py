"""Images as files: PNGs, contact sheets, and the npz of the ADM evaluation suite."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from ddt_accel.artifacts import check_writable, write_atomic
from ddt_accel.errors import ConfigError
from ddt_accel.evaluation.fidelity import to_uint8

MARGIN = 2
SHEET = 100  # images on a contact sheet, at most


def png(pixels: NDArray[np.uint8], scale: int = 1) -> bytes:
    """A PNG of [H, W, 3], every pixel `scale` pixels wide."""
    image = Image.fromarray(pixels)
    if scale > 1:
        image = image.resize((image.width * scale, image.height * scale), Image.Resampling.NEAREST)
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def contact_sheet(images: NDArray[np.uint8], columns: int) -> NDArray[np.uint8]:
    """[B, H, W, 3] as one picture, row by row, on white."""
    count, height, width, _ = images.shape
    rows = -(-count // columns)
    sheet = np.full((rows * (height + MARGIN) + MARGIN, columns * (width + MARGIN) + MARGIN, 3), 255, dtype=np.uint8)
    for index, image in enumerate(images):
        top = MARGIN + index // columns * (height + MARGIN)
        left = MARGIN + index % columns * (width + MARGIN)
        sheet[top : top + height, left : left + width] = image
    return sheet


class SampleWriter:
    """Writes samples as they come; what stands in the way of a file is found before the first is drawn.

    Pixel-space latents become PNGs and a contact sheet of the first hundred; others `latents.npz`, for the user's own
    decoder.
    """

    def __init__(self, folder: Path, npz: Path | None, *, pixels: bool) -> None:
        if npz is not None and not pixels:
            raise ConfigError("--npz holds images, but these are latents; give the model's autoencoder with --vae.")
        self._folder, self._npz, self._pixels = folder, npz, pixels
        self._sheet = folder / ("contact-sheet.png" if pixels else "latents.npz")
        for path in [self._sheet, *([npz] if npz else [])]:
            check_writable(path)
        self._written: list[Path] = []
        self._kept: list[NDArray[np.generic]] = []

    def add(self, latents: Tensor) -> None:
        """Writes a batch of final latents, or of the pictures that were made of them, [B, C, H, W]."""
        if not self._pixels:
            self._kept.append(latents.numpy())
            return
        images = to_uint8(latents)
        if self._npz is not None or len(self._written) < SHEET:
            self._kept.append(images)
        for image in images:
            self._written.append(self._folder / f"{len(self._written):06d}.png")
            write_atomic(self._written[-1], png(image))

    def finish(self) -> Sequence[Path]:
        """Writes what holds all of them; of all paths returned, the first is the one to look at."""
        kept = np.concatenate(self._kept)
        if not self._pixels:
            return [_write_npz(self._sheet, kept)]
        shown: NDArray[np.uint8] = kept[:SHEET].astype(np.uint8)
        columns = max(1, round(len(shown) ** 0.5))
        write_atomic(self._sheet, png(contact_sheet(shown, columns), scale=max(1, 64 // kept.shape[1])))
        written = [self._sheet, *self._written]
        return [*written, _write_npz(self._npz, kept)] if self._npz is not None else written


def _write_npz(path: Path, array: NDArray[np.generic]) -> Path:
    buffer = io.BytesIO()
    np.savez(buffer, arr_0=array)
    write_atomic(path, buffer.getvalue())
    return path
