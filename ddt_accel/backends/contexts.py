"""Execution contexts of engines, one for each number of rows, on one working memory.

A context's shapes are set once, so that a CUDA graph may hold its calls, and it takes as much memory as these shapes
need, not as the largest that its profile allows. All take the same: they run one after the other.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ddt_accel.backends.kernel_cache import KernelCache
from ddt_accel.errors import ArtifactError

ALIGNMENT = 256


class WorkingMemory:
    """One buffer that contexts work in; it is made anew where another one needs a larger."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._buffer = torch.empty(0, dtype=torch.uint8, device=device)
        self._contexts: list[Any] = []
        self._held: list[Tensor] = []
        self._pinned = False

    @property
    def size(self) -> int:
        """Bytes that contexts may use."""
        return max(0, self._buffer.numel() - ALIGNMENT)

    def give(self, context: Any, size: int) -> None:
        """Lets a context work in at least `size` bytes; the others follow where that takes a larger buffer."""
        given = [context]
        if size > self.size:
            with torch.inference_mode(False):
                buffer = torch.empty(size + ALIGNMENT, dtype=torch.uint8, device=self.device)
            if self._pinned:  # a graph goes on with its addresses
                self._held.append(self._buffer)
            self._buffer, self._pinned = buffer, False
            given = [*self._contexts, context]
        self._contexts.append(context)
        address = self._buffer.data_ptr() + -self._buffer.data_ptr() % ALIGNMENT
        for one in given if self.size else ():
            one.set_device_memory(address, self.size)

    def pin(self) -> None:
        """Says that a CUDA graph has taken in where the memory lies, which stays from now on."""
        self._pinned = True


class Contexts:
    """The contexts of a backend's engines, by network and number of rows. Only one may run at a time."""

    def __init__(self, trt: Any, device: torch.device, kernels: KernelCache) -> None:
        self._trt, self._kernels = trt, kernels
        self.memory = WorkingMemory(device)
        self._made: dict[tuple[str, int], Any] = {}

    def of(
        self, network: str, engine: Any, profile: int, shapes: Mapping[str, tuple[int, ...]], stream: torch.cuda.Stream
    ) -> Any:
        """The context for inputs of these `shapes`, whose first dimension is the rows; it is made with `stream`.

        Raises OutOfMemoryError, or ArtifactError where the engine has no such profile or shapes.
        """
        key = network, next(iter(shapes.values()))[0]
        if key not in self._made:
            self._made[key] = self._prepared(network, engine, profile, shapes, stream)
        return self._made[key]

    def _prepared(
        self, network: str, engine: Any, profile: int, shapes: Mapping[str, tuple[int, ...]], stream: torch.cuda.Stream
    ) -> Any:
        context = self._created(engine)
        if context is None:
            torch.cuda.empty_cache()  # what PyTorch holds but does not use
            context = self._created(engine)
        if context is None:
            raise torch.OutOfMemoryError(f"There is no memory left for the {network} engine.")
        if not context.set_optimization_profile_async(profile, stream.cuda_stream):
            raise ArtifactError(f"The {network} engine has no profile {profile}; export anew.")
        # Nothing may be queued any more that works in the memory which is replaced.
        stream.synchronize()
        for name, shape in shapes.items():
            if not context.set_input_shape(name, shape):
                raise ArtifactError(f"The {network} engine takes no {name} of shape {list(shape)}; export anew.")
        # It says 0 where it needs nothing, and where it does not know: then what the profile may need at most.
        size = context.update_device_memory_size_for_shapes() or engine.get_device_memory_size_for_profile_v2(profile)
        self.memory.give(context, size)
        return context

    def _created(self, engine: Any) -> Any:
        ours = self._trt.ExecutionContextAllocationStrategy.USER_MANAGED
        strategies = getattr(self._trt, "DynamicShapesKernelSpecializationStrategy", None)
        if strategies is None:
            return engine.create_execution_context(ours)
        # TensorRT for RTX would compile kernels for these shapes in the background, and run others until it has them;
        # a CUDA graph that is captured meanwhile would keep those.
        config = engine.create_runtime_config()
        config.dynamic_shapes_kernel_specialization_strategy = strategies.EAGER
        config.set_execution_context_allocation_strategy(ours)
        self._kernels.attach(config)
        return engine.create_execution_context(config)
