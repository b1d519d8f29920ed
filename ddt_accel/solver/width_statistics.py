"""What the solver reads of a network with nested widths."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ddt_accel.solver.misses import Misses

Array = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, eq=False)
class WidthStatistics:
    """Of E evaluations and W `widths`, the first of them 1, the complete network's:

    - `gram` [E, W, E, W]: expected inner products of encoder states' deviations from the mean of their evaluation and
      width;
    - `mean_modulations` [E, W − 1, M]: the modulations of the narrow encoders' means;
    - `effects` [E, W − 1, E, W − 1]: expected inner products, per value of the latents, of what a narrow decoder at one
      evaluation alone does to the final latents; None where it was not measured, or where decoders have one width;
    - `misses`: how far predicted errors of schedules whose encoder is narrow everywhere were from measured ones.
    """

    widths: tuple[float, ...]
    gram: Array
    mean_modulations: NDArray[np.float32]
    effects: Array | None
    misses: Misses
