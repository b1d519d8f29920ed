"""Two folders of procedural pictures, for networks of other data than any benchmark's: `silhouettes`, 6000 grey ones of
28 by 28 pixels in ten classes, and `fields`, 6000 coloured ones of 24 by 24 in five.

The networks of `benchmarks/results/predictions.json` were trained on them by

    ddt-accel train --data silhouettes --out … --images 62000 --size 28 --hidden-size 64 --heads 2 --encoder-blocks 3 \\
        --decoder-blocks 1 --batch-size 64 --precision fp32
    ddt-accel train --data fields --out … --images 26000 --size 24 --hidden-size 96 --heads 3 --encoder-blocks 7 \\
        --decoder-blocks 2 --batch-size 32 --precision fp32

Usage: python benchmarks/procedural.py FOLDER
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Array = NDArray[np.float64]


def texture(rng: np.random.Generator, side: int, scale: float) -> Array:
    """Smooth noise of unit deviation, [side, side]."""
    y, x = np.fft.fftfreq(side)[:, None], np.fft.fftfreq(side)[None]
    smooth = np.fft.ifft2(np.fft.fft2(rng.standard_normal((side, side))) * np.exp(-20 * (x**2 + y**2) * scale**2)).real
    return smooth / (smooth.std() + 1e-9)


def silhouette(rng: np.random.Generator, kind: int) -> Image.Image:
    side = 112
    y, x = np.mgrid[-1 : 1 : side * 1j, -1 : 1 : side * 1j]
    x = x / rng.uniform(0.75, 1.1)
    y = y / rng.uniform(0.75, 1.1)
    x = x - rng.uniform(-0.1, 0.1)
    width = rng.uniform(0.3, 0.5)
    across, along, radius = abs(x), abs(y), x**2 + y**2
    if kind == 0:
        mask = (across < width) & (along < 0.8) | ((abs(y + 0.6) < 0.2) & (across < 0.9))
    elif kind == 1:
        legs = (abs(x - 0.3) < 0.2) | (abs(x + 0.3) < 0.2)
        mask = legs & (along < 0.85) | ((y < -0.5) & (across < 0.5) & (y > -0.85))
    elif kind == 2:
        mask = radius < (width + 0.3) ** 2
    elif kind == 3:
        mask = (across < 0.25 + 0.5 * (y + 0.8) / 1.6) & (along < 0.8)
    elif kind == 4:
        mask = (y > 0.2) & (y < 0.6) & (across < 0.85) | ((x > 0.3) & (along < 0.6) & (x < 0.85))
    elif kind == 5:
        mask = (abs(across - 0.6) < 0.15) & (along < 0.8) | (along < 0.12) & (across < 0.7)
    elif kind == 6:
        mask = (radius < 0.64) & (radius > width**2)
    elif kind == 7:
        mask = across + along < 0.9
    elif kind == 8:
        handle = (
            ((across < 0.35) & (across > 0.25) | (abs(y + 0.55) < 0.06) & (across < 0.35)) & (y < -0.2) & (y > -0.62)
        )
        mask = (across < 0.7) & (abs(y - 0.2) < 0.5) | handle
    else:
        mask = abs(np.sin(3 * np.pi * (y + rng.uniform()))) * (across < 0.75) * (along < 0.85) > 0.4
    grain = 0.6 + 0.12 * texture(rng, side, rng.uniform(3, 14)) + rng.uniform(-0.2, 0.2)
    grain = grain + 0.1 * np.sin(2 * np.pi * (x * rng.integers(0, 6) + y * rng.integers(0, 6)))
    pixels = (np.clip(mask * grain, 0, 1) * 255).astype("u1")
    return Image.fromarray(pixels).resize((28, 28), Image.Resampling.BOX)


def field(rng: np.random.Generator, kind: int) -> Image.Image:
    side = 24

    def noise(scale: float) -> Array:
        smooth = texture(rng, side, scale)
        smooth = smooth - smooth.mean()
        return smooth / smooth.std()

    y, x = np.mgrid[0 : 1 : side * 1j, 0 : 1 : side * 1j]
    one, other = (rng.uniform(0, 1, 3)[:, None, None] for _ in range(2))
    if kind == 0:
        share = (noise(2) > 0) * 1.0
    elif kind == 1:
        angle = rng.uniform(0, np.pi)
        waves = rng.uniform(2, 6) * (x * np.cos(angle) + y * np.sin(angle))
        share = 0.5 + 0.5 * np.sin(2 * np.pi * waves + rng.uniform(0, 6))
    elif kind == 2:
        share = 1 / (1 + np.exp(-noise(0.8) * 2))
    elif kind == 3:
        discs = [(x - rng.uniform()) ** 2 + (y - rng.uniform()) ** 2 < rng.uniform(0.01, 0.04) for _ in range(5)]
        share = np.any(discs, axis=0) * 1.0
    else:
        share = (np.floor(x * rng.integers(2, 7)) + np.floor(y * rng.integers(2, 7))) % 2
    shaded = (one * (1 - share) + other * share) * (1 + 0.25 * noise(3))
    return Image.fromarray((shaded.clip(0, 1) * 255).astype("u1").transpose(1, 2, 0))


def main(folder: Path) -> None:
    for name, draw, classes, each in (("silhouettes", silhouette, 10, 600), ("fields", field, 5, 1200)):
        rng = np.random.default_rng(0)
        for kind in range(classes):
            place = folder / name / f"class{kind}"
            place.mkdir(parents=True, exist_ok=True)
            for index in range(each):
                draw(rng, kind).save(place / f"{index:04d}.png")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
