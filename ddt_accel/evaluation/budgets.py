"""From what a user has, time or a tolerance, to a number of encoder runs; and what fewer steps do for that cost."""

from __future__ import annotations

import math
from bisect import bisect_left
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from ddt_accel.errors import ConfigError
from ddt_accel.evaluation.costs import SECONDS, Costs
from ddt_accel.schedule import Schedule
from ddt_accel.solver.solve import Certificate

if TYPE_CHECKING:
    from ddt_accel.calibration.statistics import Calibration


@dataclass(frozen=True, kw_only=True)
class Target:
    """What a schedule is to reach; the first two need costs, the others a predicted error."""

    milliseconds: float | None = None  # per image, at most
    speedup: float | None = None  # over the unshared trajectory, at least
    error: float | None = None  # predicted root-mean-square error of the final latents, at most
    psnr: float | None = None  # the same as PSNR of pixels in [−1, 1], in dB, at least

    def __post_init__(self) -> None:
        given = [value for value in (self.milliseconds, self.speedup, self.error, self.psnr) if value is not None]
        if wrong := [value for value in given if not math.isfinite(value) or value <= 0]:
            raise ConfigError(f"A target of {wrong[0]} makes no sense; targets are numbers above 0.")

    @property
    def limits_time(self) -> bool:
        return self.milliseconds is not None or self.speedup is not None

    @property
    def limits_error(self) -> bool:
        return self.error is not None or self.psnr is not None


def predicted_psnr(schedule: Schedule) -> float | None:
    """PSNR in dB that a schedule's predicted error means for pixels in [−1, 1]; None where nothing predicts it."""
    return _decibels(schedule.predicted_error) if schedule.predicted_error else None


@dataclass(frozen=True, kw_only=True)
class Beside:
    """What the calibrated sampler does without sharing in `steps` steps, the fewest that cost no less than a schedule.

    `speedup` is over all steps of the schedule's grid; dB as `predicted_psnr` has them: to the end of all steps, known
    for the calibrated number of them, where the schedule should end at `predicted`; and to the reference solution,
    where it should end at `expected`, if its error and that of its grid are independent, and all steps without sharing
    do at `unshared`.
    """

    steps: int
    speedup: float
    copying: float | None
    reference: float
    predicted: float | None
    expected: float | None
    unshared: float

    @property
    def copying_gain(self) -> float | None:
        """By how many dB the schedule should end closer to the unshared trajectory; below 0 sharing loses."""
        return None if self.predicted is None or self.copying is None else self.predicted - self.copying

    @property
    def reference_gain(self) -> float | None:
        """The same of the reference solution."""
        return None if self.expected is None else self.expected - self.reference


def beside(calibration: Calibration, schedule: Schedule, costs: Costs) -> Beside | None:
    """Fewer steps at the cost of a solved schedule, as they were measured with the calibration; None where they were
    not, or where that cost buys no step that was."""
    spec = schedule.spec

    def price(steps: int) -> float:
        return costs.of(Schedule.full(replace(spec, num_steps=steps)))

    every = range(1, spec.num_steps + 1)
    steps = every[min(bisect_left(every, costs.of(schedule), key=price), len(every) - 1)]
    errors, own = calibration.coarser_error(steps), calibration.coarser_error(spec.num_steps)
    if errors is None or own is None:
        return None
    expected = None
    if schedule.predicted_error is not None:
        expected = _decibels(math.hypot(own[1], schedule.predicted_error))
    return Beside(
        steps=steps,
        speedup=price(spec.num_steps) / price(steps),
        copying=_decibels(errors[0]) if spec == calibration.spec and steps < spec.num_steps else None,
        reference=_decibels(errors[1]),
        predicted=predicted_psnr(schedule),
        expected=expected,
        unshared=_decibels(own[1]),
    )


def _decibels(error: float) -> float:
    """A root-mean-square error of latents as PSNR of pixels in [−1, 1]."""
    return -20 * math.log10(max(error, 1e-12) / 2)


def choose(curve: list[tuple[Schedule, Certificate]], target: Target, costs: Costs) -> tuple[Schedule, Certificate]:
    """The best schedule that meets the target: of least error within a time, else of fewest runs within an error.

    Raises ConfigError where none does, naming the best that can be reached.
    """
    unit = costs.of(Schedule.full(curve[0][0].spec))
    if target.milliseconds is not None and costs.unit != SECONDS:
        raise ConfigError("--target-ms needs measured times; run `ddt-accel bench` first, or give --target-speedup.")
    kept = curve
    if target.limits_time:
        limit = min(
            math.inf if target.milliseconds is None else target.milliseconds / 1000,
            math.inf if target.speedup is None else unit / target.speedup,
        )
        kept = [entry for entry in curve if costs.of(entry[0]) <= limit]
        if not kept:
            best = min(costs.of(schedule) for schedule, _ in curve)
            shown = f", {best * 1000:.3g} ms per image" if costs.unit == SECONDS else ""
            raise ConfigError(
                f"No schedule is that fast: one encoder run in {curve[0][0].spec.num_evaluations} steps makes it "
                f"{unit / best:.2f} times as fast{shown}. Take fewer steps."
            )
    if target.limits_error:
        errors = [schedule.predicted_error for schedule, _ in kept if schedule.predicted_error is not None]
        if len(errors) < len(kept):
            raise ConfigError("The objective 'similarity' does not predict the error of the latents; take another.")
        bound = min(
            math.inf if target.error is None else target.error,
            math.inf if target.psnr is None else 2 * 10 ** (-target.psnr / 20),
        )
        meeting = [entry for entry, error in zip(kept, errors, strict=True) if error <= bound]
        if not meeting:
            least = min(errors)
            raise ConfigError(
                f"No schedule{' of that speed' if target.limits_time else ''} comes that close: the least predicted "
                f"error is {least:.3g}, {_decibels(least):.1f} dB."
            )
        return min(meeting, key=lambda entry: entry[0].budget)
    return max(kept, key=lambda entry: entry[0].budget)
