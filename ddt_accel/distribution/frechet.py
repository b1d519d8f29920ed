"""The Fréchet distance of features that are taken for normally distributed (arXiv 1706.08500)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from ddt_accel.errors import ConfigError

_NOTHING = 1e-12  # of the largest variance: directions with less are rounding


@dataclass(frozen=True, kw_only=True, eq=False)
class Gaussian:
    """Mean [F] and covariance [F, F], float64 on the CPU.

    `factor` [M, F] has fewer rows than columns where it is known, and factorᵀ factor is the covariance.
    """

    mean: Tensor
    covariance: Tensor
    factor: Tensor | None = None

    @cached_property
    def spectrum(self) -> tuple[Tensor, Tensor]:
        """Standard deviations [R] along the directions [F, R] in which there is any variance."""
        if self.factor is not None:  # seconds sooner for a few pictures than those of a large matrix
            _, deviations, rows = torch.linalg.svd(self.factor, full_matrices=False)
            variances, directions = deviations.flip(0).square(), rows.flip(0).T
        else:
            variances, directions = torch.linalg.eigh(self.covariance)
        real = variances > _NOTHING * variances[-1].clamp_min(0)
        return variances[real].sqrt(), directions[:, real]


class Moments:
    """The mean and the covariance of rows that come part by part, in memory of 2 F² numbers.

    Sums are of what is left after the first part's mean, so that a large mean costs no digits. Rows themselves are
    kept while there are fewer than F.
    """

    def __init__(self) -> None:
        self.count = 0
        self._rows: list[Tensor] = []
        self._origin = self._sum = self._products = torch.zeros(())

    def add(self, rows: Tensor) -> None:
        """The next rows [B, F]."""
        rows = rows.double().cpu()
        if not self.count:
            self._origin = rows.mean(0)
            self._sum = torch.zeros_like(self._origin)
            self._products = torch.zeros(rows.shape[1], rows.shape[1], dtype=torch.float64)
        rows = rows - self._origin
        self.count += len(rows)
        self._sum += rows.sum(0)
        self._products.addmm_(rows.T, rows)
        self._rows = [*self._rows, rows] if self.count < rows.shape[1] else []

    def gaussian(self) -> Gaussian:
        """Of all rows so far; the covariance is the unbiased one. Raises ConfigError for fewer than two rows."""
        if self.count < 2:
            raise ConfigError(f"{self.count} pictures have no covariance; give at least 2.")
        mean = self._sum / self.count
        covariance = (self._products - self.count * torch.outer(mean, mean)) / (self.count - 1)
        factor = (torch.cat(self._rows) - mean) / (self.count - 1) ** 0.5 if self._rows else None
        return Gaussian(mean=self._origin + mean, covariance=covariance, factor=factor)


def gaussian_of(rows: Tensor) -> Gaussian:
    """Of features [M, F]."""
    moments = Moments()
    moments.add(rows)
    return moments.gaussian()


@dataclass(frozen=True, kw_only=True, eq=False)
class Coupling:
    """What two Gaussians have in common: eigenvalues of Σ₁^½ Σ₂ Σ₁^½, and its root in the coordinates of the first.

    `axes` [F, R] are the first's directions of any variance, divided by their standard deviation; `products` [R] the
    eigenvalues, `vectors` [R, R] their vectors.
    """

    axes: Tensor
    products: Tensor
    vectors: Tensor

    @classmethod
    def of(cls, first: Gaussian, second: Gaussian) -> Coupling:
        deviations, directions = first.spectrum
        root = directions * deviations
        products, vectors = torch.linalg.eigh(root.T @ second.covariance @ root)
        return cls(axes=directions / deviations, products=products.clamp_min(0), vectors=vectors)

    @property
    def trace(self) -> float:
        """tr (Σ₁ Σ₂)^½."""
        return float(self.products.sqrt().sum())

    def transported(self, rows: Tensor) -> Tensor:
        """xᵀ T x [M] of centred rows [M, F], where T = Σ₁^−½ (Σ₁^½ Σ₂ Σ₁^½)^½ Σ₁^−½ takes the first Gaussian to the
        second: half of it is the derivative of `trace` by Σ₁."""
        return (rows.double() @ self.axes @ self.vectors * self.products.sqrt().sqrt()).square().sum(1)


def frechet_distance(first: Gaussian, second: Gaussian) -> float:
    """‖μ₁ − μ₂‖² + tr (Σ₁ + Σ₂ − 2 (Σ₁ Σ₂)^½)."""
    return distance_of(first, second, Coupling.of(first, second))


def distance_of(first: Gaussian, second: Gaussian, coupling: Coupling) -> float:
    """As `frechet_distance`, for whoever has the coupling."""
    gap = (first.mean - second.mean).square().sum()
    found = float(gap + first.covariance.trace() + second.covariance.trace()) - 2 * coupling.trace
    return max(0.0, found)  # of the same distribution it is a rounding error of either sign
