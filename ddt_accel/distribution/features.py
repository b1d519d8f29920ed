"""What the Inception network says of many pictures, kept beside them so that it is run once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ddt_accel.artifacts import read_arrays, write_arrays
from ddt_accel.distribution.frechet import Gaussian, Moments
from ddt_accel.distribution.inception import CLASSES, POOL
from ddt_accel.distribution.inception_weights import FeatureNetwork
from ddt_accel.distribution.pictures import Chunk, Pictures
from ddt_accel.errors import ArtifactError
from ddt_accel.locks import Say

FORMAT, VERSION = "ddt-accel features", 1
_Arrays = dict[str, NDArray[np.float32]]


@dataclass(frozen=True, kw_only=True, eq=False)
class Features:
    """Of M pictures: `pool` [M, 2048] and `logits` [M, 1008], float32, and the moments of both kinds of features.

    12 KB a picture; the spatial features are summed up as they come.
    """

    pool: Tensor
    logits: Tensor | None
    spatial: Gaussian
    pool_moments: Gaussian


def features_of(
    pictures: Pictures, network: FeatureNetwork, on_pictures: Callable[[int], None], say: Say, *, batch_size: int = 32
) -> Features:
    """Runs the network over the pictures that it has not seen; `on_pictures` is told how many more are done.

    A chunk's features are one file, valid for these weights and the bytes of these pictures. Where they cannot be
    kept, that is said once.
    """
    pool = np.empty((pictures.count, POOL), np.float32)
    logits = np.empty((pictures.count, CLASSES), np.float32) if network.has_classes else None
    of_pool, of_spatial = Moments(), Moments()
    folder: Path | None = pictures.kept / "features" / network.sha256[:12]
    for chunk in pictures.chunks():
        content = {"network": network.sha256, "pictures": chunk.sha256}
        path = None if folder is None else folder / f"{chunk.indices.start:06d}-{chunk.indices.stop:06d}.safetensors"
        found = None if path is None else _kept(path, content, logits is not None)
        if found is None:
            found = _computed(chunk, network, batch_size)
            try:
                if path is not None:
                    write_arrays(path, FORMAT, VERSION, content, found)
            except ArtifactError as error:
                say(f"Features are not kept for the next time: {error}")
                folder = None
        rows = slice(chunk.indices.start, chunk.indices.stop)
        pool[rows] = found["pool"]
        if logits is not None:
            logits[rows] = found["logits"]
        of_pool.add(torch.from_numpy(pool[rows]))
        of_spatial.add(torch.tensor(found["spatial"]))
        on_pictures(len(chunk.indices))
    return Features(
        pool=torch.from_numpy(pool),
        logits=None if logits is None else torch.from_numpy(logits),
        spatial=of_spatial.gaussian(),
        pool_moments=of_pool.gaussian(),
    )


def _computed(chunk: Chunk, network: FeatureNetwork, batch_size: int) -> _Arrays:
    found = network.features(chunk.read(), batch_size=batch_size)
    named = {"pool": found.pool, "spatial": found.spatial, "logits": found.logits}
    return {name: tensor.numpy() for name, tensor in named.items() if tensor is not None}


def _kept(path: Path, content: dict[str, str], with_logits: bool) -> _Arrays | None:
    """The features in a file, if they are of these pictures by this network and all that is wanted."""
    if not path.exists():
        return None
    try:
        there, arrays = read_arrays(path, FORMAT, VERSION)
    except ArtifactError:
        return None
    wanted = {"pool", "spatial", "logits"} if with_logits else {"pool", "spatial"}
    return arrays if there == content and wanted <= set(arrays) else None
