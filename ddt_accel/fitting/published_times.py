"""Grids that others searched once, for any velocity network, to begin a fit from: the neural solver's."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from functools import lru_cache

from ddt_accel.calibration.statistics import Calibration
from ddt_accel.rivals.neural_solver import TABLES, solver
from ddt_accel.schedule import Schedule
from ddt_accel.spec import SamplingSpec


@dataclass(frozen=True, kw_only=True)
class PublishedTimes:
    """A pattern without sharing, at the times and with the integrator that were searched on the network `table`."""

    steps: int
    table: str

    def schedule(self, calibration: Calibration) -> Schedule:
        return dataclasses.replace(
            _solver(calibration.spec, self.table, self.steps),
            checkpoint_sha256=calibration.checkpoint_sha256,
            guide_sha256=calibration.guide_sha256,
        )

    def neighbours(self) -> list[PublishedTimes]:
        """None: its times are no grid's, and what is fitted to them moves each of them anyway."""
        return []


def published_times(steps: tuple[int, ...]) -> list[PublishedTimes]:
    """Those of so many steps that there are."""
    return [
        PublishedTimes(steps=count, table=name) for count in steps for name, table in TABLES.items() if count in table
    ]


@lru_cache(maxsize=64)
def _solver(spec: SamplingSpec, table: str, steps: int) -> Schedule:
    return solver(spec, TABLES[table], steps)
