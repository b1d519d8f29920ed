"""TeaCache: refresh where changes since the last refresh add up to a threshold (arXiv 2411.19108), made a schedule.

The authors add up P(δ_k), where δ_k = mean |I_k − I_{k−1}| / mean |I_{k−1}| is of the first block's modulated input,
known before the network runs, and the polynomial P foretells from it the relative change of the output. First and last
step refresh; at the others what the network last added to its input is reused.

Adapted: thresholds are turned into fixed steps. What P foretells is in the calibration, ‖s_k − s_{k−1}‖ / ‖s_{k−1}‖ of
expected squares from the Gram matrix, and the threshold is bisected. The state is held.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ddt_accel.rivals.rival import Variant, bisected, held
from ddt_accel.schedule import Schedule
from ddt_accel.solver.forecast import checked_gram
from ddt_accel.solver.solve import Statistics


def variants(statistics: Statistics) -> list[Variant]:
    changes = relative_changes(checked_gram(statistics.gram))

    def schedule(runs: int) -> Schedule | None:
        steps = bisected(lambda threshold: adding_up(changes, threshold), runs, changes.sum() + 1.0)
        return None if steps is None else held(statistics, steps)

    return [Variant(settings="state held", of=schedule)]


def relative_changes(gram: NDArray[np.float64]) -> NDArray[np.float64]:
    """‖s_k − s_{k−1}‖ / ‖s_{k−1}‖ [E], 0 for the first."""
    power = gram.diagonal()
    squared = np.maximum(power[1:] - 2 * gram.diagonal(1) + power[:-1], 0.0)
    return np.append(0.0, np.sqrt(squared / np.maximum(power[:-1], np.finfo(np.float64).tiny)))


def adding_up(changes: NDArray[np.float64], threshold: float) -> tuple[int, ...]:
    """The refresh steps of a threshold."""
    steps, total, last = [0], 0.0, len(changes) - 1
    for step in range(1, len(changes)):
        total += changes[step]
        if total >= threshold or step == last:
            steps.append(step)
            total = 0.0
    return tuple(steps)
