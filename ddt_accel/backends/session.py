"""A session on networks whose tensors are bound once: the same for ONNX Runtime, TensorRT and compiled networks.

Buffers are made once for a batch. The encoder writes into the slot that the decoder reads; between them nothing is
copied. Where the decoder makes forecasts itself, `forecast` only notes which slots it draws on and with what weights.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Protocol

import torch
from torch import Tensor

from ddt_accel.backends.pytorch import combine, make_slots
from ddt_accel.backends.tensors import Cut, TensorSpec, network_name, tensor_table
from ddt_accel.errors import ConfigError
from ddt_accel.networks.config import SplitConfig
from ddt_accel.sampling.backend import Buffers


class Runner(Protocol):
    """Whatever runs the two networks on buffers that it is given."""

    config: SplitConfig
    latent_shape: tuple[int, int, int]
    cut: Cut
    device: torch.device
    # Whether the decoder takes exactly `cut.sources` states; else any smaller number, and one as it is without weights.
    takes_all: bool

    def bind(self, network: str, tensors: dict[str, Tensor]) -> Callable[[], None]:
        """A call of a network on `tensors`, inputs and output by name, whose addresses stay.

        It is "encoder" or "decoder", or what `backends.tensors.network_name` calls one of them at a width.
        """


# What a half of a slot's rows is made of: slots, their weights, and a constant [M].
Recipe = tuple[tuple[int, ...], tuple[float, ...], Tensor | None]


class BoundSession:
    """See `sampling.backend.Session`."""

    def __init__(self, runner: Runner, batch: int, slots: int, *, buffers: Buffers | None = None) -> None:
        cut, device = runner.cut, runner.device
        given = buffers or Buffers.zeros(2 * batch, runner.latent_shape, device)
        rows = len(given.latents)
        self._runner, self._batch, self._cut = runner, batch, cut
        self._table = tensor_table(runner.config, runner.latent_shape, cut)
        self._buffers = vars(given) | {
            tensor.name: torch.zeros(tensor.at(rows), dtype=getattr(torch, tensor.dtype), device=device)
            for network in self._table.values()
            for tensor in network
            if tensor.name.partition(".")[0] not in (cut.cache, *cut.caches(), *vars(given))
        }
        self.latents, self.times, self.labels = given.latents, given.times, given.labels
        self.velocity = given.velocity
        cached = [one for one in self._table["encoder"] if one.name not in self._buffers]
        self._widths = [one.shape[-1] for one in cached]
        # Each of one tensor, or of one a block.
        self.slots = make_slots(
            slots,
            lambda: [torch.zeros(one.at(rows), dtype=getattr(torch, one.dtype), device=device) for one in cached],
        )
        self._recipes: dict[tuple[int, int], Recipe] = {}  # (slot, half) → what it is made of
        self._given: list[Recipe | None] = [None, None]  # what the buffers of weights and constants hold, by half
        # On the device, so that a second trajectory copies nothing to it.
        self._weights: dict[tuple[float, ...], Tensor] = {}
        self._zero = torch.zeros((), device=device)
        self._encoders: dict[tuple[int, float, int, int], Callable[[], None]] = {}
        self._decoders: dict[tuple[tuple[int, ...], bool, float, int, int], Callable[[], None]] = {}

    def encode(self, slot: int, rows: slice, width: float = 1.0) -> None:
        key = (slot, width, rows.start, rows.stop)
        if key not in self._encoders:
            name = network_name("encoder", width)
            self._encoders[key] = self._bind(name, self._table["encoder"], self.slots[slot], rows)
        for half in self._halves(rows):
            self._recipes[slot, half] = ((slot,), (1.0,), None)
            # Every trajectory writes what it reads, so that one that was captured runs after any other.
            self._given[half] = None
        self._encoders[key]()

    def forecast(self, slot: int, sources: Sequence[tuple[int, float]], constant: Tensor | None, rows: slice) -> None:
        if self._cut.sources == 0:
            self._combine(slot, sources, constant, rows)
            recipe: Recipe = ((slot,), (1.0,), None)
        else:
            recipe = (tuple(source for source, _ in sources), tuple(weight for _, weight in sources), constant)
        for half in self._halves(rows):
            self._recipes[slot, half] = recipe

    def decode(self, slot: int, rows: slice, width: float = 1.0) -> None:
        if self._cut.sources == 0:
            self._decoder((slot,), rows, width, held=True)()
            return
        halves = self._halves(rows)
        drawn = self._drawn(slot, halves)
        if len(drawn) > self._cut.sources and len(halves) == 2:  # branches that draw on different refreshes
            for half in halves:
                self.decode(slot, slice(half * self._batch, (half + 1) * self._batch), width)
            return
        if len(drawn) > self._cut.sources:
            drawn = self._materialise(slot, halves)
        if self._runner.takes_all:
            padded = (*drawn, *drawn[:1] * (self._cut.sources - len(drawn)))
        elif len(drawn) == 1 and all(_is_held(self._recipes[slot, half]) for half in halves):
            self._decoder(drawn, rows, width, held=True)()
            return
        else:
            padded = drawn
        for half in halves:
            self._give(half, self._recipes[slot, half], drawn)
        self._decoder(padded, rows, width)()

    def _halves(self, rows: slice) -> list[int]:
        return [half for half in (0, 1) if rows.start <= half * self._batch < rows.stop]

    def _drawn(self, slot: int, halves: list[int]) -> tuple[int, ...]:
        """The slots that forecasts of any half draw on."""
        return tuple(sorted({source for half in halves for source in self._recipes[slot, half][0]}))

    def _materialise(self, slot: int, halves: list[int]) -> tuple[int, ...]:
        """Makes forecasts from more states than the decoder takes before it, as far as it must; the slots that it then
        takes."""
        if self._cut.cache == "state" and self._cut.sources == 1:
            raise ConfigError(
                f"A forecast draws on {len(self._drawn(slot, halves))} states, and this export's decoder takes one; "
                "export with --sources 2 or more, or with modulations as cache."
            )
        last = self._drawn(slot, halves)[-1]
        for half in halves:
            sources, weights, constant = self._recipes[slot, half]
            if sources == (slot,):
                continue
            rows, drawn = slice(half * self._batch, (half + 1) * self._batch), dict(zip(sources, weights, strict=True))
            if self._cut.cache == "state":
                # What is not a sum of weights 1 has a constant of its own, which the decoder makes: so one state is
                # taken by itself, as often as is missing.
                missing = sum(weights) - 1
                drawn[last] = drawn.get(last, 0.0) - missing
                self._combine(slot, list(drawn.items()), None, rows)
                self._recipes[slot, half] = ((slot, last), (1.0, missing), constant)
            else:
                self._combine(slot, list(drawn.items()), constant, rows)
                self._recipes[slot, half] = ((slot,), (1.0,), None)
        return self._drawn(slot, halves)

    def _combine(self, slot: int, sources: Sequence[tuple[int, float]], constant: Tensor | None, rows: slice) -> None:
        constants = [None] * len(self._widths) if constant is None else constant.split(self._widths)
        for part, added in enumerate(constants):
            drawn = [(self.slots[source][part][rows], weight) for source, weight in sources]
            combine(self.slots[slot][part][rows], drawn, added)

    def _give(self, half: int, recipe: Recipe, drawn: tuple[int, ...]) -> None:
        """Writes weights, in the order of `drawn`, and constant of a half into their buffers."""
        sources, weights, constant = recipe
        ordered: Recipe = (
            drawn, tuple(sum(w for s, w in zip(sources, weights, strict=True) if s == one) for one in drawn), constant
        )  # fmt: skip
        known = self._given[half]
        if known is not None and known[:2] == ordered[:2] and known[2] is constant:
            return
        rows = slice(half * self._batch, (half + 1) * self._batch)
        if ordered[1] not in self._weights:
            padding = (0.0,) * (self._cut.sources - len(drawn))
            self._weights[ordered[1]] = torch.tensor([*ordered[1], *padding], device=self._runner.device)
        self._buffers["weights"][rows] = self._weights[ordered[1]]
        self._buffers["constant"][rows] = self._zero if constant is None else constant
        self._given[half] = ordered

    def _decoder(self, slots: tuple[int, ...], rows: slice, width: float, *, held: bool = False) -> Callable[[], None]:
        key = (slots, held, width, rows.start, rows.stop)
        if key not in self._decoders:
            cut = replace(self._cut, sources=0 if held else len(slots))
            table = tensor_table(self._runner.config, self._runner.latent_shape, cut)["decoder"]
            cached = [part for one in slots for part in self.slots[one]]
            self._decoders[key] = self._bind(network_name("decoder", width), table, cached, rows)
        return self._decoders[key]

    def _bind(self, network: str, table: list[TensorSpec], cached: list[Tensor], rows: slice) -> Callable[[], None]:
        """A call on these rows of buffers and, in the table's order, of what is cached."""
        parts = iter(cached)
        tensors = {one.name: self._buffers[one.name] if one.name in self._buffers else next(parts) for one in table}
        return self._runner.bind(network, {name: tensor[rows] for name, tensor in tensors.items()})


def _is_held(recipe: Recipe) -> bool:
    """Whether a state is used as it is."""
    return recipe[1] == (1.0,) and recipe[2] is None
