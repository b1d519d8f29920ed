"""L2P: every step's weights of all states before it, learned from calibrated trajectories (arXiv 2604.26365).

The authors minimise the squared error of ŝ_k = Σ_{r < k} w_r s_r, without a constant and uncentred, by gradient descent
that is stopped early. Its minimum over the refreshes so far has a closed form in the Gram matrix,

    w = (G_RR + λ diag G_RR)⁻¹ G_Rk,

where the ridge λ stands for the early stop. Whether their weights at run time are of refreshed states alone is not
said: learned over all earlier states they would be nearly all on the last one, itself a forecast, which is a held
state. Their schedule: one interval.
"""

from __future__ import annotations

from functools import partial

import numpy as np
from numpy.typing import NDArray

from ddt_accel.rivals.rival import Variant, evenly, forecasting
from ddt_accel.schedule import Schedule
from ddt_accel.solver.forecast import checked_gram
from ddt_accel.solver.solve import Statistics

RIDGES = (1e-6, 1e-4, 1e-3, 1e-2)


def variants(statistics: Statistics) -> list[Variant]:
    gram = checked_gram(statistics.gram)
    return [Variant(settings=f"ridge {ridge:g}", of=partial(_schedule, statistics, gram, ridge)) for ridge in RIDGES]


def _schedule(statistics: Statistics, gram: NDArray[np.float64], ridge: float, runs: int) -> Schedule:
    steps = evenly(len(gram), runs)
    return forecasting(statistics, steps, partial(ridge_weights, gram, ridge))


def ridge_weights(gram: NDArray[np.float64], ridge: float, drawn: list[int], step: int) -> NDArray[np.float64]:
    """The weights of the refreshes `drawn` at a step."""
    inner = gram[np.ix_(drawn, drawn)]
    return np.linalg.solve(inner + ridge * np.diag(inner.diagonal()), gram[drawn, step]).astype(np.float64)
