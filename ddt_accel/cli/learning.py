"""How a training run is watched, and how it is stopped."""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from types import FrameType
from typing import TYPE_CHECKING, Any

from ddt_accel.cli.console import Steps, duration, say, steps

if TYPE_CHECKING:
    from torch import Tensor

    from ddt_accel.training.train_spec import TrainSpec

_FIRST = 2.0  # seconds to the first loss
_EVERY = 10.0  # seconds between losses, at first: a sixtieth of the time so far, later


@contextmanager
def watched(spec: TrainSpec) -> Iterator[Callable[[int, Tensor], None]]:
    """Tells losses, speed and the time left; what it yields is called with each step and its loss."""
    with steps("training", spec.num_steps) if sys.stderr.isatty() else nullcontext() as bar:
        yield _Watch(spec, bar)


class _Watch:
    def __init__(self, spec: TrainSpec, bar: Steps | None) -> None:
        self._spec, self._bar = spec, bar
        self._losses: list[Tensor] = []
        self._started = time.monotonic()
        self._due = self._started + _FIRST
        self._clock: tuple[int, float] | None = None  # not begun before the first step, which compiles

    def __call__(self, step: int, loss: Tensor) -> None:
        import torch

        self._losses.append(loss)
        if self._bar is not None:
            self._bar.to(step)
        now = time.monotonic()
        if now >= self._due or step == self._spec.num_steps:
            mean = torch.stack(self._losses).mean().item()
            now = time.monotonic()  # a GPU's steps have ended only now
            say(f"step {step:,} of {self._spec.num_steps:,}, loss {mean:.4f}{self._pace(step, now)}")
            self._losses, self._clock = [], (step, now)
            self._due = now + max(_EVERY, (now - self._started) / 60)
        elif self._clock is None:
            self._clock = (step, now)

    def _pace(self, step: int, now: float) -> str:
        if self._clock is None or self._clock[0] == step:
            return ""
        rate = (step - self._clock[0]) / (now - self._clock[1])  # of steps, since the line before
        left = (self._spec.num_steps - step) / rate
        return f", {rate * self._spec.batch_size:.0f} images/s" + (f", about {duration(left)} left" if left else "")


@contextmanager
def stoppable() -> Iterator[Callable[[], int | None]]:
    """Ctrl-C, or a polite kill, asks to stop after the step; once more, it stops at once. Yields what was asked."""
    asked: list[int] = []
    before: dict[int, Any] = {}

    def ask(number: int, frame: FrameType | None) -> None:
        asked.append(number)
        for each, handler in before.items():
            signal.signal(each, handler)
        say("Stopping after this step, to keep what was trained …")

    try:
        for stop in (signal.SIGINT, signal.SIGTERM):
            before[stop] = signal.signal(stop, ask)
        yield lambda: asked[0] if asked else None
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
