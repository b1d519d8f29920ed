"""Images by their indices: all that whoever draws has to be able to do."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ddt_accel.backends.sampler import Sampler
from ddt_accel.drawing.images import Images
from ddt_accel.errors import ConfigError
from ddt_accel.evaluation.fidelity import to_uint8
from ddt_accel.sampling.labels import Labels
from ddt_accel.sampling.noise import draw_noise, draw_step_noise


class Drawer:
    """Draws any images of a seed. Which others are drawn, and where, changes none of them.

    Trajectories run in the sampler's batches; latents become pictures by `decode` in batches of their own, of
    `decode_batch`. Without `decode` the results are latents, unless the model draws `pixels`. `seconds` is what has
    been spent on trajectories and decoding so far. Raises ConfigError for an impossible `decode_batch`.
    """

    def __init__(
        self,
        sampler: Sampler,
        labels: Labels,
        *,
        seed: int,
        pixels: bool,
        decode: Callable[[Tensor], Tensor] | None = None,
        decode_batch: int | None = None,
    ) -> None:
        if decode_batch is not None and decode_batch < 1:
            raise ConfigError(f"--decode-batch is {decode_batch}; give at least 1.")
        self.sampler, self.labels, self.seed, self.seconds = sampler, labels, seed, 0.0
        self.pictures, self.device = pixels or decode is not None, str(sampler.backend.device)
        self.decode_batch = None if decode is None else decode_batch or sampler.batch_size
        self._decode = decode

    def draw(self, indices: range) -> Iterator[Images]:
        """The images of some neighbouring indices, part by part, as they are done."""
        done, waiting = indices.start, None  # latents that are not decoded yet, [B, C, H, W] on the CPU
        for start in range(indices.start, indices.stop, self.sampler.batch_size):
            batch = range(start, min(indices.stop, start + self.sampler.batch_size))
            latents = self._latents(batch)
            waiting = latents if waiting is None else torch.cat([waiting, latents])
            size = self.decode_batch or len(waiting)
            while len(waiting) and (len(waiting) >= size or batch.stop == indices.stop):
                part, waiting = waiting[:size], waiting[size:]
                yield Images(first=done, rows=self._rows(part), labels=self._labels(range(done, done + len(part))))
                done += len(part)

    def _latents(self, indices: range) -> Tensor:
        shape = self.sampler.latent_shape
        noise = draw_noise(shape, seed=self.seed, indices=indices)
        step_noise = draw_step_noise(shape, seed=self.seed, indices=indices)
        chosen = self.labels.of(seed=self.seed, indices=indices)
        started = time.perf_counter()
        latents = self.sampler.draw(noise, chosen, step_noise=step_noise).cpu()
        self.seconds += time.perf_counter() - started
        return latents

    def _rows(self, latents: Tensor) -> NDArray[np.uint8] | NDArray[np.float32]:
        started = time.perf_counter()
        images = latents if self._decode is None else self._decode(latents).cpu()
        self.seconds += time.perf_counter() - started
        rows: NDArray[np.float32] = images.numpy()
        return to_uint8(images) if self.pictures else rows

    def _labels(self, indices: range) -> NDArray[np.int64]:
        labels: NDArray[np.int64] = self.labels.of(seed=self.seed, indices=indices).numpy()
        return labels
