"""What a part of `gpu.py` is given, and how it tells what it finds."""

from __future__ import annotations

import contextlib
import lzma
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from parts import as_run
from record import record
from setting import network
from torch import Tensor

from ddt_accel import SamplingSpec, Schedule, draw_labels, draw_noise
from ddt_accel.networks.device import synchronize
from ddt_accel.networks.split import latent_shape_of

LARGEST = 15 << 20  # bytes of a file that is kept
ALWAYS = (-1.0, 2.0)  # a guidance interval: every step is guided


@dataclass
class Part:
    """What a part is given: its name, where figures go, when its time is over (by `time.monotonic`), whether networks
    are tiny ones on a CPU, and where the published implementation is."""

    name: str
    results: Path
    ends: float
    reduced: bool
    clone: Path | None

    @property
    def device(self) -> torch.device:
        return torch.device("cpu" if self.reduced else "cuda")

    @property
    def cuda(self) -> bool:
        return self.device.type == "cuda"

    @property
    def left(self) -> float:
        return self.ends - time.monotonic()

    @cached_property
    def model(self) -> Any:
        return self.network("xl2-256")

    def network(self, name: str) -> Any:
        """By its name, or the tiny one of its family."""
        family = "-".join(name.split("-")[:-2])
        return network(f"tiny{'-' * bool(family)}{family}" if self.reduced else name, self.device.type)

    @property
    def shape(self) -> tuple[int, int, int]:
        return latent_shape_of(self.model)

    @cached_property
    def spec(self) -> SamplingSpec:
        return SamplingSpec(num_steps=6 if self.reduced else 50, guidance=2.0, guidance_interval=ALWAYS)

    @property
    def schedules(self) -> dict[str, Schedule]:
        """Random weights need no calibration: refreshes at even distances, held, and with rows of two states."""
        held = Schedule.uniform(self.spec, max(2, self.spec.num_steps // 5))
        at, rows = held.refresh_steps, {}
        for k in range(at[1] + 1, self.spec.num_steps):
            one, two = [r for r in at if r <= k][-2:]
            if k != two:
                ahead = 0.5 * (k - two) / (two - one)
                rows[k] = ((one, -ahead), (two, 1 + ahead))
        return {"held": held, "two sources": replace(held, forecasts=rows), "unshared": Schedule.full(self.spec)}

    def tell(self, name: str, value: float | str | None, unit: str = "", **details: Any) -> None:
        record(self.results, self.name, name, value, **({"unit": unit} if unit else {}), **details)
        print(f"{name}: {value} {unit}", flush=True)

    @contextlib.contextmanager
    def trying(self, name: str, *, needs: float = 1.0) -> Iterator[None]:
        """What fails in it is recorded, and the next comes; so is what would take more seconds than are left."""
        try:
            if self.left < needs:
                raise TimeoutError(f"{self.left:.0f} s were left")
            yield
        except Exception as error:
            self.tell(name, None, error=f"{type(error).__name__}: {error}"[:300])

    def seconds(self, call: Callable[[], object], *, within: float = 1.0, graph: bool = True) -> float:
        """The median of a call; on a GPU of replays of its CUDA graph, by events."""
        run = as_run(call, self.device) if graph else call
        run()
        taken: list[float] = []
        ends = time.monotonic() + min(within, self.left)
        while len(taken) < 3 or time.monotonic() < ends:
            if self.cuda:
                first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
                first.record()
                run()
                last.record()
                last.synchronize()
                taken.append(first.elapsed_time(last) / 1e3)
            else:
                started = time.perf_counter()
                run()
                taken.append(time.perf_counter() - started)
        return statistics.median(taken)

    def once(self, call: Callable[[], object]) -> float:
        """Seconds of one call, waited for."""
        synchronize(self.device)
        started = time.perf_counter()
        call()
        synchronize(self.device)
        return time.perf_counter() - started

    def images(self, batch: int) -> tuple[Tensor, Tensor]:
        labels = draw_labels(self.model.config.num_classes, seed=0, indices=range(batch))
        return draw_noise(self.shape, seed=0, indices=range(batch)), labels

    def load_compiled(self) -> None:
        """What an earlier run has compiled in this part; of another version, or damaged, it is compiled anew."""
        if self._compiled.exists():
            with contextlib.suppress(Exception):
                torch.compiler.load_cache_artifacts(lzma.decompress(self._compiled.read_bytes()))

    def keep_compiled(self) -> None:
        """For the next run, where it is not too large."""
        with self.trying("kept"):
            saved = torch.compiler.save_cache_artifacts()
            kept = lzma.compress(saved[0], preset=0) if saved else b""
            size = len(kept)
            if kept and size <= LARGEST:
                making = self._compiled.with_suffix(".part")
                making.write_bytes(kept)
                making.rename(self._compiled)
            self.tell("kept", size, "bytes", fits=size <= LARGEST)

    @property
    def _compiled(self) -> Path:
        return self.results.parent / f"compiled-{self.name}.xz"
