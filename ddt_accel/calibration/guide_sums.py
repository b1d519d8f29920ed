"""What is calibrated of a second network that guides."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

# Only in files with such a network.
GUIDE_ARRAYS = ("mean_sum", "modulation_sum", "bias_sum")


@dataclass(frozen=True, kw_only=True, eq=False)
class GuideSums:
    """Sums over the states of a second network that guides, as `Calibration` has them of the first."""

    mean_sum: Array
    modulation_sum: Array
    bias_sum: Array
    checkpoint_sha256: str

    def __add__(self, other: GuideSums) -> GuideSums:
        sums = {name: getattr(self, name) + getattr(other, name) for name in GUIDE_ARRAYS}
        return GuideSums(**sums, checkpoint_sha256=self.checkpoint_sha256)

    def arrays(self) -> dict[str, Array]:
        """As files name them."""
        return {f"guide_{name}": getattr(self, name) for name in GUIDE_ARRAYS}
