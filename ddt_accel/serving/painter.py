"""Draws batches of pictures along any schedule of one network: what a replica does, without a server around it."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ddt_accel.backends.choose import is_no_memory
from ddt_accel.backends.sampler import Sampler
from ddt_accel.errors import ConfigError, MemoryShortageError, NumericsError
from ddt_accel.evaluation.fidelity import to_uint8
from ddt_accel.networks.config import LatentShape
from ddt_accel.sampling.backend import Backend
from ddt_accel.sampling.noise import draw_noise
from ddt_accel.schedule import Schedule
from ddt_accel.serving.answers import Batch

KEPT = 8  # schedules and sizes of batches whose buffers are kept

Picture = NDArray[np.uint8]  # [H, W, 3]
OnPreview = Callable[[int, Picture], None]  # with the number of the preview, from 0


@dataclass(frozen=True, kw_only=True, eq=False)
class Image:
    """One that is wanted. `previews` of it are shown on the way, by `on_preview`, in the thread that draws."""

    label: int
    seed: int
    previews: int = 0
    on_preview: OnPreview | None = None


@dataclass(frozen=True, kw_only=True, eq=False)
class Painted:
    """An image, and the batch that it was in; `first` of it is one."""

    picture: Picture
    batch: Batch
    first: bool


class Painter:
    """Draws images along `schedules`, by name. An image depends on its label, its seed and its schedule; what it is
    drawn together with changes it by the rounding of sums at most.

    `decode` makes images of latents, and may be left out where the network draws pictures. A batch that does not fit
    into memory is halved, and later ones are no larger. One caller at a time. Raises ConfigError where pictures need
    a decoder and there is none.
    """

    def __init__(
        self,
        backend: Backend,
        schedules: Mapping[str, Schedule],
        *,
        latent_shape: LatentShape,
        batch_size: int,
        decode: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        if decode is None and not backend.config.pixel_space:
            raise ConfigError("The network draws latents; give its autoencoder with --decoder to serve pictures.")
        self.backend, self.schedules, self.latent_shape = backend, dict(schedules), latent_shape
        self.batch_size, self._decode = batch_size, decode
        self._samplers: dict[tuple[str, int], Sampler] = {}  # by schedule and size, those that were used last

    def size(self) -> tuple[int, int]:
        """Width and height of a picture."""
        channels, height, width = self.latent_shape
        if self._decode is None:
            return width, height
        picture = self._pictures(torch.zeros(1, channels, height, width, device=self.backend.device))[0]
        return picture.shape[1], picture.shape[0]

    def paint(self, name: str, images: Sequence[Image]) -> list[Painted]:
        """Images along the schedule of that `name`, in batches of at most `batch_size`."""
        done: list[Painted] = []
        while len(done) < len(images):
            part = images[len(done) : len(done) + self.batch_size]
            try:
                done += self._painted(name, part)
            except (MemoryShortageError, MemoryError, RuntimeError) as error:
                # PyTorch's own, of a GPU, is a RuntimeError, too.
                known = isinstance(error, (MemoryShortageError, MemoryError, torch.OutOfMemoryError))
                if not (known or is_no_memory(error)) or not self._free(len(part)):
                    raise
        return done

    def _free(self, size: int) -> bool:
        """Whether anything can be done for a batch of `size` that did not fit: buffers are dropped, and where those
        were of this batch alone, later ones are half as large."""
        others = len(self._samplers) > 1
        self._samplers.clear()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        if others:
            return True
        self.batch_size = min(self.batch_size, size // 2) or 1
        return size > 1

    def filled(self, count: int) -> int:
        """The size that a batch of `count` is filled up to.

        On a GPU every size is captured, with buffers of its own: there are only powers of two and `batch_size`. Engines
        have a least size; a batch of one would be compiled by itself.
        """
        if self.backend.device.type == "cuda":
            count = 1 << (count - 1).bit_length()
        least = getattr(self.backend, "least_batch", 2 if hasattr(self.backend, "compile_seconds") else 1)
        return min(max(count, least), max(self.batch_size, least))

    def _painted(self, name: str, images: Sequence[Image]) -> list[Painted]:
        size = self.filled(len(images))
        sampler = self._sampler(name, size)
        full = [images[min(k, len(images) - 1)] for k in range(size)]  # with the last one over and over
        started = time.perf_counter()
        seeds = [one.seed for one in full]
        noise, labels = self._noise(seeds, 0), torch.tensor([one.label for one in full])
        watched = any(one.previews for one in images)
        latents = self._watched(sampler, noise, labels, seeds, images) if watched else sampler.draw(
            noise, labels, step_noise=lambda k: self._noise(seeds, k + 1)
        )  # fmt: skip
        pictures = self._pictures(latents[: len(images)])
        batch = Batch(
            images=len(images),
            filled=size,
            evaluations=len(sampler.program.evaluations),
            seconds=time.perf_counter() - started,
        )
        return [Painted(picture=one, batch=batch, first=k == 0) for k, one in enumerate(pictures)]

    def _sampler(self, name: str, size: int) -> Sampler:
        """One for batches of this size alone, so that its buffers go with it."""
        found = self._samplers.pop((name, size), None)
        if found is None:
            if len(self._samplers) >= KEPT:
                del self._samplers[next(iter(self._samplers))]
            found = Sampler(self.backend, self.schedules[name], latent_shape=self.latent_shape, batch_size=size)
        self._samplers[name, size] = found
        return found

    def _watched(
        self, sampler: Sampler, noise: Tensor, labels: Tensor, seeds: Sequence[int], images: Sequence[Image]
    ) -> Tensor:
        """Step by step, with previews: the data that the network foresees."""
        evaluations = sampler.program.evaluations
        total = len(evaluations)
        shown: dict[int, list[tuple[int, int]]] = {}  # after evaluation k: rows, and which preview of each it is
        for row, image in enumerate(images):
            for number in range(image.previews):
                shown.setdefault(total * (number + 1) // (image.previews + 1) - 1, []).append((row, number))
        latents = noise
        for step in sampler.steps(noise, labels, step_noise=lambda k: self._noise(seeds, k + 1)):
            latents = step.latents
            rows = shown.get(step.index, []) if step.index < total - 1 else []
            if rows:
                chosen = [row for row, _ in rows]
                foreseen = step.estimate(evaluations[step.index + 1].time)[chosen]
                for (row, number), picture in zip(rows, self._pictures(foreseen), strict=True):
                    if (on_preview := images[row].on_preview) is not None:
                        on_preview(number, picture)
        return latents.clone()

    def _noise(self, seeds: Sequence[int], stream: int) -> Tensor:
        return torch.cat([draw_noise(self.latent_shape, seed=seed, indices=[0], stream=stream) for seed in seeds])

    def _pictures(self, latents: Tensor) -> NDArray[np.uint8]:
        """[B, H, W, 3]; raises NumericsError where latents are NaN or infinite."""
        if not torch.isfinite(latents).all():
            raise NumericsError(
                f"A trajectory went to NaN or infinity on {self.backend.name}; ask for a schedule with more encoder "
                "runs."
            )
        return to_uint8(latents if self._decode is None else self._decode(latents))
