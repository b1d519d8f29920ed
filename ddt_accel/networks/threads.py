"""How many threads PyTorch computes with, and whether fewer would be faster while others keep the processor busy.

After every operation the threads wait for the slowest of them, which beside other processes is the one that lost its
core. One thread waits for nobody.
"""

from __future__ import annotations

import os
import statistics
import time

import torch
from torch import Tensor

from ddt_accel.errors import ConfigError

_ROUNDS, _SECONDS = 3, 0.08  # in turns, each long enough for the system to take a core away and give it back
_WORTH_SAYING = 1.25


def use_threads(wanted: int | None, *, measure: bool = True) -> str:
    """Sets the number of threads, where one is wanted, and says what is used, such as "2 threads".

    Where none is wanted, `measure` takes about half a second to see whether fewer would be faster just now; the text
    then says so. Raises ConfigError for a number that the processors here cannot serve.
    """
    processors = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if wanted is not None:
        if not 1 <= wanted <= processors:
            raise ConfigError(f"--threads is {wanted}; give a number from 1 to {processors}, the processors here.")
        torch.set_num_threads(wanted)
    used = torch.get_num_threads()
    text = f"{used} thread{'s' if used > 1 else ''}"
    if wanted is not None or not measure or used == 1:
        return text
    speeds = _speeds(sorted({used, *(max(1, used >> shift) for shift in (1, 2, 3)), 1}))
    best = max(speeds, key=lambda count: speeds[count])
    gain = speeds[best] / speeds[used]
    if gain < _WORTH_SAYING:
        return text
    return f"{text}; a short trial just now was {gain:.1f} times as fast with --threads {best}"


def _speeds(counts: list[int]) -> dict[int, float]:
    """Pieces of work a second with each number of threads."""
    used = torch.get_num_threads()
    tokens, weights = torch.randn(2048, 256), torch.randn(256, 256)
    done: dict[int, list[float]] = {count: [] for count in counts}
    try:
        for _ in range(_ROUNDS):
            for count in counts:
                torch.set_num_threads(count)
                _work(tokens, weights)  # the threads begin
                pieces, started = 0, time.perf_counter()
                while (elapsed := time.perf_counter() - started) < _SECONDS:
                    _work(tokens, weights)
                    pieces += 1
                done[count].append(pieces / elapsed)
    finally:
        torch.set_num_threads(used)
    return {count: statistics.fmean(speeds) for count, speeds in done.items()}


def _work(tokens: Tensor, weights: Tensor) -> None:
    """Products and what stands between them in a network: small, so that threads wait for each other often."""
    with torch.inference_mode():
        for _ in range(4):
            tokens = torch.nn.functional.layer_norm(tokens, tokens.shape[-1:]) @ weights
            tokens = torch.nn.functional.silu(tokens)
