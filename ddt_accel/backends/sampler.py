"""`Sampler`: a backend and a schedule as one thing to call, for pipelines and servers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from numbers import Integral

import torch
from torch import Tensor

from ddt_accel.backends.guided import backend_of, known_shape
from ddt_accel.backends.sample import check_checkpoint
from ddt_accel.errors import ConfigError, MemoryShortageError, NumericsError
from ddt_accel.networks.split import SplitNetwork
from ddt_accel.sampling.backend import Backend
from ddt_accel.sampling.noise import draw_noise
from ddt_accel.sampling.program import compile_program
from ddt_accel.sampling.trajectory import Trajectory
from ddt_accel.schedule import Schedule
from ddt_accel.spec import is_whole

StepNoise = Callable[[int], Tensor]
# As in diffusers: (sampler, step, time, {"latents": x}) → None, or a mapping whose "latents" take the place of x.
StepCallback = Callable[["Sampler", int, float, dict[str, Tensor]], dict[str, Tensor] | None]


@dataclass(frozen=True, kw_only=True, eq=False)
class Step:
    """A step that has just been taken; both tensors are the sampler's buffers, of use until the next one is."""

    index: int  # counted in evaluations, from 0
    time: float  # of the evaluation, t_k
    latents: Tensor  # where it led, x_{k+1} [B, C, H, W]
    velocity: Tensor  # v_k [B, C, H, W], guided

    def estimate(self, time: float) -> Tensor:
        """The data [B, C, H, W] that the velocity leads to from the latents, which are of `time`: x + (1 − t) v."""
        return torch.add(self.latents, self.velocity, alpha=1.0 - time)


class Sampler:
    """Draws images along a schedule: `Sampler(backend, schedule)(labels, seeds)`.

    What a batch needs, buffers and bindings, is made for the first one of its size and used again. More images than
    `batch_size` go through in several batches; the last is filled up where another size would cost more than that does.
    `decode` makes images [B, …] of latents [B, C, H, W]; without it latents are returned, which for models in pixel
    space are the images, in [−1, 1]. A second network, the `guide`, takes the place of the null label in guidance.
    """

    def __init__(
        self,
        model_or_backend: SplitNetwork | Backend,
        schedule: Schedule,
        *,
        latent_shape: tuple[int, int, int] | None = None,
        batch_size: int = 16,
        decode: Callable[[Tensor], Tensor] | None = None,
        guide: SplitNetwork | Backend | None = None,
    ) -> None:
        self.backend: Backend = backend_of(model_or_backend, guide, schedule.spec)
        check_checkpoint(schedule, self.backend)
        latent_shape = latent_shape or known_shape(self.backend)
        if latent_shape is None:
            raise ConfigError("The model does not say which latents it is for; give latent_shape=(C, H, W).")
        if batch_size < 1:
            raise ConfigError(f"batch_size is {batch_size}; give at least 1.")
        self.schedule, self.latent_shape, self.batch_size, self.decode = schedule, latent_shape, batch_size, decode
        self.program = compile_program(schedule)
        self._trajectories: dict[int, Trajectory] = {}

    def __call__(
        self, labels: Sequence[int] | Tensor, seeds: Sequence[int] | int, *, callback: StepCallback | None = None
    ) -> Tensor:
        """Images of `labels`, one for each, from the noise of as many `seeds`; one seed counts up from there.

        An image depends on its label and its seed alone, whatever it is drawn together with. Raises ConfigError for
        impossible labels or seeds, MemoryShortageError where a batch does not fit into memory, with the size of one
        that does.
        """
        given = labels.tolist() if isinstance(labels, Tensor) else labels
        if not isinstance(given, Sequence) or not given or not all(map(is_whole, given)):
            raise ConfigError(f"labels are {given!r}; give whole numbers, one for each image.")
        chosen = range(int(seeds), int(seeds) + len(given)) if isinstance(seeds, Integral) else seeds
        if not isinstance(chosen, Sequence) or len(chosen) != len(given) or not all(map(is_whole, chosen)):
            raise ConfigError(f"seeds are {seeds!r} for {len(given)} labels; give a whole number for each image.")
        parts = []
        for start in range(0, len(given), self.batch_size):
            count = min(self.batch_size, len(given) - start)
            # Filled up with the last image once more.
            drawn = [min(k, count - 1) + start for k in range(self._filled(count) if start else count)]
            part = [int(chosen[k]) for k in drawn]
            latents = self.draw(
                self._noise(part),
                torch.tensor([int(given[k]) for k in drawn]),
                step_noise=partial(self._step_noise, part),
                callback=callback,
            )[:count]
            parts.append(latents if self.decode is None else self.decode(latents))
        return torch.cat(parts)

    def _filled(self, count: int) -> int:
        """The size of a last batch of `count`, after others of `batch_size`.

        On a GPU another size would be captured anew, with buffers of its own; a batch of one is compiled by itself.
        """
        return self.batch_size if self.backend.device.type == "cuda" else min(max(2, count), self.batch_size)

    def draw(
        self,
        noise: Tensor,
        labels: Tensor,
        *,
        step_noise: StepNoise | None = None,
        callback: StepCallback | None = None,
    ) -> Tensor:
        """The latents [B, C, H, W] that one batch of `noise` [B, C, H, W] becomes for `labels` [B], as `sample` has
        them; `step_noise(k)` is what a stochastic sampler adds after evaluation k."""
        while True:
            others = self._trajectories.keys() - {len(noise)}
            try:
                return self._run(noise, labels, step_noise, callback)
            except NumericsError:
                self._trajectories.clear()  # what is not finite may stay in a buffer
                raise
            except torch.OutOfMemoryError:
                pass  # what the failed call holds is free only after this block
            self._trajectories.clear()
            if not others:  # else once more, without the buffers of other batches
                break
        fitting = self._fitting(noise, labels, step_noise)
        advice = f"one of {fitting} does" if fitting else "one image does not, either"
        raise MemoryShortageError(f"A batch of {len(noise)} does not fit into memory; {advice}.")

    def _noise(self, seeds: Sequence[int], stream: int = 0) -> Tensor:
        return torch.cat([draw_noise(self.latent_shape, seed=seed, indices=[0], stream=stream) for seed in seeds])

    def _step_noise(self, seeds: Sequence[int], k: int) -> Tensor:
        return self._noise(seeds, k + 1)

    def steps(self, noise: Tensor, labels: Tensor, *, step_noise: StepNoise | None = None) -> Iterator[Step]:
        """The steps of one batch of `noise` [B, C, H, W] for `labels` [B], each taken when it is asked for, so that a
        trajectory can be watched, or be left before its end.

        One at a time: the next batch of this size takes the same buffers. The latents of the last step are where
        `draw` ends; that they are finite is not checked.
        """
        return _steps(self._begun(noise, labels, step_noise))

    def _begun(self, noise: Tensor, labels: Tensor, step_noise: StepNoise | None) -> Trajectory:
        """The trajectory of batches of this size, at its beginning."""
        size = len(noise)
        if size in self._trajectories:
            self._trajectories[size].start(noise, labels)
            self._trajectories[size].step_noise = step_noise
        else:
            self._trajectories[size] = Trajectory(self.backend, self.program, noise, labels, step_noise=step_noise)
        return self._trajectories[size]

    def _run(
        self, noise: Tensor, labels: Tensor, step_noise: StepNoise | None, callback: StepCallback | None
    ) -> Tensor:
        trajectory = self._begun(noise, labels, step_noise)
        if callback is None:
            trajectory.run()
            return trajectory.end()
        for step in _steps(trajectory):
            changed = callback(self, step.index, step.time, {"latents": step.latents})
            if changed and "latents" in changed:
                if changed["latents"].shape != trajectory.latents.shape:
                    raise ConfigError(
                        f"The callback returned latents of shape {list(changed['latents'].shape)}; expected "
                        f"{list(trajectory.latents.shape)}."
                    )
                trajectory.latents.copy_(changed["latents"])
        return trajectory.end()

    def _fitting(self, noise: Tensor, labels: Tensor, step_noise: StepNoise | None) -> int:
        """The largest half, quarter, … of a batch that runs; 0 where none does."""
        size = len(noise) // 2
        while size:
            part = None if step_noise is None else partial(_first, size, step_noise)
            try:
                self._run(noise[:size], labels[:size], part, None)
            except torch.OutOfMemoryError:
                fits = False
            else:
                fits = True
            self._trajectories.clear()
            if fits:
                break
            size //= 2
        return size


def _steps(trajectory: Trajectory) -> Iterator[Step]:
    for k, evaluation in enumerate(trajectory.program.evaluations):
        trajectory.step(k)
        yield Step(index=k, time=evaluation.time, latents=trajectory.latents, velocity=trajectory.velocity(k))


def _first(count: int, step_noise: StepNoise, k: int) -> Tensor:
    return step_noise(k)[:count]
