"""What a rival is: settings that its paper lets one choose, each of which makes a schedule of any number of runs.

The methods here were published for the output of every layer or of the last one, and for transformers without a split.
Here what they keep and forecast is the encoder's state, and the decoder runs at every evaluation. Everything else is as
published, or the module says what had to be adapted.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from ddt_accel.calibration.watched import Networks
from ddt_accel.sampling.noise import ImageRange
from ddt_accel.schedule import Forecast, Schedule
from ddt_accel.solver.solve import Statistics


@dataclass(frozen=True, kw_only=True)
class Variant:
    """One choice of a rival's settings.

    `of(runs)` is its schedule of at most so many encoder runs, from 1 to all evaluations of the statistics, on the mean
    of the guidance branches where they differ; None where it has none of so few.
    """

    settings: str
    of: Callable[[int], Schedule | None]


@dataclass(frozen=True, kw_only=True)
class Rival:
    """A published method: `variants` are all that may be chosen from, for the sampling of the statistics.

    One that shares nothing (`shares`) makes its own grid, of which the statistics only say guidance and where it ends.
    One whose numbers were fitted elsewhere (`refitted`) is worth fitting to other networks. What is estimated on the
    way of some images, for latents of a shape, is so by `along`, once the settings are chosen.
    """

    name: str
    source: str
    variants: Callable[[Statistics], list[Variant]]
    shares: bool = True
    refitted: bool = False
    along: Callable[[Networks, Schedule, ImageRange, tuple[int, int, int]], Schedule] | None = None


# The weights of the states of `drawn`, refreshes in increasing order, all of them before `step`, at that step.
Weigh = Callable[[list[int], int], Iterable[float]]


def forecasting(statistics: Statistics, refreshes: Sequence[int], weigh: Weigh) -> Schedule:
    """The schedule of these refresh steps whose states are forecast by `weigh`, uncentred."""
    spec, rows = statistics.spec, dict[int, Forecast]()
    for step in sorted(set(range(spec.num_evaluations)) - set(refreshes)):
        drawn = [refresh for refresh in refreshes if refresh < step]
        weights = [float(weight) for weight in weigh(drawn, step)]
        row = tuple((refresh, weight) for refresh, weight in zip(drawn, weights, strict=True) if weight != 0.0)
        rows[step] = row or ((drawn[-1], 0.0),)
    # Modulations are affine: of weights that do not add up to one, what is left is of a state of zeros.
    adding_up = all(math.isclose(sum(weight for _, weight in row), 1.0, abs_tol=1e-9) for row in rows.values())
    guide = statistics.guide
    return Schedule(
        spec=spec,
        refresh_steps=tuple(refreshes),
        forecasts=rows,
        forecast="rival",
        mean_modulations=None if adding_up else statistics.modulation_bias[None],
        guide_mean_modulations=None if adding_up or guide is None else guide.modulation_bias[None],
        checkpoint_sha256=statistics.checkpoint_sha256,
        guide_sha256=guide.checkpoint_sha256 if guide else None,
    )


def held(statistics: Statistics, refreshes: Sequence[int]) -> Schedule:
    """The schedule of these refresh steps whose states are used as they are until the next."""
    return forecasting(statistics, refreshes, lambda drawn, _: [0.0] * (len(drawn) - 1) + [1.0])


def evenly(evaluations: int, runs: int, *, first: int = 1) -> tuple[int, ...]:
    """`runs` refresh steps: the `first` evaluations, then at one interval, which need not be whole, to the end.

    Published intervals are whole, and leave most numbers of runs out.
    """
    first = min(first, runs)
    rest, gaps = evaluations - (first - 1), runs - (first - 1)
    return (*range(first - 1), *(first - 1 + index * rest // gaps for index in range(gaps)))


def bisected(steps: Callable[[float], tuple[int, ...]], runs: int, highest: float) -> tuple[int, ...] | None:
    """The refresh steps of as low a threshold as makes at most so many, None where the highest makes more.

    Publications choose a threshold, of which fewer runs follow the higher it is.
    """
    low, high = 0.0, highest
    if len(steps(high)) > runs:
        return None
    if len(steps(low)) <= runs:
        return steps(low)
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (low, middle) if len(steps(middle)) <= runs else (middle, high)
    return steps(high)
