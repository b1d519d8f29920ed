"""What a device is called, what it multiplies fast, how much it holds, and waiting for it."""

from __future__ import annotations

import contextlib
import functools
import os
import platform
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

if sys.platform != "win32":
    import resource


def supports_bf16(device: torch.device) -> bool:
    """Whether the device multiplies bfloat16 matrices in hardware."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return bf16_gain() > 1


def fastest_precision(device: torch.device) -> str:
    """What a device multiplies in hardware: "bf16", "fp16" on a GPU that has only that, or "fp32"."""
    if supports_bf16(device):
        return "bf16"
    # Cards before Ampere multiply float16 alone, from Volta on.
    half = device.type == "cuda" and torch.cuda.get_device_capability(device) >= (7, 0)
    return "fp16" if half else "fp32"


@functools.cache
def bf16_gain() -> float:
    """How many times faster this processor multiplies matrices in bfloat16 than in float32; 0 where it does so wrongly.

    Measured, once a process: what the processor says of itself is not what the libraries make of it, and without
    the hardware bfloat16 is many times slower.
    """
    generator = torch.Generator().manual_seed(0)
    wide = torch.randn(256, 256, generator=generator)
    narrow = wide.bfloat16()
    with torch.inference_mode():
        expected = narrow.float() @ narrow.float()
        if not torch.allclose((narrow @ narrow).float(), expected, rtol=0.02, atol=0.5):
            return 0.0
        seconds = {wide: float("inf"), narrow: float("inf")}
        for _ in range(7):  # in turns, and the best of each: other processes cost time, they never save it
            for matrix in seconds:
                started = time.perf_counter()
                matrix @ matrix
                seconds[matrix] = min(seconds[matrix], time.perf_counter() - started)
    return seconds[wide] / seconds[narrow]


@contextlib.contextmanager
def full_float32(device: torch.device) -> Iterator[None]:
    """Multiplies and convolves float32 as such on a GPU, not as TensorFloat32 with its 10 bits of mantissa, whatever
    this process is set to otherwise, be it by TORCH_ALLOW_TF32_CUBLAS_OVERRIDE; PyTorch convolves in it by default."""
    if device.type != "cuda":
        yield
        return
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    kinds = [getattr(cudnn, kind) for kind in ("conv", "rnn") if hasattr(cudnn, kind)]
    with _without_tf32(matmul, [matmul]), _without_tf32(cudnn, kinds):
        yield


@contextlib.contextmanager
def _without_tf32(library: Any, parts: list[Any]) -> Iterator[None]:
    """PyTorch has two settings: `allow_tf32` of a library, and a newer one of each of its `parts`. The older cannot be
    read where they differ."""
    newer = bool(parts) and all(hasattr(part, "fp32_precision") for part in parts)
    before = [part.fp32_precision for part in parts] if newer else [library.allow_tf32]
    library.allow_tf32 = False  # sets both
    try:
        yield
    finally:
        library.allow_tf32 = before[0] in (True, "tf32")
        for part, value in zip(parts, before, strict=True) if newer else ():
            part.fp32_precision = value


def memory_of(device: torch.device) -> int:
    """Bytes that the device has in all, as far as this process may use them."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    if sys.platform == "win32":
        return sys.maxsize  # the system says so itself, late
    limits = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    allowed, _ = resource.getrlimit(resource.RLIMIT_AS)
    if allowed != resource.RLIM_INFINITY:
        limits.append(allowed)
    with contextlib.suppress(OSError, ValueError):  # no container, or one without a limit: "max"
        limits.append(int(Path("/sys/fs/cgroup/memory.max").read_text()))
    return min(limits)


def synchronize(device: torch.device) -> None:
    """Waits until a GPU has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else processor()


def processor() -> str:
    """The CPU's own name, where the system tells."""
    try:
        with open("/proc/cpuinfo") as file:
            names = [line.partition(":")[2].strip() for line in file if line.startswith("model name")]
    except OSError:
        names = []
    return names[0] if names else platform.processor() or platform.machine()
