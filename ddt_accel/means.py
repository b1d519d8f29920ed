"""The modulations that forecasts are relative to: arrays [rows, M] by name, in a file beside their schedule.

Its name is made of its checksum, so that the schedules of one calibration share it and no schedule ever points to the
means of another.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ddt_accel.artifacts import checksum, read_arrays, write_arrays
from ddt_accel.errors import ArtifactError, ConfigError

FORMAT, VERSION = "ddt-accel mean modulations", 1
# Those of the network that is sampled, of a second one that guides, and of the sampled one where it runs narrow.
NAMES = ("mean_modulations", "guide_mean_modulations", "narrow_mean_modulations")
NARROW = NAMES[2]

Means = Mapping[str, NDArray[np.float32]]


def check_means(name: str, means: NDArray[np.float32] | None, *rows: int) -> None:
    """Raises ConfigError unless means are finite float32 with one of these numbers of rows."""
    if means is not None and (
        means.ndim != 2 or len(means) not in rows or means.dtype != np.float32 or not np.isfinite(means).all()
    ):
        shapes = " or ".join(f"[{count}, M]" for count in rows)
        raise ConfigError(f"{name} is {means.dtype}{list(means.shape)}; expected finite float32 {shapes}.")


def named(means: Means) -> dict[str, str] | None:
    """How a schedule names its means; None where it has none."""
    if not means:
        return None
    digest = checksum({}, means)
    return {"file": f"means-{digest[:12]}.safetensors", "sha256": digest}


def write_means(folder: Path, means: Means) -> None:
    """Writes them beside the schedule that names them."""
    if (name := named(means)) is not None:
        write_arrays(folder / name["file"], FORMAT, VERSION, {}, means)


def read_means(folder: Path, named: Any) -> dict[str, NDArray[np.float32]]:
    """The means that a schedule names, verified."""
    if named is None:
        return {}
    if (
        not isinstance(named, dict)
        or set(named) != {"file", "sha256"}
        or Path(str(named["file"])).name != named["file"]
    ):
        raise ConfigError("means must name a file beside the schedule and its sha256")
    path = folder / named["file"]
    if not path.is_file():
        raise ArtifactError(f"{path} is missing; it belongs to the schedule beside it: copy both, or solve anew.")
    _, arrays = read_arrays(path, FORMAT, VERSION)
    if checksum({}, arrays) != named["sha256"] or not {NAMES[0]} <= set(arrays) <= set(NAMES):
        raise ArtifactError(f"{path} is not what the schedule beside it was solved with; solve anew.")
    return arrays
