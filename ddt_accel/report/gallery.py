"""The same noise drawn in several ways, as pictures of a page, and what differs between them."""

from __future__ import annotations

import base64
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from ddt_accel.evaluation.fidelity import to_images, to_uint8
from ddt_accel.report.pictures import png
from ddt_accel.report.study import UNSHARED, Study
from ddt_accel.report.ways import PUBLISHED

AMPLIFICATIONS = (1, 2, 4, 8, 16, 32)


@dataclass(frozen=True, kw_only=True)
class Way:
    """Pictures and amplified differences as base64 of PNGs; no differences of what they would be to."""

    name: str
    pictures: list[str]
    differences: list[str]


def gallery(study: Study) -> tuple[list[Way], Way | None, int]:
    """The ways to compare, the reference solution's pictures where there are any, and how differences are amplified.

    They are to the reference solution, else to the unshared pictures.
    """
    count = 6 if next(iter(study.latents.values())).shape[-1] <= 64 else 3  # of large ones fewer, for the page's size
    pace = study.headline if study.headline in study.fewer else study.chosen
    wanted = [UNSHARED, PUBLISHED, study.headline, study.fewer.get(pace, study.chosen), study.chosen]
    names = list(dict.fromkeys(wanted))[:4]
    if study.ends is not None:
        count = min(count, len(study.ends))
    goal = study.latents[UNSHARED] if study.ends is None else study.ends
    apart = {name: to_images(study.latents[name][:count]) - to_images(goal[:count]) for name in names}
    factor, grey = amplified(apart)
    ways = [
        Way(
            name=name,
            pictures=_pngs(to_uint8(study.latents[name][:count])),
            differences=_pngs(grey[name]) if study.ends is not None or name != UNSHARED else [],
        )
        for name in names
    ]
    if study.ends is None:
        return ways, None, factor
    reference = Way(name="reference solution", pictures=_pngs(to_uint8(study.ends[:count])), differences=[])
    return ways, reference, factor


def amplified(errors: dict[str, Tensor]) -> tuple[int, dict[str, NDArray[np.uint8]]]:
    """Errors of images [B, 3, H, W] around a grey that stands for none, all amplified by as much as leaves nearly all
    of the largest in range."""
    largest = max(float(np.quantile(error.abs().numpy(), 0.98)) for error in errors.values())
    factor = max(f for f in AMPLIFICATIONS if f == 1 or f * largest <= 0.5)
    return factor, {name: to_uint8(2 * factor * error) for name, error in errors.items()}


def _pngs(images: NDArray[np.uint8]) -> list[str]:
    return [base64.b64encode(png(image)).decode() for image in images]
