"""A column of the page: pictures, what they are, and the numbers below them."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from html import escape

from ddt_accel.report.pictures import png
from ddt_accel.studio.race import Pictures


def figure(
    title: str, captions: Sequence[str], pictures: Pictures | None, numbers: Sequence[tuple[str, str]], state: str
) -> str:
    """HTML of a column; without pictures there are empty places for as many as there are `captions`.

    `numbers` are (name, value), `state` one word on what the pictures are at: waiting, drawing, done.
    """
    cells = [_cell(caption, None if pictures is None else pictures[k]) for k, caption in enumerate(captions)]
    listed = "".join(f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>" for name, value in numbers)
    columns = next((size for size in (1, 2, 3, 4) if size * size >= len(captions)), 4)
    return (
        f'<figure class="side {escape(state)}"><figcaption>{escape(title)}</figcaption>'
        f'<div class="grid" style="--columns:{columns}">{"".join(cells)}</div><dl>{listed}</dl></figure>'
    )


def _cell(caption: str, picture: Pictures | None) -> str:
    if picture is None:
        return '<div class="cell empty"></div>'
    small = " pixels" if min(picture.shape[:2]) < 128 else ""
    data = base64.b64encode(png(picture)).decode()
    return f'<img class="cell{small}" src="data:image/png;base64,{data}" alt="{escape(caption)}">'
