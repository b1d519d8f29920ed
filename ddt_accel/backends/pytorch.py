"""The networks run by PyTorch: the reference for every other backend."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
from torch import Tensor

from ddt_accel.networks.device import full_float32
from ddt_accel.networks.split import SplitNetwork
from ddt_accel.sampling.backend import Buffers

T = TypeVar("T")


class TorchBackend:
    """Runs a model where it lies and as it is; in float32 its products are that on a GPU, too, and not TensorFloat32.

    `on_state` is called with every encoder state [rows, L, D], for those who study it.
    """

    name = "torch"
    guide = None

    def __init__(self, model: SplitNetwork, *, on_state: Callable[[Tensor], None] | None = None) -> None:
        self.model = model
        self.config = model.config
        self.checkpoint_sha256 = model.source.sha256 if model.source else None
        self.device = model.device
        self.latent_shape = model.config.fixed_shape or (model.source.latent_shape if model.source else None)
        self.on_state = on_state
        self.capturable = on_state is None  # a graph would not call it

    def open(
        self, batch: int, latent_shape: tuple[int, int, int], slots: int, *, buffers: Buffers | None = None
    ) -> TorchSession:
        return TorchSession(self, batch, latent_shape, slots, buffers=buffers)


class TorchSession:
    """See `sampling.backend.Session`."""

    def __init__(
        self,
        backend: TorchBackend,
        batch: int,
        latent_shape: tuple[int, int, int],
        slots: int,
        *,
        buffers: Buffers | None = None,
    ) -> None:
        self.model, self.on_state = backend.model, backend.on_state
        self.device = device = backend.device
        self.dtype = dtype = backend.model.dtype
        buffers = buffers or Buffers.zeros(2 * batch, latent_shape, device)
        self.latents, self.times, self.labels = buffers.latents, buffers.times, buffers.labels
        self.velocity = buffers.velocity
        shape = (len(buffers.latents), backend.config.num_tokens(latent_shape), backend.config.modulation_size)
        self.modulations = make_slots(slots, lambda: torch.zeros(shape, dtype=dtype, device=device))

    @torch.inference_mode()
    def encode(self, slot: int, rows: slice) -> None:
        with full_float32(self.device):
            state = self.model.encode(self.latents[rows].to(self.dtype), self.times[rows], self.labels[rows])
        if self.on_state is not None:
            self.on_state(state)
        # One map after the other, as `SplitNetwork.modulations` has them: all at once would be two more copies of them.
        parts = self.modulations[slot][rows].split(self.model.config.modulation_widths, dim=-1)
        with full_float32(self.device):
            for affine, part in zip(self.model.modulation_maps, parts, strict=True):
                part.copy_(affine(state))

    @torch.inference_mode()
    def forecast(self, slot: int, sources: Sequence[tuple[int, float]], constant: Tensor | None, rows: slice) -> None:
        drawn = [(self.modulations[source][rows], weight) for source, weight in sources]
        combine(self.modulations[slot][rows], drawn, constant)

    @torch.inference_mode()
    def decode(self, slot: int, rows: slice) -> None:
        modulations = self.modulations[slot][rows]
        with full_float32(self.device):
            self.velocity[rows] = self.model.decode_modulated(self.latents[rows].to(self.dtype), modulations)


def make_slots(count: int, make: Callable[[], T]) -> dict[int, T]:
    """What `make` makes, by number: `count` of them at once, others where they are first asked for.

    `make` must not know the session that keeps them: memory is given back as soon as nobody holds that.
    """

    def outlasting() -> T:
        with torch.inference_mode(False):  # which the caller may be in
            return make()

    slots: dict[int, T] = defaultdict(outlasting)
    for slot in range(count):
        slots[slot]
    return slots


def combine(out: Tensor, sources: Sequence[tuple[Tensor, float]], constant: Tensor | None) -> None:
    """Sets `out` [B, L, M], which is none of the sources, to their weighted sum plus `constant` [M]."""
    (first, weight), *others = sources
    if constant is None:
        torch.mul(first, weight, out=out)
    else:
        torch.add(constant.to(out.dtype), first, alpha=weight, out=out)
    for source, weight in others:
        out.add_(source, alpha=weight)
