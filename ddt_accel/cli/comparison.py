"""What `solve` says beside its answers: what the same sampler does in fewer steps, for the same cost."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ddt_accel.calibration.statistics import Calibration
    from ddt_accel.evaluation.budgets import Beside
    from ddt_accel.evaluation.costs import Costs
    from ddt_accel.schedule import Schedule
    from ddt_accel.workspace import Workspace

# How many dB predictions were too optimistic at most, on the networks that they were compared on.
MISSED = 6.0


def costs_of(place: Workspace, calibration: Calibration) -> Costs:
    """The costs that were measured in this workspace, else counted ones of its export or of its model."""
    from ddt_accel.cli.console import say
    from ddt_accel.cli.costing import counted_by_export
    from ddt_accel.errors import MismatchError
    from ddt_accel.evaluation.costs import counted_costs, kept_costs

    sha256 = calibration.checkpoint_sha256
    if costs := kept_costs(place.costs_path, sha256, say) or counted_by_export(place, sha256):
        return costs
    network = place.load_model({})
    if network.source is None or network.source.sha256 != sha256:
        raise MismatchError(
            f"The calibration is not of the model of {place.folder}, whose operations would be counted; solve in the "
            "workspace that it was made in."
        )
    return counted_costs(network.config, calibration.latent_shape)


def predicted_told(schedule: Schedule, found: Beside | None) -> str:
    """What the calibration foretells of a schedule."""
    from ddt_accel.evaluation.budgets import predicted_psnr

    psnr = predicted_psnr(schedule)
    if psnr is None:
        return ""
    said = (
        f"Predicted: {psnr:.1f} dB to the unshared trajectory, a root-mean-square error of the final latents of "
        f"{schedule.predicted_error:.4g}"
    )
    if found is not None and found.expected is not None:
        said += (
            f"; {found.expected:.1f} dB to the reference solution, to which {schedule.spec.num_steps} steps without "
            f"sharing come as close as {found.unshared:.1f}"
        )
    return f"{said}. `ddt-accel bench` measures."


def fewer_told(schedule: Schedule, found: Beside | None, calibration: Calibration) -> str:
    """Fewer steps beside a schedule, and which of the two should end closer."""
    if schedule.budget == schedule.spec.num_evaluations:
        return ""
    if found is None:
        return (
            "What fewer steps do at this cost is not known here: the calibration has not measured it, or is of another "
            "model. `ddt-accel plan` measures it."
        )
    copying = f"{found.copying:.1f} dB to the unshared trajectory and " if found.copying is not None else ""
    images = calibration.coarser_sum[:, 0].max()
    said = (
        f"Fewer steps at this cost: {found.steps}, {found.speedup:.2f} times as fast, with {copying}"
        f"{found.reference:.1f} dB to the reference solution, measured on {images:.0f} calibrated images."
    )
    return f"{said}\n{verdict(found)}"


def verdict(found: Beside) -> str:
    """Whether sharing pays at a cost, as far as predictions go."""
    gain = found.gain
    if gain is None:
        return "This objective predicts no error; `ddt-accel bench` tells which of them ends closer."
    if gain < 0:
        return (
            f"Sharing loses here: {found.steps} steps end {-gain:.1f} dB closer. `ddt-accel optimize --speedup "
            f"{found.speedup:.3g}` looks for what is best at this speed."
        )
    if gain < MISSED:
        return f"Sharing should gain {gain:.1f} dB, which is no more than predictions missed elsewhere."
    return f"Sharing should gain {gain:.1f} dB."


def fewer_facts(found: Beside | None) -> dict[str, Any] | None:
    """For `--json`."""
    return asdict(found) | {"gain": found.gain} if found is not None else None
