"""The networks run by PyTorch: the reference for every other backend."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ddt_accel.networks.ddt import DDT


class TorchBackend:
    """Runs a model where it lies and as it is.

    `on_state` is called with every encoder state [rows, L, D], for those who study it.
    """

    name = "torch"

    def __init__(self, model: DDT, *, on_state: Callable[[Tensor], None] | None = None) -> None:
        self.model = model
        self.config = model.config
        self.checkpoint_sha256 = model.source.sha256 if model.source else None
        self.device = model.final_layer.linear.weight.device
        self.on_state = on_state
        self.capturable = on_state is None  # a graph would not call it

    def open(self, batch: int, latent_shape: tuple[int, int, int], slots: int) -> TorchSession:
        return TorchSession(self, batch, latent_shape, slots)


class TorchSession:
    """See `sampling.backend.Session`."""

    def __init__(self, backend: TorchBackend, batch: int, latent_shape: tuple[int, int, int], slots: int) -> None:
        self.model, self.on_state = backend.model, backend.on_state
        rows, device = 2 * batch, backend.device
        self.dtype = backend.model.final_layer.linear.weight.dtype
        self.latents = torch.zeros((rows, *latent_shape), device=device)
        self.velocity = torch.zeros((rows, *latent_shape), device=device)
        self.times = torch.zeros(rows, device=device)
        self.labels = torch.zeros(rows, dtype=torch.int64, device=device)
        tokens = backend.config.num_tokens(latent_shape)
        self.modulations = [
            torch.zeros((rows, tokens, backend.config.modulation_size), dtype=self.dtype, device=device)
            for _ in range(slots)
        ]

    @torch.inference_mode()
    def encode(self, slot: int, rows: slice) -> None:
        state = self.model.encode(self.latents[rows].to(self.dtype), self.times[rows], self.labels[rows])
        if self.on_state is not None:
            self.on_state(state)
        self.modulations[slot][rows] = self.model.modulations(state)

    @torch.inference_mode()
    def forecast(self, slot: int, sources: Sequence[tuple[int, float]], constant: Tensor | None, rows: slice) -> None:
        combine(self.modulations, slot, sources, constant, rows)

    @torch.inference_mode()
    def decode(self, slot: int, rows: slice) -> None:
        modulations = self.modulations[slot][rows]
        self.velocity[rows] = self.model.decode_modulated(self.latents[rows].to(self.dtype), modulations)


def combine(
    slots: Sequence[Tensor], target: int, sources: Sequence[tuple[int, float]], constant: Tensor | None, rows: slice
) -> None:
    """Sets some rows of slot `target`, which is none of the sources, to their weighted sum plus `constant` [M]."""
    (first, weight), *others = sources
    out = slots[target][rows]
    if constant is None:
        torch.mul(slots[first][rows], weight, out=out)
    else:
        torch.add(constant.to(out.dtype), slots[first][rows], alpha=weight, out=out)
    for source, weight in others:
        out.add_(slots[source][rows], alpha=weight)
