"""A CUDA graph of what a function queues on the current stream; one that fails leaves nothing behind.

All graphs of a device are captured on one side stream, because cuBLAS keeps a workspace of 32 MiB for each, and share
one pool of memory, because they run one after the other and keep nothing in it between two runs. With the last of them
PyTorch gives the pool up; the next takes a new one.
"""

from __future__ import annotations

import contextlib
import gc
import threading
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch

_ONE_AT_A_TIME = threading.Lock()
_BROKEN: list[torch.cuda.CUDAGraph] = []


@dataclass(frozen=True)
class _Pool:
    handle: Any
    graphs: weakref.WeakSet[torch.cuda.CUDAGraph]  # that live in it


_POOLS: dict[int, _Pool] = {}  # by device


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
        # Held, so that none of them goes meanwhile, and the pool with it.
        others = list(_POOLS[index].graphs) if index in _POOLS else []
        if not others:
            _POOLS[index] = _Pool(torch.cuda.graph_pool_handle(), weakref.WeakSet())
        collecting = gc.isenabled()
        gc.collect()  # what nobody holds any more would be freed during the capture, which that forbids
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        gc.disable()
        try:
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.stream(_stream(index)):
                try:
                    graph.capture_begin(pool=_POOLS[index].handle, capture_error_mode="thread_local")
                    try:
                        work()
                    finally:
                        graph.capture_end()
                except BaseException:
                    _abandon(graph, index)
                    raise
            _POOLS[index].graphs.add(graph)
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

    Its allocator would go on as if captured: with no second try where memory is short, and all that is cached kept. Of
    pinned memory it does so whatever is called: it would refuse the pool, and asks the graph about allocations. So the
    next captures get another pool, and the graph stays.
    """
    pool = _POOLS.pop(device).handle
    with contextlib.suppress(RuntimeError):  # later versions have ended it
        torch._C._cuda_endAllocateToPool(device, pool)
        _BROKEN.append(graph)
        torch._C._cuda_releasePool(device, pool)
    with contextlib.suppress(RuntimeError):
        generator = torch.cuda.default_generators[device]
        generator.graphsafe_set_state(generator.clone_state())  # one that is not being captured
