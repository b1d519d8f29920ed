"""What holds between the evaluations that something was measured at."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def interpolated(wanted: Array, wanted_guidance: Array, known: Array, known_guidance: Array, values: Array) -> Array:
    """Values on a line between known places, never over a change of guidance, where they jump."""
    result = np.empty(len(wanted))
    for weight in np.unique(wanted_guidance):
        part, like = wanted_guidance == weight, known_guidance == weight
        if not like.any():
            like[:] = True
        result[part] = np.interp(wanted[part], known[like], values[like])
    return result


def between(wanted: Array, wanted_guidance: Array, known: Array, known_guidance: Array) -> Array:
    """P [wanted, known]: the weights by which `interpolated` takes known values."""
    columns = [interpolated(wanted, wanted_guidance, known, known_guidance, unit) for unit in np.eye(len(known))]
    return np.stack(columns, axis=1)
