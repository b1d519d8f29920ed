"""How far predicted errors were from measured ones, and what that says of other numbers of encoder runs.

A prediction takes errors for small and those of segments for independent; how wrong that is depends on the network, and
changes slowly with the number of encoder runs. So the ratio of measured to predicted is read between the numbers of
runs where it was measured, on a line in its logarithm over theirs, and beyond them stays what it is at the last one.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

# What was run: states forecast as by default, states held, and branches at steps of their own.
CALIBRATED, HELD, SPLIT = WAYS = ("calibrated", "hold", "split")


@dataclass(frozen=True, kw_only=True, eq=False)
class Misses:
    """Measured over predicted error, `ratios` [W, B] of `WAYS` at B numbers of encoder runs `runs` [B], increasing; NaN
    where it was not measured."""

    runs: Array
    ratios: Array

    def of(self, forecast: str, runs: int) -> float:
        """What an error predicted of a kind of forecast is to be multiplied by: states extrapolated linearly miss as
        calibrated forecasts do, only held ones otherwise."""
        return self.at(HELD if forecast == "hold" else CALIBRATED, runs)

    def at(self, way: str, runs: int) -> float:
        """The ratio for so many runs; 1 where nothing was measured that way."""
        ratios = self.ratios[WAYS.index(way)]
        known = np.isfinite(ratios)
        if not known.any():
            return 1.0
        return float(np.exp(np.interp(np.log(runs), np.log(self.runs[known]), np.log(ratios[known]))))


def misses_of(runs: list[int], sums: Array) -> Misses:
    """From sums [W, B, 3]: how many images, the sum of their measured and of their predicted mean squared errors."""
    count, measured, predicted = np.moveaxis(sums, -1, 0)
    known = (count > 0) & (measured > 0) & (predicted > 0)
    ratios = np.full(known.shape, np.nan)
    ratios[known] = np.sqrt(measured[known] / predicted[known])
    return Misses(runs=np.array(runs, dtype=np.float64), ratios=ratios)
