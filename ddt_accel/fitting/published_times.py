"""Times that others searched once, for any velocity network, to begin a fit from: the neural solver's."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

from ddt_accel.calibration.statistics import Calibration
from ddt_accel.errors import ConfigError
from ddt_accel.rivals.neural_solver import TABLES, solver
from ddt_accel.schedule import Schedule
from ddt_accel.spec import SamplingSpec

SEARCHED = "published times"


@dataclass(frozen=True, kw_only=True)
class PublishedTimes:
    """A start without sharing, at the times and with the integrator that were searched on the network `table`. It has
    no neighbours: its times are no grid's, and a fit moves each of them anyway."""

    steps: int
    table: str

    def schedule(self, calibration: Calibration) -> Schedule:
        """Raises ConfigError where these times do not fit the sampling that was calibrated."""
        return dataclasses.replace(
            _solver(calibration.spec, self.table, self.steps),
            objective=SEARCHED,
            checkpoint_sha256=calibration.checkpoint_sha256,
            guide_sha256=calibration.guide_sha256,
        )


def published_times(
    calibration: Calibration, affordable: Callable[[Schedule], bool], steps: int | None = None
) -> list[PublishedTimes]:
    """Of each network that they were searched on those of the most steps that are `affordable`, or of so many."""
    found = []
    for name, table in TABLES.items():
        for count in sorted(table, reverse=True) if steps is None else [steps] * (steps in table):
            one = PublishedTimes(steps=count, table=name)
            if count <= calibration.spec.num_steps and _fits(one, calibration, affordable):
                found.append(one)
                break
    return found


def _fits(one: PublishedTimes, calibration: Calibration, affordable: Callable[[Schedule], bool]) -> bool:
    try:
        return affordable(one.schedule(calibration))
    except ConfigError:
        return False


@lru_cache(maxsize=64)
def _solver(spec: SamplingSpec, table: str, steps: int) -> Schedule:
    return solver(spec, TABLES[table], steps)
