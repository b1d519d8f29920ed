"""The grid, the refresh steps and the numbers together: searched by closed form, then fitted by gradients."""

from __future__ import annotations

from pathlib import Path

from ddt_accel.artifacts import checksum
from ddt_accel.backends.guided import backend_of
from ddt_accel.calibration.statistics import Calibration
from ddt_accel.errors import MismatchError
from ddt_accel.evaluation.costs import Costs
from ddt_accel.fitting.finder import Finder
from ddt_accel.fitting.fit import Fitted, Fitter
from ddt_accel.fitting.fit_spec import FitSpec
from ddt_accel.fitting.search import THOROUGH, SearchSpec
from ddt_accel.networks.split import SplitNetwork
from ddt_accel.sampling.backend import Backend
from ddt_accel.schedule import Schedule
from ddt_accel.stages import OnStage, silent


class JointFit(Finder):
    """Finds what to fit, and fits it. The search runs on `backend`, by default PyTorch; `folder` keeps the states of
    fits, too, so that what was interrupted continues."""

    def __init__(
        self,
        model: SplitNetwork,
        calibration: Calibration,
        costs: Costs,
        spec: FitSpec,
        *,
        steps: int | None = None,
        backend: Backend | None = None,
        search: SearchSpec = THOROUGH,
        folder: Path | None = None,
        on_stage: OnStage = silent,
        guide: SplitNetwork | None = None,
    ) -> None:
        if (guide is None) != (calibration.guide is None):
            raise MismatchError(
                "A second network (--guide) guides in either the calibration or the fit, and not in both; calibrate "
                "with the same."
            )
        self.model, self.guide = model, guide
        super().__init__(
            backend or backend_of(model, guide, calibration.spec), calibration, costs, spec,
            steps=steps, search=search, folder=folder, on_stage=on_stage,
        )  # fmt: skip

    def fitted(self, cost: float, *, shared: bool) -> Schedule | None:
        """The best schedule of at most that cost, found and fitted; None where nothing is as cheap."""
        schedule = self.find(cost=cost, shared=shared)
        return self.fit(schedule).schedule if schedule is not None else None

    def fit(self, schedule: Schedule) -> Fitted:
        path = None
        if self.folder is not None:
            path = self.folder / f"state-{checksum(schedule.document())[:12]}.safetensors"
        fitter = Fitter(
            self.model, schedule, self.spec, state_path=path, cache=self.folder, on_stage=self.on_stage,
            guide=self.guide,
        )  # fmt: skip
        if path is not None and path.exists() and not fitter.continues():
            path.unlink()  # of another fit of this schedule
        return fitter.run()
