"""The rows of a study: schedules measured side by side, and as many steps without sharing as take as long."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache

import numpy as np
from torch import Tensor

from ddt_accel.backends.sample import sample_images
from ddt_accel.evaluation.benchmark import Earlier, Measurement, against, in_terms_of
from ddt_accel.evaluation.candidates import INTEGRATORS, SHIFTS, closest, coarsest
from ddt_accel.evaluation.costs import Costs, added_up, counted_of, measured_costs
from ddt_accel.evaluation.fidelity import latent_decibels
from ddt_accel.report.bench import Bench
from ddt_accel.report.headline import Nearness, Values, nearness
from ddt_accel.sampling.noise import ImageRange
from ddt_accel.schedule import Schedule
from ddt_accel.spec import SamplingSpec

# How often the number of steps is adjusted, until it takes as long as what it stands beside.
TRIES = 3
# Times that differ by less are one: the same steps without sharing stand beside both.
SAME_TIME = 0.15
# So much longer than a schedule take the steps that stand beside it, by prediction: they shall not be too few.
MARGIN = 1.01
# Times that differ more than this from the sum of their parts say little.
DISTURBED = 0.25


@dataclass(kw_only=True)
class Table:
    """Measurements by name, the baseline first, with the schedules and final latents [B, C, H, W] that they are of.

    `ends` are those of the reference solutions of the first images, `limits` how near every row is to them, in dB.
    """

    measurements: dict[str, Measurement]
    schedules: dict[str, Schedule]
    latents: dict[str, Tensor]
    ends: Tensor | None = None
    limits: dict[str, Values] = field(default_factory=dict)

    @classmethod
    def measured(cls, bench: Bench, schedules: dict[str, Schedule], images: int) -> Table:
        """All schedules in one run."""
        found, latents = bench.run("measuring the schedules", schedules, images)
        return cls(measurements={row.name: row for row in found}, schedules=schedules, latents=latents)

    @property
    def rows(self) -> list[Measurement]:
        return list(self.measurements.values())

    @property
    def near(self) -> Nearness:
        return nearness(self.rows, self.limits)

    def add_reference(self, bench: Bench, spec: SamplingSpec, steps: int, images: int) -> None:
        """Computes the reference solution of the first images."""
        done = bench.on_stage("computing the reference solution", 1)
        self.ends = bench.reference(spec, steps, ImageRange(seed=bench.seed, first=0, stop=images))
        self.limits = {name: bench.decibels(found, self.ends) for name, found in self.latents.items()}
        done()

    def add_fewer(
        self, bench: Bench, paces: Sequence[str], choosing: ImageRange, reference_steps: int | None
    ) -> dict[str, str]:
        """Measures what a user would do instead of the rows `paces`: take as many steps without sharing as take as
        long, with the integrator that is best on the images `choosing`. Returns the new rows' names by pace."""
        spec, costs = next(iter(self.schedules.values())).spec, self.costs(bench, paces[0])
        taken, tries = self.paces(costs), TRIES if self.disturbance(costs) < DISTURBED else 1
        seconds = {paces[0]: taken[paces[0]]}
        for name in paces[1:]:
            if name != self.rows[0].name and abs(taken[name] / seconds[paces[0]] - 1) > SAME_TIME:
                seconds[name] = taken[name]

        def price(grid: SamplingSpec) -> float:
            return costs.of(Schedule.full(grid))

        found = {}
        if spec.num_steps > 1:
            for pace, grid in _closest(bench, spec, seconds, price, choosing, reference_steps).items():
                found[pace] = self._as_slow(bench, pace, grid, price, tries)
        return found

    def _as_slow(
        self, bench: Bench, pace: str, grid: SamplingSpec, price: Callable[[SamplingSpec], float], tries: int
    ) -> str:  # fmt: skip
        """Adds the unshared sampler of a grid in as many steps as take at least as long as a row, within about one.

        Measured in turn with that row. Where it turns out faster, or slower by more, the number of steps is adjusted
        and measured again, `tries` times in all.
        """
        tried: dict[int, tuple[Measurement, Tensor, Schedule]] = {}
        full = next(iter(self.schedules.values()))
        steps, goal = grid.num_steps, self.measurements[pace].seconds
        seconds_per_step = [price(grid) / steps]
        while steps not in tried and len(tried) < tries:
            grid = dataclasses.replace(grid, num_steps=steps)
            name = steps_name(grid)
            unshared = dataclasses.replace(
                Schedule.full(grid), checkpoint_sha256=full.checkpoint_sha256, guide_sha256=full.guide_sha256
            )
            images = len(self.latents[pace])
            (_, row), latents = bench.run(
                f"measuring {name}", {pace: self.schedules[pace], name: unshared}, images, earlier=self.earlier(pace)
            )
            tried[steps] = row, latents[name], unshared
            seconds_per_step.append(row.seconds / steps)
            if not goal <= row.seconds < goal * (1 + 1.5 / steps):
                # By all that is known of a step's time, for one measurement may have been disturbed.
                wanted = math.ceil(goal / float(np.mean(seconds_per_step)))
                steps = min(full.spec.num_steps, max(wanted, steps + 1) if row.seconds < goal else max(1, wanted))
        slow = [one for one in tried.values() if one[0].seconds >= goal]
        if slow:
            row, drawn, unshared = min(slow, key=lambda one: one[0].seconds)
        else:
            row, drawn, unshared = max(tried.values(), key=lambda one: one[0].seconds)
        if row.name not in self.measurements:
            self.measurements[row.name], self.latents[row.name], self.schedules[row.name] = row, drawn, unshared
            if self.ends is not None:
                self.limits[row.name] = bench.decibels(drawn, self.ends)
        return row.name

    def earlier(self, pacer: str) -> Earlier:
        """This run, for another one that measures the pacer, too."""
        baseline, *_ = self.rows
        return Earlier(
            pacer=self.measurements[pacer],
            baseline=baseline,
            baseline_schedule=self.schedules[baseline.name],
            latents=self.latents[baseline.name],
        )

    def costs(self, bench: Bench, forecasting: str) -> Costs:
        """What the parts of a trajectory took: the networks in the baseline, forecasts in the row that is named."""
        baseline, *_ = self.rows
        return measured_costs(
            baseline,
            self.schedules[baseline.name].spec,
            self.measurements[forecasting],
            self.schedules[forecasting],
            "",
            counted_of(bench.backend, bench.latent_shape),
        )

    def curve(
        self, bench: Bench, costs: Costs, schedules: Mapping[str, Schedule], images: int
    ) -> tuple[dict[str, Measurement], dict[str, Values]]:
        """The rows and other schedules on the first images: measurements, and dB to the reference solution.

        Their times are added up from those of their parts, so that what happens on the machine meanwhile bends no
        curve.
        """
        first = ImageRange(seed=bench.seed, first=0, stop=images)
        drawn = {name: latents[:images] for name, latents in self.latents.items()}
        asked = {name: schedule for name, schedule in schedules.items() if name not in drawn}
        advance = bench.on_stage("running other budgets", len(asked))
        for name, schedule in asked.items():
            drawn[name] = sample_images(bench.backend, schedule, first, bench.latent_shape, bench.batch_size)
            advance()
        expected = next(iter(drawn.values()))
        programs = {**asked, **self.schedules}
        baseline = added_up(self.rows[0].name, self.schedules[self.rows[0].name], costs)
        found = {
            name: against(
                in_terms_of(
                    baseline, self.schedules[baseline.name], added_up(name, programs[name], costs), programs[name]
                ),
                latents,
                expected,
                pixels=bench.pixels,
            )
            for name, latents in drawn.items()
        }
        if self.ends is None:
            return found, {}
        return found, {name: bench.decibels(latents, self.ends[:images]) for name, latents in drawn.items()}

    def paces(self, costs: Costs) -> dict[str, float]:
        """Seconds of each row to compare rows by: as measured, or, where other work on the machine disturbed that,
        added up from those of its parts, which were measured for longer."""
        if self.disturbance(costs) < DISTURBED:
            return {name: row.seconds for name, row in self.measurements.items()}
        return {name: costs.of(schedule) for name, schedule in self.schedules.items()}

    def disturbance(self, costs: Costs) -> float:
        """The largest share by which a measured time differs from that of its parts: how busy the machine was."""
        return max(abs(row.seconds / costs.of(self.schedules[row.name]) - 1) for row in self.rows)


def _closest(
    bench: Bench,
    spec: SamplingSpec,
    seconds: Mapping[str, float],
    price: Callable[[SamplingSpec], float],
    images: ImageRange,
    reference_steps: int | None,
) -> dict[str, SamplingSpec]:
    """For each time the integrator and time shift that end closest to the reference solution in as many steps as take
    that long; those of `spec` where there is no reference solution."""
    least = {pace: time * MARGIN for pace, time in seconds.items()}
    if reference_steps is None:
        return {
            pace: grid
            for pace, time in least.items()
            for grid in coarsest(spec, spec.solver, spec.timeshift, price, time)
        }
    tried = len({spec.solver, *INTEGRATORS}) + len(SHIFTS)
    advance = bench.on_stage("choosing what to compare with", 1 + tried * len(least))
    ends = bench.reference(spec, reference_steps, images)
    advance()

    @cache
    def decibels(grid: SamplingSpec) -> float:
        latents = sample_images(bench.backend, Schedule.full(grid), images, bench.latent_shape, bench.batch_size)
        advance()
        return float(latent_decibels(latents, ends).mean())

    return {pace: closest(spec, price, time, decibels) for pace, time in least.items()}


INTEGRATOR_NAMES = {"euler": "Euler", "heun": "Heun", "sde": "SDE"} | {f"ab{k}": f"AB{k}" for k in range(1, 5)}


def steps_name(spec: SamplingSpec) -> str:
    """What a number of steps without sharing goes by."""
    shift = f", time shift {spec.timeshift:.3g}" if spec.timeshift != 1 else ""
    return f"{spec.num_steps} {INTEGRATOR_NAMES[spec.solver]} step{'' if spec.num_steps == 1 else 's'}{shift}"
