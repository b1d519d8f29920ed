"""A CUDA graph of what a function queues on the current stream; one that fails leaves nothing behind.

All graphs of a device are captured on one side stream, because cuBLAS keeps a workspace of 32 MiB for each, and share
one pool of memory, because they run one after the other and keep nothing in it between two runs.
"""

from __future__ import annotations

import contextlib
import gc
import threading
from collections.abc import Callable
from functools import cache
from typing import Any

import torch

_ONE_AT_A_TIME = threading.Lock()
_POOLS: dict[int, Any] = {}  # by device
_BROKEN: list[torch.cuda.CUDAGraph] = []


def captures(device: torch.device) -> bool:
    """Whether what is queued on a device can be captured at all."""
    return device.type == "cuda"


def capture(work: Callable[[], None], device: torch.device) -> torch.cuda.CUDAGraph:
    """The graph of `work`, which has run before, so that it prepares nothing any more; it is queued, not run.

    Other threads may allocate meanwhile. Raises what kept it from being captured (`cause_of`); PyTorch's allocator then
    works as before.
    """
    with _ONE_AT_A_TIME, torch.cuda.device(device):
        index = torch.cuda.current_device()
        stream = _stream(index)
        if index not in _POOLS:
            _POOLS[index] = torch.cuda.graph_pool_handle()
        collecting = gc.isenabled()
        gc.collect()  # what nobody holds any more would be freed during the capture, which that forbids
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        gc.disable()
        try:
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.stream(stream):
                graph.capture_begin(pool=_POOLS[index], capture_error_mode="thread_local")
                try:
                    try:
                        work()
                    finally:
                        graph.capture_end()
                except BaseException:
                    _abandon(graph, index)
                    raise
        finally:
            if collecting:
                gc.enable()
    return graph


def cause_of(error: BaseException) -> str:
    """The first thing that went wrong: a capture that failed for a reason fails once more when it is ended."""
    while error.__context__ is not None:
        error = error.__context__
    return str(error).partition("\n")[0] or type(error).__name__


@cache
def _stream(device: int) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)


def _abandon(graph: torch.cuda.CUDAGraph, device: int) -> None:
    """Ends what PyTorch up to 2.11 leaves open after a failed capture (pytorch #180395, #190348).

    Its allocator would go on as if captured: with no second try where memory is short, and all that is cached kept. That
    of pinned memory does so in any case, where nothing ends it: it would refuse the pool and asks the graph, so that the
    next captures get another pool and the graph stays.
    """
    pool = _POOLS.pop(device)
    with contextlib.suppress(RuntimeError):  # later versions have ended it
        torch._C._cuda_endAllocateToPool(device, pool)
        torch._C._cuda_releasePool(device, pool)
        _BROKEN.append(graph)
    with contextlib.suppress(RuntimeError):
        generator = torch.cuda.default_generators[device]
        generator.graphsafe_set_state(generator.clone_state())  # one that is not being captured
