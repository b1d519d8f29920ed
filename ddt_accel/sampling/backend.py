"""What the trajectory loop asks of whatever runs the two networks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from ddt_accel.networks.config import SplitConfig


@dataclass(frozen=True, kw_only=True, eq=False)
class Buffers:
    """What a session's two networks read and write: R rows of each."""

    latents: Tensor  # [R, C, H, W] float32, read by both networks
    times: Tensor  # [R] float32, read by the encoder
    labels: Tensor  # [R] int64, read by the encoder
    velocity: Tensor  # [R, C, H, W] float32, written by the decoder

    @classmethod
    def zeros(cls, rows: int, latent_shape: tuple[int, int, int], device: torch.device) -> Buffers:
        return cls(
            latents=torch.zeros((rows, *latent_shape), device=device),
            times=torch.zeros(rows, device=device),
            labels=torch.zeros(rows, dtype=torch.int64, device=device),
            velocity=torch.zeros((rows, *latent_shape), device=device),
        )

    def __getitem__(self, rows: slice) -> Buffers:
        return Buffers(**{name: getattr(self, name)[rows] for name in ("latents", "times", "labels", "velocity")})


class Session(Protocol):
    """The buffers of one batch of B images, and the two networks bound to them.

    Rows 0 … B − 1 of every buffer are the conditional branch, rows B … 2B − 1 the unconditional one, or those of a
    second network that guides, so that the first half, the second, or all of it takes part in a call. Modulations stay
    inside, in numbered slots; between `encode` and `decode` nothing is copied.
    """

    latents: Tensor  # [2B, C, H, W] float32, read by both networks
    times: Tensor  # [2B] float32, read by the encoder
    labels: Tensor  # [2B] int64, read by the encoder
    velocity: Tensor  # [2B, C, H, W] float32, written by the decoder

    def encode(self, slot: int, rows: slice, width: float = 1.0) -> None:
        """Runs the encoder on some `rows`, a half or all; their modulations go to the same rows of `slot`.

        `width` is one of the backend's.
        """

    def forecast(self, slot: int, sources: Sequence[tuple[int, float]], constant: Tensor | None, rows: slice) -> None:
        """Sets `slot` to the weighted sum of other slots plus a `constant` [M], in some `rows`."""

    def decode(self, slot: int, rows: slice, width: float = 1.0) -> None:
        """Runs the decoder on some `rows`, the first half or all, under the modulations in `slot`."""


class Backend(Protocol):
    """Networks that are ready to run."""

    @property
    def name(self) -> str:
        """What runs the networks, for people."""

    @property
    def config(self) -> SplitConfig: ...

    @property
    def device(self) -> torch.device:
        """Where a session's buffers lie."""

    @property
    def capturable(self) -> bool:
        """Whether all that its sessions do on a GPU is queued on PyTorch's current stream, for a CUDA graph."""

    @property
    def checkpoint_sha256(self) -> str | None:
        """Which weights these are, where known."""

    @property
    def widths(self) -> tuple[float, ...]:
        """The shares of heads and channels that encoder and decoder run at, from 1.0 down; often that alone."""

    @property
    def guide(self) -> Backend | None:
        """The second network, where one guides under the images' own labels; else the null label does."""

    def open(
        self, batch: int, latent_shape: tuple[int, int, int], slots: int, *, buffers: Buffers | None = None
    ) -> Session:
        """Buffers for `batch` images of `latent_shape` [C, H, W] and `slots` modulation slots.

        With `buffers` of `batch` rows, which it then works on, a session is of one branch alone. Slot number `slots` is
        one more, for forecasts only; where the decoder makes them itself it takes no memory.
        """
