"""Images as PNGs and contact sheets."""

from __future__ import annotations

import io
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import matplotlib
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

MARGIN = 2
CELL = (96, 256)  # sides of a picture on a captioned sheet, at least and at most
COLUMNS = 12  # on such a sheet, where every column is of a class
_FONT_SIZE, _LINE = 12, 18
_NO_CHARACTER = "\uffff"


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


def cell(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """[H, W, 3] as it stands on a captioned sheet: small pictures enlarged by whole pixels, large ones reduced."""
    least, most = CELL
    scale = max(1, -(-least // min(pixels.shape[:2])))
    image = Image.fromarray(pixels)
    image = image.resize((image.width * scale, image.height * scale), Image.Resampling.NEAREST)
    image.thumbnail((most, most), Image.Resampling.LANCZOS)
    return np.asarray(image)


def captioned_sheet(cells: Sequence[NDArray[np.uint8]], captions: Sequence[str]) -> NDArray[np.uint8]:
    """Pictures that were drawn of classes in turn, the classes' names being `captions`, as one picture on white.

    A column a class with its name above, where the classes are few and come round again; else every picture has its
    class's name above it.
    """
    height, width, _ = cells[0].shape
    in_columns = 1 < len(captions) <= min(COLUMNS, len(cells))
    columns = len(captions) if in_columns else min(COLUMNS, max(1, round(len(cells) ** 0.5)))
    rows = -(-len(cells) // columns)
    above, each = (_LINE, 0) if in_columns else (0, _LINE)
    size = (columns * (width + MARGIN) + MARGIN, above + rows * (each + height + MARGIN) + MARGIN)
    sheet = Image.new("RGB", size, "white")
    draw, font = ImageDraw.Draw(sheet), _font()
    for index, pixels in enumerate(cells):
        left = MARGIN + index % columns * (width + MARGIN)
        top = MARGIN + above + index // columns * (each + height + MARGIN)
        sheet.paste(Image.fromarray(pixels), (left, top + each))
        if each or index < columns:
            name = _shortened(captions[index % len(captions)], width, font)
            draw.text((left, top + each - 4), name, fill="black", font=font, anchor="ls")
    return np.asarray(sheet)


def captions_of(labels: Sequence[int], names: Sequence[str] | None) -> list[str]:
    """Captions of pictures of these labels, once where labels come round again; by number without `names`.

    >>> captions_of([2, 0, 2, 0, 2], ["ant", "bee", "cat"])
    ['cat', 'ant']
    """
    sizes = range(1, len(labels) + 1)
    turn = next(size for size in sizes if all(a == b for a, b in zip(labels, labels[size:], strict=False)))
    return [names[one] if names and legible(names[one]) else str(one) for one in labels[:turn]]


def legible(text: str) -> bool:
    """Whether the font of captions has all of its characters."""
    missing = bytes(_font().getmask(_NO_CHARACTER))
    return all(bytes(_font().getmask(character)) != missing for character in text)


def _shortened(text: str, width: int, font: ImageFont.FreeTypeFont) -> str:
    """As much of the text as is no wider than so many pixels."""
    kept = text
    while len(kept) > 1 and font.getlength(kept if kept == text else f"{kept}…") > width:
        kept = kept[:-1].rstrip()
    return kept if kept == text else f"{kept}…"


@lru_cache(maxsize=1)
def _font() -> ImageFont.FreeTypeFont:
    """The one that comes with Matplotlib: Pillow's own has hardly more than ASCII."""
    return ImageFont.truetype(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf", _FONT_SIZE)
