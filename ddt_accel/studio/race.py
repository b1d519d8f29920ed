"""The original and a schedule from the same noise, step by step: what the page shows while they run."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ddt_accel.backends.sampler import Sampler
from ddt_accel.errors import ConfigError, NumericsError
from ddt_accel.evaluation.fidelity import psnr, to_uint8
from ddt_accel.networks.config import LatentShape
from ddt_accel.networks.device import synchronize
from ddt_accel.sampling.backend import Backend
from ddt_accel.sampling.noise import draw_noise, draw_step_noise
from ddt_accel.schedule import Schedule

MOST_PICTURES = 16
PREVIEWS = 8  # of a trajectory; each costs a decoding where the network draws latents

Pictures = NDArray[np.uint8]  # [B, H, W, 3]


@dataclass(frozen=True, kw_only=True)
class Frame:
    """How far a trajectory is after a step; with pictures every few steps, and at the end."""

    done: int  # evaluations
    total: int
    seconds: float  # of all images, in the network alone
    pictures: Pictures | None

    @property
    def ended(self) -> bool:
        return self.done == self.total


class Race:
    """Draws pictures of one network; `decode` makes them of latents, and may be left out where it draws pictures.

    Raises ConfigError where pictures need a decoder and there is none. One caller at a time.
    """

    def __init__(
        self, backend: Backend, latent_shape: LatentShape, *, decode: Callable[[Tensor], Tensor] | None = None
    ) -> None:
        if decode is None and not backend.config.pixel_space:
            raise ConfigError("The network draws latents; give its autoencoder with --decoder to see pictures.")
        self.backend, self.latent_shape, self._decode = backend, latent_shape, decode

    def drawn(self, schedule: Schedule, labels: Sequence[int], seed: int) -> Iterator[Frame]:
        """The pictures of `labels` along a schedule, as `sample --seed` draws them; a frame after every step.

        A caller that asks for no more frames has stopped the trajectory. Raises ConfigError for impossible labels or
        seeds, NumericsError where the pictures are NaN.
        """
        if not 1 <= len(labels) <= MOST_PICTURES:
            raise ConfigError(f"The number of pictures is {len(labels)}; give 1 to {MOST_PICTURES}.")
        indices = range(len(labels))
        noise = draw_noise(self.latent_shape, seed=seed, indices=indices)
        step_noise = draw_step_noise(self.latent_shape, seed=seed, indices=indices)
        sampler = Sampler(self.backend, schedule, latent_shape=self.latent_shape, batch_size=len(labels))
        times = [evaluation.time for evaluation in sampler.program.evaluations]
        total, spent = len(times), 0.0
        shown = {round(total * (k + 1) / PREVIEWS) - 1 for k in range(PREVIEWS)} | {total - 1}
        steps = sampler.steps(noise, torch.tensor(labels), step_noise=step_noise)
        for k in range(total):
            before, compiling = time.perf_counter(), self._compiling()
            with self._device():
                step = next(steps)
                synchronize(self.backend.device)
            spent += time.perf_counter() - before - (self._compiling() - compiling)
            pictures = None
            if k in shown:
                pictures = self._pictures(step.latents if k == total - 1 else step.estimate(times[k + 1]))
            yield Frame(done=k + 1, total=total, seconds=spent, pictures=pictures)

    def warm_up(self, schedule: Schedule) -> None:
        """One image, so that what happens once in a process is in no visitor's time."""
        for _ in self.drawn(schedule, [0], 0):
            pass

    def _device(self) -> AbstractContextManager[object]:
        """A GPU is a thread's own, and each step may be asked for by another thread."""
        device = self.backend.device
        return torch.cuda.device(device) if device.type == "cuda" else nullcontext()

    def _compiling(self) -> float:
        return float(getattr(self.backend, "compile_seconds", 0.0))

    def _pictures(self, latents: Tensor) -> Pictures:
        if not torch.isfinite(latents).all():
            raise NumericsError(
                f"The trajectory went to NaN or infinity on {self.backend.name}; try a smaller guidance, or a schedule "
                "with more encoder runs."
            )
        return to_uint8(latents if self._decode is None else self._decode(latents))


def decibels(pictures: Pictures, others: Pictures) -> float:
    """The mean PSNR in dB of pictures to others; infinite where all are the same."""
    mine, theirs = (torch.from_numpy(one.astype(np.float32) / 255) for one in (pictures, others))
    return float(psnr(mine, theirs).mean())


def difference(pictures: Pictures, others: Pictures, gain: int = 4) -> Pictures:
    """|pictures − others|, `gain` times as large, on black."""
    apart = np.abs(pictures.astype(np.int16) - others.astype(np.int16)) * gain
    return apart.clip(0, 255).astype(np.uint8)
