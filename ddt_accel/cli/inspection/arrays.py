"""Arrays of ours in safetensors files: calibrations, mean modulations, converged trajectories, states of fits."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from ddt_accel.artifacts import read_arrays
from ddt_accel.cli.inspection.told import Told
from ddt_accel.errors import ArtifactError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from ddt_accel.calibration.statistics import Calibration


def arrays(path: Path, kind: str) -> Told:
    """What is in a file that says it is of this format."""
    from ddt_accel import means
    from ddt_accel.backends import kernel_cache, manifest
    from ddt_accel.calibration import statistics
    from ddt_accel.distribution import features
    from ddt_accel.distribution import statistics as of_features
    from ddt_accel.drawing import run_folder
    from ddt_accel.evaluation import converged
    from ddt_accel.fitting import fit

    if kind == statistics.FORMAT:
        return _calibration(path)
    versions = {
        manifest.REFERENCE_FORMAT: manifest.REFERENCE_VERSION,
        kernel_cache.FORMAT: kernel_cache.VERSION,
        means.FORMAT: means.VERSION,
        converged.FORMAT: converged.VERSION,
        fit.FORMAT: fit.VERSION,
        run_folder.RANGE_FORMAT: run_folder.RANGE_VERSION,
        features.FORMAT: features.VERSION,
        of_features.FORMAT: of_features.VERSION,
    }
    if kind not in versions:
        raise ArtifactError(f"{path} says it is a {kind[:80]}, which this ddt-accel does not know.")
    content, found = read_arrays(path, kind, versions[kind])
    shapes = {name: f"{array.dtype} {list(array.shape)}" for name, array in sorted(found.items())}
    return Told(facts={"kind": kind.removeprefix("ddt-accel "), **content, **shapes})


def _calibration(path: Path) -> Told:
    from ddt_accel.calibration.statistics import Calibration

    calibration = Calibration.load(path)
    similarity = calibration.similarity
    neighbours, sensitivity = similarity.diagonal(1), calibration.sensitivity
    return Told(
        facts={
            "kind": "calibration",
            "samples": calibration.num_samples,
            "images": [f"seed {r.seed}: {r.first} … {r.stop - 1}" for r in calibration.ranges],
            "neighbouring steps": f"cosine {neighbours.min():.4f} … {neighbours.max():.4f}"
            if len(neighbours)
            else "none",
            "first and last": f"cosine {similarity[0, -1]:.4f}",
            "sensitivity": f"{sensitivity[1:].max():.4g} … {sensitivity[1:].min():.4g}, from "
            f"{int(calibration.sensitivity_sum[:, 0].max())} samples{_uncertain(calibration.sensitivity_error)}"
            if sensitivity is not None
            else "not measured",
            **_widths(calibration),
            "checkpoint": calibration.checkpoint_sha256,
            **({"guide": calibration.guide_sha256} if calibration.guide_sha256 is not None else {}),
            "latent shape": list(calibration.latent_shape),
            **{key.replace("_", " "): value for key, value in asdict(calibration.spec).items()},
        }
    )


def _widths(calibration: Calibration) -> dict[str, str]:
    """At which narrow encoders were seen, and on how many samples narrow decoders; nothing of one width."""
    sums = calibration.width_sums
    if sums is None:
        return {}
    followed = f"from {sums.followed} samples" if sums.followed else "not measured"
    return {"widths": f"{', '.join(f'{width:g}' for width in sums.widths)}; effects of narrow decoders {followed}"}


def _uncertain(error: NDArray[np.float64] | None) -> str:
    return f" (standard error {error.mean():.0%} on the average)" if error is not None else ""
