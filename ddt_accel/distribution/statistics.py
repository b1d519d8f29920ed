"""Means and covariances of a reference's features: of ADM's files, and of those that the package ships."""

from __future__ import annotations

import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ddt_accel.artifacts import read_arrays, write_arrays
from ddt_accel.distribution.frechet import Gaussian
from ddt_accel.distribution.inception import POOL, SPATIAL
from ddt_accel.distribution.inception_weights import FeatureNetwork
from ddt_accel.errors import ConfigError, MismatchError

FORMAT, VERSION = "ddt-accel statistics of features", 1
_MOST = 1e30  # features are below 100
_SHIPPED = Path(__file__).parent / "references"


@dataclass(frozen=True, kw_only=True, eq=False)
class Statistics:
    """Of the pool features, and of the spatial ones where they are known.

    `network` is the sha256 of the weights, None where TensorFlow ran them; `size` (height, width) and `count` are of
    the pictures, where known.
    """

    pool: Gaussian
    spatial: Gaussian | None
    network: str | None
    size: tuple[int, int] | None = None
    count: int | None = None

    def check_network(self, network: FeatureNetwork, where: str) -> None:
        """Raises MismatchError for statistics of other weights. TensorFlow's file is taken for the usual one."""
        if self.network is not None and self.network != network.sha256:
            raise MismatchError(
                f"{where} has statistics of another feature network ({self.network[:12]}…) than {network.name} "
                f"({network.sha256[:12]}…), and distances between them mean nothing; give the network they were made "
                "with, or the reference's pictures."
            )

    def save(self, path: Path) -> None:
        """In half of the space: as `_packed`."""
        assert self.spatial is not None
        content = {"network": self.network, "size": self.size and list(self.size), "count": self.count}
        write_arrays(path, FORMAT, VERSION, content, _packed("pool", self.pool) | _packed("spatial", self.spatial))

    @classmethod
    def load(cls, path: Path) -> Statistics:
        content, arrays = read_arrays(path, FORMAT, VERSION)
        height, width = content["size"]
        return cls(
            pool=_unpacked("pool", arrays),
            spatial=_unpacked("spatial", arrays),
            network=content["network"],
            size=(height, width),
            count=content["count"],
        )

    @classmethod
    def of_npz(cls, path: Path) -> Statistics:
        """Of `mu`, `sigma` and, where there are any, `mu_s`, `sigma_s`, as ADM's evaluation keeps them."""
        with zipfile.ZipFile(path) as archive:
            there = {name.removesuffix(".npy") for name in archive.namelist()}
            spatial = None
            if {"mu_s", "sigma_s"} <= there:
                spatial = _gaussian(archive, path, "mu_s", "sigma_s", SPATIAL)
            return cls(pool=_gaussian(archive, path, "mu", "sigma", POOL), spatial=spatial, network=None)


def shipped_statistics() -> dict[str, Path]:
    """The references that the package ships, by name."""
    return {path.stem: path for path in sorted(_SHIPPED.glob("*.safetensors"))}


def _gaussian(archive: zipfile.ZipFile, path: Path, mean: str, covariance: str, features: int) -> Gaussian:
    found = []
    for name in (mean, covariance):
        try:
            with archive.open(f"{name}.npy") as file:
                found.append(np.lib.format.read_array(file, allow_pickle=False))
        except (ValueError, EOFError, zipfile.BadZipFile) as error:
            raise ConfigError(f"{path} has a {name} that cannot be read ({error}); make it anew.") from None
    if found[0].shape != (features,) or found[1].shape != (features, features):
        shapes = " and ".join(f"{name} {list(one.shape)}" for name, one in zip((mean, covariance), found, strict=True))
        raise MismatchError(
            f"{path} has {shapes}, and the Inception network has {features} features there: these are statistics of "
            "another network. Give those of Inception, or the reference's pictures."
        )
    if not (found[0].dtype.kind == found[1].dtype.kind == "f" and all(_moderate(one) for one in found)):
        raise ConfigError(f"{path} has values in {mean} or {covariance} that are no finite numbers; make it anew.")
    values, products = (torch.from_numpy(one.astype(np.float64)) for one in found)  # of any width and byte order
    return Gaussian(mean=values, covariance=products)


def _moderate(array: NDArray[Any]) -> bool:
    """Whether all are numbers that can be multiplied."""
    return bool((np.abs(array) < _MOST).all())


def _packed(name: str, gaussian: Gaussian) -> dict[str, NDArray[np.generic]]:
    """Means and deviations in float32, correlations in float16: those of the lower triangle, row by row.

    A distance changes by less than its third decimal: `benchmarks/reference_statistics.py` measures by how much.
    """
    deviations = gaussian.covariance.diagonal().sqrt()
    correlations = gaussian.covariance / deviations / deviations[:, None]
    below = np.tril_indices(len(deviations), -1)
    return {
        f"{name}_mean": gaussian.mean.numpy().astype(np.float32),
        f"{name}_deviations": deviations.numpy().astype(np.float32),
        f"{name}_correlations": correlations.numpy()[below].astype(np.float16),
    }


def _unpacked(name: str, arrays: dict[str, NDArray[np.generic]]) -> Gaussian:
    mean, deviations = (torch.tensor(arrays[f"{name}_{part}"]).double() for part in ("mean", "deviations"))
    below = np.tril_indices(len(deviations), -1)
    correlations = np.eye(len(deviations))
    correlations[below] = arrays[f"{name}_correlations"]
    correlations.T[below] = arrays[f"{name}_correlations"]
    return Gaussian(mean=mean, covariance=torch.from_numpy(correlations) * deviations * deviations[:, None])
