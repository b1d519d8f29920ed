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
        leads = [(one.guidance, one.guidance_interval, one.final_step, one.solver == "sde") for one in (own, spec)]
        return spec if leads[0] == leads[1] and own.solver != "sde" else own
    if (own.guidance, own.guidance_interval) != (spec.guidance, spec.guidance_interval):
        raise MismatchError(
            f"The schedule was fitted for guidance {own.guidance:g} on {own.guidance_interval}, the calibration has "
            f"{spec.guidance:g} on {spec.guidance_interval}; calibrate with the schedule's."
        )
    if own.final_step != spec.final_step:
        mine, theirs = (step or "none" for step in (own.final_step, spec.final_step))
        raise MismatchError(
            f"The schedule's limit has the final step {mine}, the calibration {theirs}; calibrate with the --last-step "
            "that the schedule was fitted for."
        )
    return spec
