"""What trajectories take where they are replayed: as `sample` runs them on a GPU, once everything is prepared.

A graph leaves the host nothing to do. What the host costs is seen beside it, by the same trajectory call by call.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor

from ddt_accel.networks.device import synchronize
from ddt_accel.sampling.backend import Backend
from ddt_accel.sampling.program import Program
from ddt_accel.sampling.trajectory import Trajectory

T = TypeVar("T")


class Replays:
    """Prepared trajectories of a backend by name and batch size; as many of them at a time as fit into memory.

    Each has buffers of its own, so that what is measured in turns need not be prepared in every turn.
    """

    def __init__(self, backend: Backend) -> None:
        self.backend = backend
        self._kept: dict[tuple[str, int], Trajectory] = {}
        self._fails = False  # whether a capture failed that had the memory to itself

    def take(
        self,
        name: str,
        program: Program,
        noise: Tensor,
        labels: Tensor,
        step_noise: Callable[[int], Tensor] | None = None,
    ) -> tuple[Tensor, float, float | None]:
        """The latents [B, C, H, W] of a batch, the seconds that they take as `sample` draws them, and those that they
        take call by call; None where `sample` does that, too.

        `name` stands for the program. Raises NumericsError where the latents are not finite.
        """
        trajectory = self._prepared(name, program, noise, labels, step_noise)
        trajectory.step_noise = step_noise

        def timed(run: Callable[[], None]) -> tuple[Tensor, float]:
            synchronize(self.backend.device)
            started = time.perf_counter()
            trajectory.start(noise, labels)
            run()
            latents = trajectory.end()
            synchronize(self.backend.device)
            return latents, time.perf_counter() - started

        latents, seconds = timed(trajectory.run)
        if not trajectory.is_captured:
            return latents, seconds, None
        _, by_call = timed(lambda: _step_by_step(trajectory))
        return latents, seconds, by_call

    def with_room(self, work: Callable[[], T]) -> T:
        """The result of `work`; where memory is short for it, once more without the trajectories that are kept."""
        try:
            return work()
        except torch.OutOfMemoryError:
            if not self._kept:
                raise
        self._drop()  # after the block: what the failed one held is free only then
        return work()

    def _prepared(
        self, name: str, program: Program, noise: Tensor, labels: Tensor, step_noise: Callable[[int], Tensor] | None
    ) -> Trajectory:
        """A trajectory that has run so often that nothing is left to be made ready."""

        def made() -> Trajectory:
            trajectory = Trajectory(self.backend, program, noise, labels, step_noise=step_noise)
            while not trajectory.is_settled:
                trajectory.start(noise, labels)
                trajectory.run()
            return trajectory

        key = name, len(noise)
        if key not in self._kept:
            trajectory = self.with_room(made)
            wanted = self.backend.capturable and not program.stochastic and not self._fails
            if wanted and not trajectory.is_captured:
                if self._kept:  # whose memory it may have lacked
                    del trajectory
                    self._drop()
                    trajectory = made()
                self._fails = not trajectory.is_captured
            self._kept[key] = trajectory
        return self._kept[key]

    def _drop(self) -> None:
        self._kept.clear()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def _step_by_step(trajectory: Trajectory) -> None:
    for k in range(len(trajectory.program.evaluations)):
        trajectory.step(k)
