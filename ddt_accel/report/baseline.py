"""What a study may be made of: which sampler a schedule stands beside, and on which images it is measured."""

from __future__ import annotations

from collections.abc import Iterable

from ddt_accel.calibration.statistics import Calibration
from ddt_accel.errors import MismatchError
from ddt_accel.sampling.noise import ImageRange
from ddt_accel.schedule import Schedule
from ddt_accel.spec import SamplingSpec


def check_held_out(images: ImageRange, calibration: Calibration, schedules: Iterable[Schedule]) -> None:
    """Raises MismatchError where images were calibrated, fitted or chosen on: what is reported must hold for others."""
    if calibration.contains(images):
        raise MismatchError(f"Seed {images.seed} was calibrated on; measure with another --seed.")
    for schedule in schedules:
        if images.overlaps_any(schedule.fitted_on):
            raise MismatchError(
                f"The schedule was fitted on images of seed {images.seed}, or chosen by them; measure with another "
                "--seed."
            )


def baseline_of(schedule: Schedule, calibration: Calibration) -> SamplingSpec:
    """The sampler that a schedule is compared with, unshared: the calibrated one, whatever the schedule's own grid.

    A schedule by hand or of a stochastic sampler that leads elsewhere stands beside its own. Raises MismatchError where
    a fitted one does.
    """
    own, spec = schedule.spec, calibration.spec
    if not schedule.is_fitted:
        return spec if own.aim == spec.aim and "sde" not in (own.solver, spec.solver) else own
    if not own.guides_as(spec):
        raise MismatchError(
            f"The schedule was fitted for guidance {own.guided}, the calibration has {spec.guided}; calibrate with the "
            "schedule's."
        )
    if own.final_step != spec.final_step:
        mine, theirs = (step or "none" for step in (own.final_step, spec.final_step))
        raise MismatchError(
            f"The schedule's limit has the final step {mine}, the calibration {theirs}; calibrate with the --last-step "
            "that the schedule was fitted for."
        )
    if own.end_time != spec.end_time:
        mine, theirs = (f"{one.end_time:.6g}" for one in (own, spec))
        raise MismatchError(
            f"The schedule's trajectories end at t = {mine}, the calibration's at {theirs}; calibrate with the --end "
            "that the schedule was fitted for."
        )
    return spec
