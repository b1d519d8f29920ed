"""Precision and recall by the k nearest neighbours (arXiv 1904.06991)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ddt_accel.errors import ConfigError

# The k-th neighbour's distance is the radius of a picture's neighbourhood.
NEIGHBOURS = 3
_DISTANCES = 1 << 25  # in memory


@dataclass(frozen=True, kw_only=True)
class Coverage:
    """How many drawn pictures lie among the reference ones, and how many of those among the drawn ones; 0 to 1."""

    precision: float
    recall: float


def coverage(drawn: Tensor, reference: Tensor) -> Coverage:
    """Precision and recall of features [M, F] against reference features [N, F].

    Raises ConfigError where there are too few for neighbourhoods.
    """
    middle = reference.mean(0)  # distances lose fewer digits near the origin
    drawn, reference = drawn - middle, reference - middle
    return Coverage(
        precision=_share_within(drawn, reference, _radii(reference)),
        recall=_share_within(reference, drawn, _radii(drawn)),
    )


def _share_within(points: Tensor, centres: Tensor, radii: Tensor) -> float:
    within = [(torch.cdist(part, centres) <= radii).any(1) for part in _parts(points, len(centres))]
    return float(torch.cat(within).double().mean())


def _radii(features: Tensor) -> Tensor:
    if len(features) <= NEIGHBOURS:
        raise ConfigError(f"{len(features)} pictures have no {NEIGHBOURS} neighbours each; give more.")
    found = [
        torch.cdist(part, features).kthvalue(NEIGHBOURS + 1, dim=1).values  # the nearest is the picture itself
        for part in _parts(features, len(features))
    ]
    return torch.cat(found)


def _parts(rows: Tensor, columns: int) -> tuple[Tensor, ...]:
    parts: tuple[Tensor, ...] = rows.split(max(1, _DISTANCES // columns))
    return parts
