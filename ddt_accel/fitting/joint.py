"""The grid, the refresh steps and the numbers together: searched by closed form, then fitted by gradients."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path

from ddt_accel.artifacts import checksum
from ddt_accel.backends.pytorch import TorchBackend
from ddt_accel.calibration.statistics import Calibration
from ddt_accel.errors import ConfigError, MismatchError
from ddt_accel.evaluation.converged import converged_path
from ddt_accel.evaluation.costs import Costs
from ddt_accel.fitting.fit import FitSpec, Fitted, Fitter, latent_shape_of, reference_steps
from ddt_accel.fitting.search import STEPS, Search, starts
from ddt_accel.networks.ddt import DDT
from ddt_accel.schedule import Schedule, check_budget


class JointFit:
    """Finds what to fit, of so many `steps` or of any number, and fits it.

    Costs are in terms of the calibrated trajectory unshared. `folder` keeps converged trajectories and the states of
    fits, so that what was interrupted continues. `on_stage` is called with what comes next and how many steps it takes,
    and returns what to call after each.
    """

    def __init__(
        self,
        model: DDT,
        calibration: Calibration,
        costs: Costs,
        spec: FitSpec,
        *,
        steps: int | None = None,
        folder: Path | None = None,
        on_stage: Callable[[str, int], Callable[[], None]] = lambda label, total: lambda: None,
    ) -> None:
        own = calibration.spec
        if steps is not None and not 1 <= steps <= own.num_steps:
            raise MismatchError(
                f"A schedule of {steps} steps is asked for, and the calibration has {own.num_steps}; ask for 1 to "
                f"{own.num_steps}, or calibrate with more."
            )
        self.model, self.calibration, self.costs = model, calibration, costs
        self.folder, self.on_stage = folder, on_stage
        self.counts = tuple(n for n in STEPS if n <= own.num_steps) if steps is None else (steps,)
        most = spec.reference_steps or reference_steps(max(self.counts))
        self.spec = dataclasses.replace(spec, reference_steps=most)
        self.unit = costs.of(Schedule.full(own))
        backend, shape = TorchBackend(model), latent_shape_of(model)
        done = on_stage("converged trajectories to search on", 1)
        path = converged_path(backend, own, most, spec.closed_form_images, shape, spec.batch_size, cache=folder)
        done()
        self.search = Search(backend, calibration, path, batch_size=spec.batch_size, on_stage=on_stage)

    def find(
        self, *, budget: int | None = None, cost: float | None = None, shared: bool | None = None
    ) -> Schedule | None:
        """The schedule that a fit in closed form brings closest, of at most so many encoder runs and at most that cost;
        `shared` or not, or either. None where nothing is as cheap."""
        if budget is not None:
            check_budget(budget, max(self.counts))
        if cost is not None and not 0 < cost < math.inf:
            raise ConfigError(f"The cost is {cost}; give a number above 0, 1 for the calibrated trajectory, unshared.")

        def affordable(schedule: Schedule) -> bool:
            dear = cost is not None and self.costs.of(schedule) > cost * self.unit
            return not dear and (budget is None or schedule.budget <= budget)

        found = starts(
            self.calibration, self.counts, affordable, shared=shared is not False, unshared=shared is not True
        )
        best = self.search.best(found, affordable)
        return best.schedule(self.calibration) if best is not None else None

    def fitted(self, cost: float, *, shared: bool) -> Schedule | None:
        """The best schedule of at most that cost, found and fitted; None where nothing is as cheap."""
        schedule = self.find(cost=cost, shared=shared)
        return self.fit(schedule).schedule if schedule is not None else None

    def fit(self, schedule: Schedule) -> Fitted:
        path = None
        if self.folder is not None:
            path = self.folder / f"state-{checksum(schedule.document())[:12]}.safetensors"
        fitter = Fitter(self.model, schedule, self.spec, state_path=path, cache=self.folder, on_stage=self.on_stage)
        if path is not None and path.exists() and not fitter.continues():
            path.unlink()  # of another fit of this schedule
        return fitter.run()
