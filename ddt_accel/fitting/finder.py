"""What to fit at a cost, found by fits in closed form: the grid, the refresh steps and the kind of forecast."""

from __future__ import annotations

import dataclasses
import math
from functools import cached_property
from pathlib import Path

from ddt_accel.calibration.statistics import Calibration
from ddt_accel.errors import ConfigError, MismatchError
from ddt_accel.evaluation.candidates import finest
from ddt_accel.evaluation.converged import Keeper, Reference
from ddt_accel.evaluation.costs import Costs
from ddt_accel.evaluation.course import Course
from ddt_accel.fitting.closed_form import closed_form
from ddt_accel.fitting.fit import reference_steps
from ddt_accel.fitting.fit_spec import FitSpec
from ddt_accel.fitting.published_times import published_times
from ddt_accel.fitting.scalars import widened
from ddt_accel.fitting.search import STEPS, THOROUGH, Search, SearchSpec, Start, any_steps, starts
from ddt_accel.sampling.backend import Backend
from ddt_accel.schedule import Schedule, check_budget
from ddt_accel.spec import SamplingSpec
from ddt_accel.stages import OnStage, silent


class Finder:
    """Finds what to fit, of so many `steps` or of any number, on any backend and without a gradient.

    What is found ends near the reference solution, or with `copying` near where the calibrated sampler does without
    sharing. Costs are in terms of the latter. `folder` keeps the trajectories of either. The search goes as
    far as `search` says. `on_stage` is called with what comes next and how many steps it takes, and returns what to
    call after each.
    """

    def __init__(
        self,
        backend: Backend,
        calibration: Calibration,
        costs: Costs,
        spec: FitSpec,
        *,
        steps: int | None = None,
        search: SearchSpec = THOROUGH,
        copying: bool = False,
        folder: Path | None = None,
        on_stage: OnStage = silent,
    ) -> None:
        own = calibration.spec
        if steps is not None and not 1 <= steps <= own.num_steps:
            raise MismatchError(
                f"A schedule of {steps} steps is asked for, and the calibration has {own.num_steps}; ask for 1 to "
                f"{own.num_steps}, or calibrate with more."
            )
        if own.solver == "sde":
            raise ConfigError("A stochastic trajectory has no limit to fit to; calibrate a deterministic solver.")
        if any(map(calibration.contains, spec.ranges)):
            raise MismatchError(f"Images of seed {spec.seed} were calibrated on; fit to those of another seed.")
        if steps == 1 and own.final_step is not None:
            raise ConfigError("A single step has no final step beside it, which the calibration has; give --steps 2.")
        self.backend, self.calibration, self.search = backend, calibration, search
        self.copying, self.folder, self.on_stage = copying, folder, on_stage
        self.steps, self.most = steps, steps or max(any_steps(own.num_steps))
        most = spec.reference_steps or reference_steps(self.most)
        self.spec = dataclasses.replace(spec, reference_steps=most)
        self.reprice(costs)

    def reprice(self, costs: Costs) -> None:
        """Goes by other costs from now on."""
        self.costs, self.unit = costs, costs.of(Schedule.full(self.calibration.spec))

    def find(
        self, *, budget: int | None = None, cost: float | None = None, shared: bool | None = None
    ) -> Schedule | None:
        """The schedule that a fit in closed form brings closest, of at most so many encoder runs and at most that cost;
        `shared` or not, or either. None where nothing is as cheap."""
        if budget is not None:
            check_budget(budget, self.most)
        if cost is not None and not 0 < cost < math.inf:
            raise ConfigError(f"The cost is {cost}; give a number above 0, 1 for the calibrated trajectory, unshared.")

        def affordable(schedule: Schedule) -> bool:
            if budget is not None and schedule.budget > budget:
                return False
            guide = self.calibration.guide
            read = widened(  # as the fit will have it
                schedule,
                self.calibration.modulation_bias,
                self.spec.sources,
                guide_bias=guide.modulation_bias if guide is not None else None,
            )
            return cost is None or self.costs.of(read) <= cost * self.unit

        alone, together = self._counts(cost)
        found: list[Start] = []
        if shared is not True:
            found += starts(self.calibration, alone, affordable, shared=False)
            found += published_times(self.calibration, affordable, self.steps)
        if shared is not False:
            worth_it, shifts = self.steps is None, self.search.shifts
            found += starts(
                self.calibration, together, affordable, unshared=False, worth_it=worth_it, shifts=shifts,
                costs=self.costs.relative,
            )  # fmt: skip
        best = self._searched.best(found, affordable)
        if best is None:
            return None
        used = self.spec.closed_form_images
        return dataclasses.replace(best.schedule(self.calibration), fitted_on=used.joined(()))

    def _counts(self, cost: float | None) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """The numbers of steps to search without sharing, and with it."""
        own, multiples = self.calibration.spec, self.search.multiples
        if self.steps is not None:
            return (self.steps,), (self.steps,)
        if multiples is None or cost is None:
            return any_steps(own.num_steps), any_steps(own.num_steps)

        def price(grid: SamplingSpec) -> float:
            return self.costs.of(Schedule.full(grid))

        found = finest(own, "ab2", own.timeshift, price, cost * self.unit)
        most = found[0].num_steps if found else min(STEPS[0], own.num_steps)
        finer = {min(own.num_steps, max(most + 1, round(multiple * most))) for multiple in multiples}
        return (most,), tuple(sorted(finer))

    @property
    def references(self) -> list[Reference]:
        """What the search is on, and then what a fit of what it finds goes by."""
        own, steps = self.calibration.spec, self.spec.reference_steps
        if self.copying:
            return [Reference(kind="unshared", spec=own, images=self.spec.closed_form_images)]
        assert steps is not None
        return self.spec.references(own, steps)

    @cached_property
    def _course(self) -> Course:
        """What the search is on, and fits in closed form."""
        done = self.on_stage("trajectories to copy" if self.copying else "reference solutions to search on", 1)
        reference, keeper = self.references[0], Keeper(self.backend, self.calibration.latent_shape, self.folder)
        course = reference.course(keeper.made(reference, self.spec.batch_size))
        done()
        return course

    @cached_property
    def _searched(self) -> Search:
        size = self.spec.batch_size
        return Search(
            self.backend, self.calibration, self._course, batch_size=size, on_stage=self.on_stage, spec=self.search
        )

    def closed(self, cost: float, *, shared: bool) -> Schedule | None:
        """The best schedule of at most that cost, found, and its integrator fitted in closed form; None where nothing
        is as cheap."""
        schedule = self.find(cost=cost, shared=shared)
        if schedule is None:
            return None
        return closed_form(self.backend, schedule, self._course, self.spec.batch_size)
