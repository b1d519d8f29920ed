"""What `solve` says beside its answers: what the same sampler does in fewer steps, for the same cost."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from ddt_accel.cli.sentences import counted

if TYPE_CHECKING:
    from ddt_accel.calibration.statistics import Calibration
    from ddt_accel.evaluation.budgets import Beside, Target
    from ddt_accel.evaluation.costs import Costs
    from ddt_accel.networks.split import SplitNetwork
    from ddt_accel.schedule import Schedule
    from ddt_accel.solver.solve import Certificate
    from ddt_accel.workspace import Workspace

# How many dB predictions were too optimistic at most, on the networks that they were compared on: with a calibration
# that has run shared trajectories, and with one that has not.
MISSED, MISSED_UNMEASURED = 4.0, 6.0


def costs_of(place: Workspace, calibration: Calibration) -> Costs:
    """The costs that were measured in this workspace, else counted ones of its export or of its model."""
    from ddt_accel.backends.guided import backend_of
    from ddt_accel.calibration.statistics import widths_of
    from ddt_accel.cli.console import say
    from ddt_accel.cli.costing import counted_by_export
    from ddt_accel.errors import MismatchError
    from ddt_accel.evaluation.costs import counted_of, kept_costs

    sha256 = calibration.checkpoint_sha256
    guided_by = calibration.guide_sha256
    widths = widths_of(calibration)
    costs = kept_costs(place.costs_path, sha256, say, guide_sha256=guided_by, widths=widths)
    costs = costs or counted_by_export(place, sha256, guided_by)
    if costs is not None and costs.cover(widths):
        return costs
    network, guide = place.load_networks({})
    if guided_by is None:
        guide = None
    if (source_of(network), source_of(guide)) != (sha256, guided_by):
        raise MismatchError(
            f"The calibration is not of the model of {place.folder}, whose operations would be counted; solve in the "
            "workspace that it was made in."
        )
    return counted_of(backend_of(network, guide), calibration.latent_shape)


def source_of(network: SplitNetwork | None) -> str | None:
    """The checkpoint's SHA-256, where it is known."""
    return network.source.sha256 if network is not None and network.source is not None else None


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


def fewer_told(schedule: Schedule, found: Beside | None, calibration: Calibration, target: Target) -> str:
    """Fewer steps beside a schedule, and which of the two should end closer."""
    if schedule.budget == schedule.spec.num_evaluations and not schedule.has_widths:
        return ""
    if found is None:
        return (
            "What fewer steps do at this cost is not known here: the calibration has not measured it, or is of another "
            "model. `ddt-accel calibrate` anew measures it, or `ddt-accel plan`."
        )
    copying = f"{found.copying:.1f} dB to the unshared trajectory and " if found.copying is not None else ""
    images = calibration.coarser_sum[:, 0].max()
    said = (
        f"Fewer steps at this cost: {found.steps}, {found.speedup:.2f} times as fast, with {copying}"
        f"{found.reference:.1f} dB to the reference solution, measured on {counted(round(images), 'calibrated image')}."
    )
    missed = MISSED if calibration.shared_sum.any() else MISSED_UNMEASURED
    return f"{said}\n{verdict(schedule, found, target, missed=missed)}"


def verdict(schedule: Schedule, found: Beside, target: Target, *, missed: float = MISSED) -> str:
    """Whether sharing pays at a cost, as far as predictions go: by what the target limits, else by both measures.

    `missed` is by how many dB predictions may be off.
    """
    if found.steps == schedule.spec.num_steps:
        return f"Sharing gains nothing here: all {found.steps} steps without it cost about as much."
    gains = {"unshared pictures": found.copying_gain, "reference solution": found.reference_gain}
    if target.limits_error and found.copying_gain is not None:
        del gains["reference solution"]
    known = {name: gain for name, gain in gains.items() if gain is not None}
    if not known:
        return "This objective predicts no error; `ddt-accel bench` tells which of them ends closer."
    worst, best = min(known.values()), max(known.values())
    if best < 0:
        lost = " and ".join(f"{-gain:.1f} dB closer to the {name}" for name, gain in known.items())
        hint = f" `ddt-accel optimize --speedup {found.speedup:.3g}` looks for what is best at this speed."
        return f"Sharing loses here: {found.steps} steps end {lost}.{hint if 'reference solution' in known else ''}"
    if worst < 0:
        parts = [
            f"{'nearer to' if gain >= 0 else 'further from'} the {name} by {abs(gain):.1f} dB"
            for name, gain in known.items()
        ]
        said = f"Sharing should end {', '.join(parts)}"
    else:
        said = f"Sharing should gain {' and '.join(f'{gain:.1f} dB to the {name}' for name, gain in known.items())}"
    if min(map(abs, known.values())) < missed:
        return f"{said}; predictions missed by up to {missed:.0f} dB elsewhere."
    return f"{said}."


def unreached_told(curve: list[tuple[Schedule, Certificate]], chosen: Schedule, target: Target) -> str:
    """Where only all encoder runs reach a tolerance, that sharing does not, and how far it should come."""
    from ddt_accel.evaluation.budgets import predicted_psnr

    shared = [psnr for schedule, _ in curve[:-1] if (psnr := predicted_psnr(schedule)) is not None]
    if not target.limits_error or chosen.budget < chosen.spec.num_evaluations or not shared:
        return ""
    return f"No schedule that shares is predicted to reach that; the best of them comes to {max(shared):.1f} dB."


def left_out_told(curve: list[tuple[Schedule, Certificate]], found: list[Beside | None]) -> str:
    """Why a table over all budgets has fewer columns than others."""
    schedule = curve[0][0]
    beside = [one for one in found if one is not None]
    if len(curve) == 1:
        return ""
    if not beside:
        return (
            "Without columns for fewer steps: the calibration has not measured what they do; `ddt-accel calibrate` "
            "anew measures it."
        )
    if all(one.predicted is None for one in beside):
        return f"Without columns for what sharing gains: the objective {schedule.objective!r} predicts no error."
    if all(one.copying is None for one in beside) and any(one.steps < schedule.spec.num_steps for one in beside):
        return (
            f"Without columns for fewer steps beside the unshared pictures: the calibration is not of "
            f"{schedule.spec.num_steps} steps; `ddt-accel calibrate --steps {schedule.spec.num_steps}` measures it."
        )
    return ""


def fewer_facts(found: Beside | None) -> dict[str, Any] | None:
    """For `--json`."""
    if found is None:
        return None
    return asdict(found) | {"copying_gain": found.copying_gain, "reference_gain": found.reference_gain}
