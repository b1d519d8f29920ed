"""The networks compiled by PyTorch, in bfloat16 where the processor or GPU multiplies it in hardware.

One program for all batches; the encoder's is compiled at the first call, and the decoder's for each number of states
that a forecast draws on, with the forecast inside. PyTorch keeps what it has compiled on the disk for the next process.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from types import FunctionType
from typing import Any

import torch
import torch._dynamo
import torch._dynamo.utils
from torch import Tensor

from ddt_accel.backends.networks import DecoderNetwork, EncoderNetwork
from ddt_accel.backends.session import BoundSession
from ddt_accel.backends.tensors import MAX_ENGINE_SOURCES, Cut, network_name
from ddt_accel.errors import ConfigError, DependencyError
from ddt_accel.networks.device import fastest_precision
from ddt_accel.networks.dynamic.widths import narrow, widths_of
from ddt_accel.networks.families import prepare
from ddt_accel.networks.prepared import Arithmetic, PreparedNetwork
from ddt_accel.networks.split import SplitNetwork, latent_shape_of
from ddt_accel.sampling.backend import Buffers


@contextmanager
def compiling(instead: str) -> Iterator[None]:
    """Raises DependencyError, which says what to do `instead`, where PyTorch finds no compiler for what is called."""
    try:
        yield
    except torch._dynamo.exc.TorchDynamoException as error:
        reason = str(getattr(error, "inner_exception", error)).strip().partition("\n")[0]
        raise DependencyError(
            f"PyTorch cannot compile the networks here ({reason}); install what is missing, on a CPU a C++ compiler, "
            f"on a GPU Triton, a C compiler and Python's headers (python3-dev), or {instead}."
        ) from error


class CompiledBackend:
    """A model on the device where it lies, for latents of one shape, by default its own.

    `precision` is "fp32", "fp16" or "bf16", by default what the device multiplies in hardware: bf16, or fp16 on a GPU
    that has only that. With `cache="state"` states are kept between refreshes in the place of modulations: for
    DDT-XL/2 a thirty-eighth of the memory, for which the decoder computes modulations at every step. Calls raise
    DependencyError where PyTorch finds no compiler: on a CPU one for C++, on a GPU Triton and one for C.
    """

    takes_all = False
    guide = None
    capturable = True

    def __init__(
        self,
        model: SplitNetwork,
        *,
        precision: str | None = None,
        latent_shape: tuple[int, int, int] | None = None,
        cache: str = "modulations",
    ) -> None:
        self.config, self.latent_shape = model.config, latent_shape_of(model, latent_shape)
        self.checkpoint_sha256 = model.source.sha256 if model.source else None
        self.device = model.device
        precision = precision or fastest_precision(self.device)
        self.cut = Cut(precision=precision, cache=cache, sources=MAX_ENGINE_SOURCES, blockwise=True)
        self.name = f"torch compiled, {precision}{', states cached' * (cache == 'state')}"
        self.widths = widths_of(model)
        self._arithmetic = Arithmetic.of(precision)
        self._model = prepare(model, self.latent_shape, self._arithmetic)
        self._prepared: dict[float, PreparedNetwork] = {1.0: self._model}
        self._nested = model if len(self.widths) > 1 else None  # else it need not stay
        self.compile_seconds = 0.0  # spent in calls that compiled something, so far
        self._compiled: dict[tuple[str, int], Callable[..., None]] = {}

    def open(
        self, batch: int, latent_shape: tuple[int, int, int], slots: int, *, buffers: Buffers | None = None
    ) -> BoundSession:
        if latent_shape != self.latent_shape:
            raise ConfigError(
                f"Latents of shape {list(latent_shape)}: the networks were prepared for {list(self.latent_shape)}."
            )
        return BoundSession(self, batch, slots, buffers=buffers)

    def bind(self, network: str, tensors: dict[str, Tensor]) -> Callable[[], None]:
        """See `backends.session.Runner`."""
        if network.startswith("decoder"):
            *inputs, output = tensors.values()
            drawn = {name.partition(".")[0] for name in tensors if name.startswith(f"{self.cut.cache}_")}
            return self._call(network, len(drawn), inputs, output)
        latents, times, labels, state, *caches = tensors.values()
        encode = self._call(network, 0, [latents, times, labels], state)
        if not caches:
            return encode
        # The program ends at the state: products write into the slots themselves, what is compiled would copy it there.
        flat = state.flatten(0, 1)
        products = [
            (bias, weight.t(), cache.flatten(0, 1))
            for (weight, bias), cache in zip(self._model.modulation_maps(), caches, strict=True)
        ]

        @torch.inference_mode()
        def call() -> None:
            encode()
            for bias, weight, out in products:
                torch.addmm(bias, flat, weight, out=out)

        return call

    def _call(self, network: str, sources: int, inputs: list[Tensor], output: Tensor) -> Callable[[], None]:
        """A call of a compiled program on these tensors; what it takes to compile is kept apart from its own time."""
        compiled = self._network(network, sources)
        for tensor in (*inputs, output):
            torch._dynamo.maybe_mark_dynamic(tensor, 0)

        def call() -> None:
            before, started = _compilations(), time.perf_counter()
            with compiling("use another backend"):
                compiled(output, *inputs)
            if _compilations() != before:
                self.compile_seconds += time.perf_counter() - started
                compiled(output, *inputs)  # once more, as all that follow

        return call

    def _network(self, network: str, sources: int) -> Callable[..., None]:
        """The compiled program of a network that writes its output, given first, from its inputs."""
        if (network, sources) not in self._compiled:
            kind = network.partition("-")[0]
            width = next(one for one in self.widths if network_name(kind, one) == network)
            prepared, cut = self._at(width), replace(self.cut, sources=sources)
            module: Any = EncoderNetwork(prepared, cut) if kind == "encoder" else DecoderNetwork(prepared, cut)

            def write(output: Tensor, *inputs: Tensor) -> None:
                output.copy_(module(*inputs))

            # With a code object of its own: PyTorch stops compiling one after a few variants. Only marked dimensions
            # are dynamic: else, where a second network differs from the first, it makes more of them so, and slower.
            own = FunctionType(write.__code__.replace(), globals(), write.__name__, closure=write.__closure__)
            self._compiled[network, sources] = torch.inference_mode()(torch.compile(own, dynamic=False))
        return self._compiled[network, sources]

    def _at(self, width: float) -> PreparedNetwork:
        """The network at one of its widths, prepared when it is first asked for."""
        if width not in self._prepared:
            assert self._nested is not None
            narrower = narrow(self._nested, width, known=False)
            self._prepared[width] = prepare(narrower, self.latent_shape, self._arithmetic)
        return self._prepared[width]


def _compilations() -> int:
    """How many programs PyTorch has compiled in this process."""
    return int(torch._dynamo.utils.counters["stats"]["unique_graphs"])
