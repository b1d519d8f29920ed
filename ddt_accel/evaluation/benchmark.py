"""Speed and fidelity of schedules, measured side by side in one run."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from ddt_accel.backends.guided import GuidedBackend
from ddt_accel.backends.sample import check_checkpoint
from ddt_accel.evaluation.costs import works
from ddt_accel.evaluation.fidelity import Interval, interval, psnr, relative_l2, to_images
from ddt_accel.evaluation.replays import Replays
from ddt_accel.networks.device import synchronize
from ddt_accel.sampling.backend import Backend, Buffers, Session
from ddt_accel.sampling.capture import captures
from ddt_accel.sampling.noise import draw_labels, draw_noise, draw_step_noise
from ddt_accel.sampling.program import Program, compile_program, network_rows
from ddt_accel.sampling.trajectory import run
from ddt_accel.schedule import Schedule


@dataclass(kw_only=True)
class Clock:
    """Seconds spent in the two networks and in forecasts."""

    encoder_seconds: float = 0.0
    decoder_seconds: float = 0.0
    forecast_seconds: float = 0.0


class TimedBackend:
    """A backend whose sessions keep time; on a GPU every call is waited for."""

    capturable = False

    def __init__(self, backend: Backend, clock: Clock) -> None:
        self.backend, self.clock = backend, clock
        self.name, self.config, self.device, self.guide = backend.name, backend.config, backend.device, backend.guide
        self.checkpoint_sha256, self.widths = backend.checkpoint_sha256, backend.widths

    def open(
        self, batch: int, latent_shape: tuple[int, int, int], slots: int, *, buffers: Buffers | None = None
    ) -> Session:
        return _TimedSession(self.backend.open(batch, latent_shape, slots, buffers=buffers), self.clock, self.device)


class _TimedSession:
    def __init__(self, session: Session, clock: Clock, device: torch.device) -> None:
        self.session, self.clock, self.device = session, clock, device
        self.latents, self.times, self.labels, self.velocity = (
            session.latents, session.times, session.labels, session.velocity
        )  # fmt: skip

    def encode(self, slot: int, rows: slice, width: float = 1.0) -> None:
        self.clock.encoder_seconds += self._timed(lambda: self.session.encode(slot, rows, width))

    def forecast(self, slot: int, sources: Sequence[tuple[int, float]], constant: Tensor | None, rows: slice) -> None:
        self.clock.forecast_seconds += self._timed(lambda: self.session.forecast(slot, sources, constant, rows))

    def decode(self, slot: int, rows: slice, width: float = 1.0) -> None:
        self.clock.decoder_seconds += self._timed(lambda: self.session.decode(slot, rows, width))

    def _timed(self, call: Callable[[], None]) -> float:
        synchronize(self.device)
        started = time.perf_counter()
        call()
        synchronize(self.device)
        return time.perf_counter() - started


def timed(backend: Backend, clock: Clock, guide: Clock) -> Backend:
    """The backend with a clock, and with one of its own for a second network."""
    if isinstance(backend, GuidedBackend):
        return GuidedBackend(TimedBackend(backend.main, clock), TimedBackend(backend.guide, guide))
    return TimedBackend(backend, clock)


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """One schedule against the unshared trajectory of the same noise, on the same machine in the same run.

    Times are seconds per image. `ideal_speedup` is what the encoder runs that were saved would give if nothing but the
    two networks took time: it is computed from the unshared run's measured parts. Where a second network guides,
    `guide_seconds` are what encoder, decoder and forecasts of that one take of theirs. `psnr` is None in latent space,
    and where every image equals the reference exactly.

    Where CUDA graphs are replayed, `seconds` are those of a replay, the parts share them as they share the time of a
    run whose every call is waited for, and `call_seconds` is what the same trajectory takes call by call.
    """

    name: str
    refresh_steps: tuple[int, ...]
    num_steps: int
    num_evaluations: int
    seconds: float
    encoder_seconds: float
    decoder_seconds: float
    forecast_seconds: float
    speedup: float = 1.0
    ideal_speedup: float = 1.0
    psnr: Interval | None = None
    relative_l2: Interval | None = None
    psnr_values: list[float | None] = field(default_factory=list)
    guide_seconds: tuple[float, float, float] = (0.0, 0.0, 0.0)
    call_seconds: float | None = None

    def parts(self, guided: bool) -> list[tuple[float, float, float]]:
        """Seconds in encoder, decoder and forecasts; of either network, where a second one guides."""
        whole = self.encoder_seconds, self.decoder_seconds, self.forecast_seconds
        encoder, decoder, forecast = (total - part for total, part in zip(whole, self.guide_seconds, strict=True))
        return [(encoder, decoder, forecast), self.guide_seconds] if guided else [whole]


@dataclass(frozen=True, kw_only=True)
class Earlier:
    """A run of this process that another one is put in terms of.

    Both have measured the `pacer`. As much slower as it was in the later run, so much shorter the later times are
    taken: a machine that others use, too, does not keep its speed. What the later run measures is compared with the
    earlier `baseline`, and its `latents` [≥ num_images, C, H, W].
    """

    pacer: Measurement
    baseline: Measurement
    baseline_schedule: Schedule
    latents: Tensor


@dataclass(kw_only=True)
class _Run:
    schedule: Schedule
    program: Program
    clock: Clock = field(default_factory=Clock)
    guide_clock: Clock = field(default_factory=Clock)
    seconds: float = 0.0  # as they are drawn
    clocked_seconds: float = 0.0  # of the runs that the clocks were read in
    call_seconds: float | None = 0.0  # call by call, where they are drawn otherwise
    latents: list[Tensor] = field(default_factory=list)


def measure(
    backend: Backend,
    schedules: dict[str, Schedule],
    *,
    latent_shape: tuple[int, int, int],
    num_images: int,
    seed: int,
    batch_size: int,
    on_run: Callable[[], None] = lambda: None,
    earlier: Earlier | None = None,
) -> tuple[list[Measurement], dict[str, Tensor]]:
    """Runs every schedule on the images 0 … num_images − 1 of a seed; the first one is the baseline.

    Every batch goes through all schedules in turn, in an order that rotates, so that a machine that slows down slows
    all of them; discarded batches warm up. On a GPU they are timed as `sample` draws them, and run once more for the
    clocks. Returns a measurement and the final latents for each. With an `earlier` run the first schedule is its pacer,
    and the baseline is that one's.
    """
    for schedule in schedules.values():
        check_checkpoint(schedule, backend)
    runs = {name: _Run(schedule=s, program=compile_program(s)) for name, s in schedules.items()}
    first = next(iter(runs.values()))
    starts = list(range(0, num_images, batch_size))
    if earlier is None:
        shortest = min(runs.values(), key=lambda one: sum(network_rows(one.program)))
        _run_batch(backend, shortest, range(min(batch_size, num_images)), latent_shape, seed)
    # Each may be the first to need something compiled, and a batch of one is compiled by itself.
    for size in {min(2, batch_size, num_images - start) for start in starts}:
        for one in _of_every_kind(runs.values()):
            _run_batch(backend, one, range(size), latent_shape, seed)
    replays = Replays(backend) if captures(backend.device) else None
    for turn, start in enumerate(starts):
        indices = range(start, min(start + batch_size, num_images))
        order = list(runs)
        for name in order[turn % len(order) :] + order[: turn % len(order)]:
            _run_batch(backend, runs[name], indices, latent_shape, seed, kept=(name, replays))
            on_run()
    latents = {name: torch.cat(one.latents) for name, one in runs.items()}
    pixels = backend.config.pixel_space
    if earlier is None:
        speed, name = 1.0, next(iter(runs))
        expected, baseline, schedule = latents[name], _own(name, first, num_images, speed), first.schedule
    else:
        expected, baseline, schedule = earlier.latents[:num_images], earlier.baseline, earlier.baseline_schedule
        speed = earlier.pacer.seconds / (first.seconds / num_images)
    measurements = [
        in_terms_of(baseline, schedule, _own(name, one, num_images, speed), one.schedule) for name, one in runs.items()
    ]
    return [against(m, latents[m.name], expected, pixels=pixels) for m in measurements], latents


def against(m: Measurement, latents: Tensor, expected: Tensor, *, pixels: bool) -> Measurement:
    """The same times, with how far the latents [B, C, H, W] of some images are from those that were expected."""
    values = psnr(to_images(latents), to_images(expected)) if pixels else None
    return dataclasses.replace(
        m,
        psnr=interval(values) if values is not None else None,
        relative_l2=interval(relative_l2(latents, expected)),
        psnr_values=[float(v) if np.isfinite(v) else None for v in values] if values is not None else [],
    )


def _of_every_kind(runs: Iterable[_Run]) -> Iterator[_Run]:
    """As few of the runs as together ask for everything that any of them asks of a backend."""
    seen: set[Hashable] = set()
    for one in runs:
        kinds = {
            (
                evaluation.held is None,
                evaluation.decode_both,
                evaluation.width,
                len({refresh for branch in evaluation.branches for refresh, _ in branch.forecast}),
                *(
                    (branch.encode, branch.width, len(branch.forecast), branch.constant is None)
                    for branch in evaluation.branches
                ),
            )
            for evaluation in one.program.evaluations
        }
        if not kinds <= seen:
            yield one
        seen |= kinds


def _run_batch(
    backend: Backend,
    one: _Run,
    indices: range,
    latent_shape: tuple[int, int, int],
    seed: int,
    *,
    kept: tuple[str, Replays | None] | None = None,
) -> None:
    """Runs a batch with clocks, and before that without where there are replays; with `kept`, the run's name and those,
    times and latents are kept."""
    noise = draw_noise(latent_shape, seed=seed, indices=indices)
    labels = draw_labels(backend.config.num_classes, seed=seed, indices=indices)
    step_noise = draw_step_noise(latent_shape, seed=seed, indices=indices)
    clocked = timed(backend, *((one.clock, one.guide_clock) if kept else (Clock(), Clock())))

    def run_clocked() -> tuple[Tensor, float]:
        synchronize(backend.device)
        started = time.perf_counter()
        latents = run(clocked, one.program, noise, labels, step_noise=step_noise)
        synchronize(backend.device)
        return latents, time.perf_counter() - started

    if kept is None:
        run_clocked()
        return
    name, replays = kept
    if replays is None:
        latents, seconds = run_clocked()
        spent, by_call = seconds, None
    else:
        latents, seconds, by_call = replays.take(name, one.program, noise, labels, step_noise)
        _, spent = replays.with_room(run_clocked)
    one.seconds += seconds
    one.clocked_seconds += spent
    one.call_seconds = None if by_call is None or one.call_seconds is None else one.call_seconds + by_call
    one.latents.append(latents.cpu())


def _own(name: str, one: _Run, num_images: int, speed: float) -> Measurement:
    """What a run took, without comparison."""
    # Waiting for every call takes longer than drawing does where that leaves the host nothing to do.
    scale = speed / num_images
    share = scale if one.seconds == one.clocked_seconds else scale * one.seconds / one.clocked_seconds
    own, guide = (
        [spent * share for spent in (clock.encoder_seconds, clock.decoder_seconds, clock.forecast_seconds)]
        for clock in (one.clock, one.guide_clock)
    )
    return Measurement(
        name=name,
        refresh_steps=one.schedule.refresh_steps,
        num_steps=one.schedule.spec.num_steps,
        num_evaluations=one.schedule.spec.num_evaluations,
        seconds=one.seconds / num_images * speed,
        encoder_seconds=own[0] + guide[0],
        decoder_seconds=own[1] + guide[1],
        forecast_seconds=own[2] + guide[2],
        guide_seconds=(guide[0], guide[1], guide[2]),
        call_seconds=None if one.call_seconds is None else one.call_seconds * scale,
    )


def in_terms_of(baseline: Measurement, unshared: Schedule, m: Measurement, schedule: Schedule) -> Measurement:
    """With the speed-up over a baseline, and what it could be if nothing took time but the two networks."""
    guided = any(baseline.guide_seconds)
    own, every = (works(compile_program(one), guided) for one in (schedule, unshared))
    whole = baseline.encoder_seconds + baseline.decoder_seconds
    ideal = sum(
        encoder * work.encoded / most.encoded + decoder * work.decoded / most.decoded
        for (encoder, decoder, _), work, most in zip(baseline.parts(guided), own, every, strict=True)
    )
    if schedule.has_widths:  # whose networks the baseline does not run
        ideal = m.encoder_seconds + m.decoder_seconds
    return dataclasses.replace(m, speedup=baseline.seconds / m.seconds, ideal_speedup=whole / ideal)
