"""What to fit: the grid, the refresh steps and the kind of forecast, found by fits in closed form.

A fit by gradients takes minutes, one in closed form (fitting/closed_form.py) as long as sampling a few images, and what
it leaves of the error tells patterns apart. So patterns are compared by that, all on the same noises: first the exact
program's on many grids, and times that others searched, then the neighbours of the best grid, as long as they are
better.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

from ddt_accel.backends.sample import sample_images
from ddt_accel.calibration.resample import POINTS, resample
from ddt_accel.calibration.statistics import Calibration
from ddt_accel.errors import ConfigError, MismatchError, NumericsError
from ddt_accel.evaluation.course import Course
from ddt_accel.evaluation.fidelity import latent_decibels
from ddt_accel.fitting.closed_form import closed_form
from ddt_accel.fitting.published_times import PublishedTimes
from ddt_accel.sampling.backend import Backend
from ddt_accel.schedule import Schedule
from ddt_accel.solver.solve import Method, Statistics, schedule_with, solve_curve
from ddt_accel.solver.split import ALIKE, split, split_with
from ddt_accel.spec import SamplingSpec
from ddt_accel.stages import OnStage

STEPS = (4, 5, 6, 7, 8, 9, 10, 11, 12, 14, 16, 18, 20, 24, 28, 32, 36, 42, 50)
# Time shifts that are tried, relative to the calibrated one.
SHIFTS = (1.0, 1.5, 2.2)
# How far a neighbour's time shift is.
STEP_OF_SHIFT = 1.15
# Counted up where searches go elsewhere than before, so that what they found is not taken for what they would find.
REVISION = 2
# Patterns whose neighbours are tried.
EXPANDED = 4
# How many images the first look is on, and how many patterns at least, or a quarter, get a second one.
SCREENED_ON, SURVIVORS = 10, 4
# Of the images that a jury has, how many closed forms are fitted to; the others tell how good they are.
FITTED_SHARE = 0.6


@dataclass(frozen=True, kw_only=True)
class SearchSpec:
    """How far a search goes: on grids of any of `STEPS` steps, or of what a cost affords without sharing and, with
    sharing, these `multiples` of it at these `shifts`; with a first look on `screened_on` images; to the neighbours of
    `expanded` patterns."""

    multiples: tuple[float, ...] | None = None
    shifts: tuple[float, ...] = SHIFTS
    screened_on: int = SCREENED_ON
    expanded: int = EXPANDED


THOROUGH, QUICK = SearchSpec(), SearchSpec(multiples=(1.3, 1.7), shifts=(1.0, 1.5), screened_on=6, expanded=1)


def any_steps(most: int) -> tuple[int, ...]:
    """The numbers of steps to search where nothing says how many, and there are `most`."""
    return tuple(n for n in STEPS if n <= most) or (most,)


@dataclass(frozen=True, kw_only=True)
class Pattern:
    """A grid, where the encoder runs on it, and how states between are forecast before a fit."""

    spec: SamplingSpec
    refresh_steps: tuple[int, ...]
    unconditional_steps: tuple[int, ...] | None = None
    centred: bool = False
    sources: int = 2

    def schedule(self, calibration: Calibration) -> Schedule:
        if self.unconditional_steps is None and len(self.refresh_steps) == self.spec.num_evaluations:
            return dataclasses.replace(
                Schedule.full(self.spec),
                checkpoint_sha256=calibration.checkpoint_sha256,
                guide_sha256=calibration.guide_sha256,
            )
        statistics, method = _statistics(calibration, self.spec), Method(centred=self.centred, sources=self.sources)
        if self.unconditional_steps is None:
            return schedule_with(statistics, self.refresh_steps, method)
        return split_with(statistics, self.refresh_steps, self.unconditional_steps, method)

    def neighbours(self) -> list[Pattern]:
        """With one refresh a step earlier or later, at another time shift, or with other forecasts."""
        count, change = self.spec.num_evaluations, dataclasses.replace
        found = [change(self, refresh_steps=steps) for steps in _moved(self.refresh_steps, 1, count)]
        if self.unconditional_steps is not None:
            first = int((self.spec.guidance_weights != 1.0).argmax())
            moved = _moved(self.unconditional_steps, first + 1, count)
            found += [change(self, unconditional_steps=steps) for steps in moved]
        for factor in (STEP_OF_SHIFT, 1 / STEP_OF_SHIFT):
            spec = _shifted(self.spec, factor, count)
            # The guided steps may be others there.
            if spec is not None and (
                self.unconditional_steps is None or (spec.guidance_weights == self.spec.guidance_weights).all()
            ):
                found.append(change(self, spec=spec))
        if len(self.refresh_steps) < count:
            found.append(change(self, sources=5 - self.sources))
            if self.unconditional_steps is None:
                found.append(change(self, centred=not self.centred))
        return found


Start = Pattern | PublishedTimes


class Jury:
    """Images whose converged trajectories are known: closed forms are fitted to the first, and judged on the others."""

    def __init__(self, backend: Backend, calibration: Calibration, course: Course, batch_size: int) -> None:
        if course.images.count < 2:
            raise ConfigError(f"{course.images.count} images to search on; give at least 2.")
        count = max(1, math.floor(FITTED_SHARE * course.images.count))
        self.fitted, self.ends = course.first(count), course.ends[count:]
        self.held_out = dataclasses.replace(course.images, first=course.images.first + count)
        if calibration.contains(self.held_out):
            raise MismatchError(f"Seed {course.images.seed} was calibrated on; search with another --seed.")
        self._backend, self._calibration, self._batch_size = backend, calibration, batch_size
        self._scores: dict[Start, float] = {}

    def score(self, pattern: Start) -> float:
        """dB to the converged ends of the held-out images after a fit in closed form."""
        if pattern not in self._scores:
            schedule = pattern.schedule(self._calibration)
            try:
                schedule = closed_form(self._backend, schedule, self.fitted, self._batch_size)
                shape = (*self.ends.shape[1:],)
                ends = sample_images(self._backend, schedule, self.held_out, shape, self._batch_size)
                self._scores[pattern] = float(latent_decibels(ends, self.ends).mean())
            except NumericsError:
                self._scores[pattern] = -math.inf
        return self._scores[pattern]


class Search:
    """Compares patterns, all on the same images.

    Of many, a jury of few images chooses those that the whole jury sees. `on_stage` is called with what comes next and
    how many steps it takes, and returns what to call after each.
    """

    def __init__(
        self,
        backend: Backend,
        calibration: Calibration,
        course: Course,
        *,
        batch_size: int,
        on_stage: OnStage,
        spec: SearchSpec = THOROUGH,
    ) -> None:
        self.calibration, self.on_stage, self.spec = calibration, on_stage, spec
        self.jury = self._screen = Jury(backend, calibration, course, batch_size)
        if course.images.count > spec.screened_on:
            self._screen = Jury(backend, calibration, course.first(spec.screened_on), batch_size)

    def best(self, starts: Sequence[Start], affordable: Callable[[Schedule], bool]) -> Start | None:
        """The best found from `starts` of those whose schedules are `affordable`, among them the neighbours of the best
        patterns; None where none of `starts` is."""

        def seen(patterns: Sequence[Start], label: str) -> list[Start]:
            kept = [pattern for pattern in dict.fromkeys(patterns) if affordable(pattern.schedule(self.calibration))]
            done = self.on_stage(label, len(kept))
            for pattern in kept:
                self._screen.score(pattern)
                done()
            kept.sort(key=self._screen.score, reverse=True)
            return kept[: max(SURVIVORS, len(kept) // 4)]

        found = seen(starts, "searching grids")
        if not found:
            return None
        expanded: set[Pattern] = set()
        for _ in range(self.spec.expanded):
            patterns = [one for one in found if isinstance(one, Pattern)]
            pattern = max(patterns, key=self.jury.score, default=None)
            if pattern is None or pattern in expanded:
                break
            expanded.add(pattern)
            found += seen(pattern.neighbours(), "searching refresh steps")
        return max(found, key=self.jury.score)


def starts(
    calibration: Calibration,
    steps: tuple[int, ...],
    affordable: Callable[[Schedule], bool],
    *,
    shared: bool = True,
    unshared: bool = True,
    worth_it: bool = True,
    shifts: tuple[float, ...] = SHIFTS,
    costs: tuple[float, float] = ALIKE,
) -> list[Pattern]:
    """Patterns to start a search from, on grids of so many `steps` at some time shifts, by second-order
    Adams–Bashforth: those that run the encoder at every step, and the exact program's that share its runs.

    `costs` are those of an encoder run in either branch. With `worth_it` only patterns of two encoder runs in five
    steps: with fewer, fewer steps are better.
    """
    own, found = calibration.spec, []
    for count in steps:
        for shift in shifts:
            spec = _shifted(own, shift, count)
            if spec is not None and unshared:
                found.append(Pattern(spec=spec, refresh_steps=tuple(range(count))))
            if spec is not None and shared:
                found += _solved(calibration, spec, affordable, 0.4 * count if worth_it else 0.0, costs)
    return found


def _solved(
    calibration: Calibration,
    spec: SamplingSpec,
    affordable: Callable[[Schedule], bool],
    least: float,
    costs: tuple[float, float],
) -> list[Pattern]:
    """Of the most affordable encoder runs on a grid, at least so many, with common refreshes, and with branches that
    have their own."""
    if spec.num_steps < 2 or not POINTS <= calibration.spec.num_steps >= spec.num_steps:
        return []
    statistics, found = _statistics(calibration, spec), []
    for centred in (True, False):
        method = Method(centred=centred)
        curve = [schedule for schedule, _ in solve_curve(statistics, spec.num_steps - 1, method)]
        enough = [schedule for schedule in curve if schedule.budget >= least and affordable(schedule)]
        for schedule in enough[-1:]:
            found.append(Pattern(spec=spec, refresh_steps=schedule.refresh_steps, centred=centred))
            if not centred and (spec.guidance_weights != 1.0).any():
                own = split(statistics, schedule, method, costs=costs)
                steps = (own.refresh_steps, own.unconditional_steps)
                found.append(Pattern(spec=spec, refresh_steps=steps[0], unconditional_steps=steps[1]))
    return found


def _shifted(spec: SamplingSpec, factor: float, steps: int) -> SamplingSpec | None:
    """With so many times the time shift, in so many steps of Adams–Bashforth; None where that is out of range."""
    try:
        # Rounded, so that up and down again is where it was.
        return spec.on_grid(steps, timeshift=float(f"{spec.timeshift * factor:.4g}"), solver="ab2")
    except ConfigError:
        return None


@lru_cache(maxsize=64)
def _statistics(calibration: Calibration, spec: SamplingSpec) -> Statistics:
    return resample(calibration, spec)


def _moved(steps: tuple[int, ...], first: int, count: int) -> list[tuple[int, ...]]:
    """`steps` with one of them, from the second on, one earlier or later; within `first` … count − 1."""
    found = []
    for k, step in enumerate(steps[1:], 1):
        for other in (step - 1, step + 1):
            if first <= other < count and other not in steps:
                found.append((*steps[:k], other, *steps[k + 1 :]))
    return found
