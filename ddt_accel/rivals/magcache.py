"""MagCache: refresh where the ratio of magnitudes has gone too far from one (arXiv 2506.09045), made a schedule.

γ_k is the norm at step k over that of the step before. Since the last refresh n steps were skipped, whose ratios to it
are Γ_1, Γ_2, … (products of γ): one more is skipped while Σ |1 − Γ| stays within a threshold and n within a longest
run. A first part of all steps always refreshes. What is cached is reused unscaled.

Adapted: γ is of the state and of expected squares, from the Gram matrix; the authors' is the mean ratio of tokens of
what the network adds to its input, on one sample. The threshold is bisected.
"""

from __future__ import annotations

import math
from functools import partial

import numpy as np
from numpy.typing import NDArray

from ddt_accel.rivals.rival import Variant, bisected, held
from ddt_accel.schedule import Schedule
from ddt_accel.solver.forecast import checked_gram
from ddt_accel.solver.solve import Statistics

FIRST, LONGEST = (0.0, 0.1, 0.2), (2, 4, 6, None)


def variants(statistics: Statistics) -> list[Variant]:
    power = checked_gram(statistics.gram).diagonal()
    norms = np.sqrt(np.maximum(power, np.finfo(np.float64).tiny))
    return [
        Variant(
            settings=f"first {first:.0%}, {f'at most {longest}' if longest else 'any number'} skipped",
            of=partial(_schedule, statistics, norms, first, longest or len(norms)),
        )
        for first in FIRST
        for longest in LONGEST
    ]


def _schedule(
    statistics: Statistics, norms: NDArray[np.float64], first: float, longest: int, runs: int
) -> Schedule | None:
    always = max(1, math.floor(first * len(norms)))
    highest = len(norms) * (1 + norms.max() / norms.min())  # no errors add up to that
    steps = bisected(lambda threshold: within(norms, threshold, always, longest), runs, highest)
    return None if steps is None else held(statistics, steps)


def within(norms: NDArray[np.float64], threshold: float, always: int, longest: int) -> tuple[int, ...]:
    """The refresh steps of a threshold, `always` the first ones; Γ is the ratio of two norms."""
    steps, error = [0], 0.0
    for step in range(1, len(norms)):
        error += abs(1 - norms[step] / norms[steps[-1]])
        if step < always or error > threshold or step - steps[-1] > longest:
            steps.append(step)
            error = 0.0
    return tuple(steps)
