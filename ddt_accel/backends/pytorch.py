"""The networks run by PyTorch: the reference for every other backend."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

from ddt_accel.networks.device import full_float32
from ddt_accel.networks.dynamic.widths import narrow, widths_of
from ddt_accel.networks.split import SplitNetwork
from ddt_accel.sampling.backend import Buffers

T = TypeVar("T")


class TorchBackend:
    """Runs a model where it lies and as it is; in float32 its products are that on a GPU, too, and not TensorFloat32.

    `on_state` is called with every encoder state [rows, L, D], for those who study it. With `cache="state"` states are
    kept between refreshes in the place of modulations, which are made at every step: slower, in far less memory.
    """

    name = "torch"
    guide = None

    def __init__(
        self, model: SplitNetwork, *, on_state: Callable[[Tensor], None] | None = None, cache: str = "modulations"
    ) -> None:
        self.model, self.cache = model, cache
        self.config, self.widths = model.config, widths_of(model)
        self._narrow: dict[float, SplitNetwork] = {1.0: model}
        self.checkpoint_sha256 = model.source.sha256 if model.source else None
        self.device = model.device
        self.latent_shape = model.config.fixed_shape or (model.source.latent_shape if model.source else None)
        self.on_state = on_state
        self.capturable = on_state is None  # a graph would not call it

    def at(self, width: float) -> SplitNetwork:
        """The network at one of its widths, made when it is first asked for."""
        if width not in self._narrow:
            self._narrow[width] = narrow(self.model, width, known=False)
        return self._narrow[width]

    def open(
        self, batch: int, latent_shape: tuple[int, int, int], slots: int, *, buffers: Buffers | None = None
    ) -> TorchSession:
        kind = StateSession if self.cache == "state" else TorchSession
        return kind(self, batch, latent_shape, slots, buffers=buffers)


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
        self.model, self.at, self.on_state, self.batch = backend.model, backend.at, backend.on_state, batch
        self.device = device = backend.device
        self.dtype = dtype = backend.model.dtype
        buffers = buffers or Buffers.zeros(2 * batch, latent_shape, device)
        self.latents, self.times, self.labels = buffers.latents, buffers.times, buffers.labels
        self.velocity = buffers.velocity
        shape = (len(buffers.latents), backend.config.num_tokens(latent_shape), self._cached(backend))
        self.slots = make_slots(slots, lambda: torch.zeros(shape, dtype=dtype, device=device))

    @staticmethod
    def _cached(backend: TorchBackend) -> int:
        """Values a token in a slot."""
        return backend.config.modulation_size

    @torch.inference_mode()
    def encode(self, slot: int, rows: slice, width: float = 1.0) -> None:
        state = self._state(rows, width)
        # One map after the other, as `SplitNetwork.modulations` has them: all at once would be two more copies of them.
        parts = self.slots[slot][rows].split(self.model.config.modulation_widths, dim=-1)
        with full_float32(self.device):
            for affine, part in zip(self.model.modulation_maps, parts, strict=True):
                part.copy_(affine(state))

    @torch.inference_mode()
    def forecast(self, slot: int, sources: Sequence[tuple[int, float]], constant: Tensor | None, rows: slice) -> None:
        drawn = [(self.slots[source][rows], weight) for source, weight in sources]
        combine(self.slots[slot][rows], drawn, constant)

    @torch.inference_mode()
    def decode(self, slot: int, rows: slice, width: float = 1.0) -> None:
        self._decode(self.slots[slot][rows], rows, width)

    def _state(self, rows: slice, width: float) -> Tensor:
        with full_float32(self.device):
            state = self.at(width).encode(self.latents[rows].to(self.dtype), self.times[rows], self.labels[rows])
        if self.on_state is not None:
            self.on_state(state)
        return state

    def _decode(self, modulations: Tensor, rows: slice, width: float) -> None:
        with full_float32(self.device):
            self.velocity[rows] = self.at(width).decode_modulated(self.latents[rows].to(self.dtype), modulations)


class StateSession(TorchSession):
    """A session whose slots hold states s: of `Σ w s + constant` modulations are made when they are read, as
    `W Σ w s + b Σ w + constant`."""

    def __init__(self, backend: TorchBackend, batch: int, *given: Any, **settings: Any) -> None:
        super().__init__(backend, batch, *given, **settings)
        self._bias = backend.model.modulation_bias
        # (slot, half of the rows) → what its modulations have beyond the affine map of its state, if anything.
        self._beyond: dict[tuple[int, int], Tensor | None] = {}

    @staticmethod
    def _cached(backend: TorchBackend) -> int:
        return backend.config.state_size

    @torch.inference_mode()
    def encode(self, slot: int, rows: slice, width: float = 1.0) -> None:
        self.slots[slot][rows] = self._state(rows, width)
        self._note(slot, rows, None)

    @torch.inference_mode()
    def forecast(self, slot: int, sources: Sequence[tuple[int, float]], constant: Tensor | None, rows: slice) -> None:
        combine(self.slots[slot][rows], [(self.slots[source][rows], weight) for source, weight in sources], None)
        beyond = (sum(weight for _, weight in sources) - 1) * self._bias
        self._note(slot, rows, beyond if constant is None else beyond + constant.to(beyond))

    @torch.inference_mode()
    def decode(self, slot: int, rows: slice, width: float = 1.0) -> None:
        with full_float32(self.device):
            modulations = self.model.modulations(self.slots[slot][rows])
        for half in self._halves(rows):
            beyond = self._beyond[slot, half]
            if beyond is not None:
                start = half * self.batch - rows.start
                modulations[start : start + self.batch] += beyond
        self._decode(modulations, rows, width)

    def _note(self, slot: int, rows: slice, beyond: Tensor | None) -> None:
        self._beyond |= {(slot, half): beyond for half in self._halves(rows)}

    def _halves(self, rows: slice) -> list[int]:
        return [half for half in (0, 1) if rows.start <= half * self.batch < rows.stop]


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
