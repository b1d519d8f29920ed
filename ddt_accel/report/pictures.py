"""Images as files: PNGs, contact sheets, and the npz of the ADM evaluation suite."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from ddt_accel.artifacts import write_atomic
from ddt_accel.errors import ConfigError
from ddt_accel.evaluation.fidelity import to_uint8

MARGIN = 2


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


def write_samples(latents: Tensor, folder: Path, npz: Path | None, *, pixels: bool) -> Sequence[Path]:
    """Writes what was sampled; the first path returned is the one to look at.

    Pixel-space latents become PNGs and a contact sheet; others `latents.npz`, for the user's own decoder.
    """
    if not pixels:
        if npz is not None:
            raise ConfigError("--npz holds images, but these are latents; decode latents.npz with the model's VAE.")
        return [_write_npz(folder / "latents.npz", latents.numpy())]
    images = to_uint8(latents)
    columns = max(1, min(10, round(len(images) ** 0.5)))
    written = [folder / "contact-sheet.png"]
    write_atomic(written[0], png(contact_sheet(images, columns), scale=max(1, 64 // images.shape[1])))
    for index, image in enumerate(images):
        written.append(folder / f"{index:06d}.png")
        write_atomic(written[-1], png(image))
    if npz is not None:
        written.append(_write_npz(npz, images))
    return written


def _write_npz(path: Path, array: NDArray[np.generic]) -> Path:
    buffer = io.BytesIO()
    np.savez(buffer, arr_0=array)
    write_atomic(path, buffer.getvalue())
    return path
