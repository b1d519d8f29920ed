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
from torch import Tensor

from ddt_accel.backends.networks import DecoderNetwork, EncoderNetwork
from ddt_accel.backends.session import BoundSession
from ddt_accel.backends.tensors import MAX_ENGINE_SOURCES, Cut
from ddt_accel.errors import ConfigError, DependencyError
from ddt_accel.networks.split import SplitNetwork, latent_shape_of
from ddt_accel.networks.device import supports_bf16
from ddt_accel.networks.inference import InferenceDDT


@contextmanager
def compiling(instead: str) -> Iterator[None]:
    """Raises DependencyError, which says what to do `instead`, where PyTorch finds no compiler for what is called."""
    try:
        yield
    except torch._dynamo.exc.TorchDynamoException as error:
        reason = str(getattr(error, "inner_exception", error)).strip().partition("\n")[0]
        raise DependencyError(
            f"PyTorch cannot compile the networks here ({reason}); install what is missing, on a CPU a C++ compiler, "
            f"on a GPU Triton, or {instead}."
        ) from error


class CompiledBackend:
    """A model on the device where it lies, for latents of one shape, by default its own.

    `precision` is "fp32", "fp16" or "bf16", by default bf16 where the device multiplies it in hardware. Calls raise
    DependencyError where PyTorch finds no compiler: on a CPU one for C++, on a GPU Triton.
    """

    takes_all = False
    capturable = True

    def __init__(
        self, model: SplitNetwork, *, precision: str | None = None, latent_shape: tuple[int, int, int] | None = None
    ) -> None:
        self.config, self.latent_shape = model.config, latent_shape_of(model, latent_shape)
        self.checkpoint_sha256 = model.source.sha256 if model.source else None
        self.device = model.final_layer.linear.weight.device
        precision = precision or ("bf16" if supports_bf16(self.device) else "fp32")
        self.cut = Cut(precision=precision, sources=MAX_ENGINE_SOURCES)
        self.name = f"torch compiled, {precision}"
        self._model = InferenceDDT(model, self.latent_shape, precision)
        self.compile_seconds = 0.0  # spent in first calls so far
        self._compiled: dict[tuple[str, int], Callable[..., None]] = {}
        self._called: set[tuple[str, int, bool]] = set()

    def open(self, batch: int, latent_shape: tuple[int, int, int], slots: int) -> BoundSession:
        if latent_shape != self.latent_shape:
            raise ConfigError(
                f"Latents of shape {list(latent_shape)}: the networks were prepared for {list(self.latent_shape)}."
            )
        return BoundSession(self, batch, slots)

    def bind(self, network: str, tensors: dict[str, Tensor]) -> Callable[[], None]:
        """See `backends.session.Runner`."""
        *inputs, output = tensors.values()
        sources = sum(name.startswith(f"{self.cut.cache}_") for name in tensors)
        compiled = self._network(network, sources)
        for tensor in (*inputs, output):
            torch._dynamo.maybe_mark_dynamic(tensor, 0)
        kind = (network, sources, len(output) == 1)  # a batch of one is compiled by itself

        def call() -> None:
            if kind in self._called:
                compiled(output, *inputs)
                return
            started = time.perf_counter()
            with compiling("use another backend"):
                compiled(output, *inputs)
            self._called.add(kind)
            self.compile_seconds += time.perf_counter() - started
            compiled(output, *inputs)  # once more, as all that follow: the first call was for compiling

        return call

    def _network(self, network: str, sources: int) -> Callable[..., None]:
        """The compiled program of a network that writes its output, given first, from its inputs."""
        if (network, sources) not in self._compiled:
            cut = replace(self.cut, sources=sources)
            module: Any = EncoderNetwork(self._model, cut) if network == "encoder" else DecoderNetwork(self._model, cut)

            def write(output: Tensor, *inputs: Tensor) -> None:
                output.copy_(module(*inputs))

            # With a code object of its own: PyTorch stops compiling one after a few variants. Only marked dimensions
            # are dynamic: else, where a second network differs from the first, it makes more of them so, and slower.
            own = FunctionType(write.__code__.replace(), globals(), write.__name__, closure=write.__closure__)
            self._compiled[network, sources] = torch.inference_mode()(torch.compile(own, dynamic=False))
        return self._compiled[network, sources]
