"""The study behind a report: which schedules are measured, and what is kept of them."""

from __future__ import annotations

import dataclasses
import os
import platform
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version

import numpy as np
import torch
from torch import Tensor

from ddt_accel.calibration.resample import resample
from ddt_accel.calibration.statistics import Calibration
from ddt_accel.errors import ConfigError, MismatchError
from ddt_accel.evaluation.benchmark import Measurement, is_pixel_space, measure
from ddt_accel.evaluation.converged import converged_ends
from ddt_accel.evaluation.fidelity import Interval, interval, latent_decibels, psnr, to_images
from ddt_accel.networks.device import processor
from ddt_accel.sampling.backend import Backend
from ddt_accel.sampling.noise import ImageRange
from ddt_accel.schedule import FITTED, Schedule
from ddt_accel.solver.solve import OBJECTIVES, Method, Statistics, solve_curve
from ddt_accel.solver.solve import PUBLISHED as PUBLISHED_METHOD
from ddt_accel.spec import SamplingSpec
from ddt_accel.stages import OnStage

UNSHARED, UNIFORM, PUBLISHED, SOLVED, GIVEN = "unshared", "uniform", "published", "solved", "given"
# The limit that trajectories are compared with has this many times their steps.
CONVERGED = 4


@dataclass(frozen=True, kw_only=True)
class Study:
    """Everything that a report shows."""

    statistics: Statistics
    schedule: Schedule
    measurements: list[Measurement]  # unshared, uniform, published, the schedule, fewer steps, others
    others: tuple[str, ...]
    latents: dict[str, Tensor]  # the first of them, a few images each
    limits: dict[str, list[float | None]]  # dB to the converged trajectory, of the first `curve_images`
    curves: dict[str, list[Measurement]]  # by way of being faster
    num_images: int
    curve_images: int
    seed: int
    conditions: dict[str, str]

    @property
    def chosen(self) -> str:
        """What the schedule goes by; one that was written by hand or taken from elsewhere is not called solved."""
        return chosen_name(self.schedule)

    @property
    def calibrated(self) -> SamplingSpec:
        """The sampling that everything stands beside."""
        return self.statistics.spec

    @property
    def limit(self) -> dict[str, Interval | None]:
        """The mean of `limits`, None where images are identical; empty where there is no converged trajectory."""
        return {name: interval([np.inf if v is None else v for v in found]) for name, found in self.limits.items()}


def chosen_name(schedule: Schedule) -> str:
    if schedule.is_fitted:
        return FITTED
    return SOLVED if schedule.objective in OBJECTIVES else GIVEN


def curve_budgets(num_evaluations: int) -> list[int]:
    """From 1 to E, dense where a run more matters, and always both ends."""
    dense = [1, 2, 3, 4, 5, 6, 8, 10, 12, 16, 20, 25, 32, 40, 50, 64, 80, 100, 128, 160, 200, 250]
    return [budget for budget in dense if budget < num_evaluations] + [num_evaluations]


def conduct(
    backend: Backend,
    calibration: Calibration,
    schedule: Schedule,
    *,
    model_name: str,
    latent_shape: tuple[int, int, int],
    num_images: int,
    curve_images: int,
    seed: int,
    batch_size: int,
    on_stage: OnStage,
    others: Mapping[str, Schedule] | None = None,
) -> Study:
    """Measures all budgets, then the schedule beside unshared, uniform, the published method, fewer steps and others.

    `on_stage` is called with what comes next and how many steps it takes. Raises MismatchError where the images were
    calibrated on: what is reported must hold for images that no statistic has seen.
    """
    if num_images < 2 or curve_images < 2 or batch_size < 1:
        raise ConfigError(
            f"{num_images} images, {curve_images} on the curve, batches of {batch_size}: an interval needs at least 2 "
            "images, and a batch 1."
        )
    if calibration.latent_shape != latent_shape:
        raise MismatchError(
            f"The calibration is of latents {list(calibration.latent_shape)}, the networks are for "
            f"{list(latent_shape)}; calibrate with these."
        )
    held_out = ImageRange(seed=seed, first=0, stop=max(num_images, curve_images))
    if calibration.contains(held_out):
        raise MismatchError(f"Seed {seed} was calibrated on; measure with another --seed.")
    for one in (schedule, *(others or {}).values()):
        if held_out.overlaps_any(one.fitted_on):
            raise MismatchError(f"The schedule was fitted on images of seed {seed}; measure with another --seed.")
    # A fitted schedule leads where many steps would: beside it stands the calibrated sampler, not its own grid.
    spec = _beside(schedule, calibration)
    statistics = calibration if calibration.spec == spec else resample(calibration, spec)
    sha256 = schedule.checkpoint_sha256
    full = dataclasses.replace(Schedule.full(spec), checkpoint_sha256=sha256)

    def go(
        schedules: dict[str, Schedule], images: int, batch: int, label: str
    ) -> tuple[list[Measurement], dict[str, Tensor]]:
        advance = on_stage(label, -(-images // batch) * len(schedules))
        return measure(
            backend,
            schedules,
            latent_shape=latent_shape,
            num_images=images,
            seed=seed,
            batch_size=batch,
            on_run=advance,
        )

    curves = _curves(statistics, schedule, full)
    probe = {UNSHARED: full, chosen_name(schedule): schedule}
    probe |= {name: s for group in curves.values() for name, s in group.items()}
    # Smaller batches, so that every point is an average over moments of the machine, too.
    points, _ = go(probe, curve_images, max(1, batch_size // 2), "measuring the budgets")
    by_name = {point.name: point for point in points}
    measured = {way: [by_name[UNSHARED], *(by_name[name] for name in group)] for way, group in curves.items()}

    # What a user would do instead: take fewer steps, as many as fit into the schedule's time.
    step_seconds = by_name[UNSHARED].seconds / spec.num_steps
    # The least disturbed of the runs of these refresh steps, which the curve may have, too.
    own = (schedule.refresh_steps, schedule.spec.num_evaluations)
    seconds = min(point.seconds for point in points if (point.refresh_steps, point.num_evaluations) == own)
    fewer = max(1, min(spec.num_steps - 1, round(seconds / step_seconds)))
    main = {
        UNSHARED: full,
        UNIFORM: Schedule.uniform(spec, schedule.budget),
        PUBLISHED: solve_curve(statistics, schedule.budget, PUBLISHED_METHOD)[-1][0],
        chosen_name(schedule): schedule,
    }
    if spec.num_steps > 1:
        main[f"{fewer} steps"] = Schedule.full(dataclasses.replace(spec, num_steps=fewer))
    main |= others or {}
    measurements, latents = go(main, num_images, batch_size, "measuring the schedules")
    first = ImageRange(seed=seed, first=0, stop=min(num_images, curve_images))
    limits: dict[str, list[float | None]] = {}
    limit = schedule.spec if schedule.is_fitted else spec
    if limit.solver != "sde":
        done = on_stage("measuring the converged trajectory", 1)
        ends = converged_ends(backend, limit, CONVERGED * spec.num_steps, first, latent_shape, batch_size)
        pixels = is_pixel_space(backend.config)
        for name, found in latents.items():
            kept = found[: first.count]
            values = psnr(to_images(kept), to_images(ends)) if pixels else latent_decibels(kept, ends)
            limits[name] = [value if np.isfinite(value) else None for value in values.tolist()]
        done()
    return Study(
        statistics=statistics,
        schedule=schedule,
        measurements=measurements,
        others=tuple(others or ()),
        latents={name: images[:16] for name, images in latents.items()},
        limits=limits,
        curves=measured,
        num_images=num_images,
        curve_images=curve_images,
        seed=seed,
        conditions=_conditions(backend, model_name, calibration, schedule, batch_size),
    )


def _beside(schedule: Schedule, calibration: Calibration) -> SamplingSpec:
    """The sampling that a schedule is compared with unshared: its own, or where it was fitted the calibrated one.

    Raises MismatchError where that one leads elsewhere or is too short.
    """
    if not schedule.is_fitted:
        return schedule.spec
    own, spec = schedule.spec, calibration.spec
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
    if schedule.budget > spec.num_evaluations:
        raise MismatchError(
            f"The schedule runs the encoder {schedule.budget} times, the calibrated sampler only "
            f"{spec.num_evaluations} times; calibrate with more --steps."
        )
    return spec


def _curves(statistics: Statistics, schedule: Schedule, full: Schedule) -> dict[str, dict[str, Schedule]]:
    """Schedules of all budgets, solved as `schedule` was, as published, evenly spread, and of fewer steps."""
    spec = full.spec
    budgets = [budget for budget in curve_budgets(spec.num_evaluations) if budget < spec.num_evaluations]
    fewer = sorted({max(1, round(spec.num_steps * share)) for share in (0.1, 0.16, 0.24, 0.32, 0.4, 0.5, 0.64, 0.8)})
    curves = {
        UNIFORM: {f"{UNIFORM}, {k}": Schedule.uniform(spec, k) for k in budgets},
        "fewer steps": {
            f"{n} steps": Schedule.full(dataclasses.replace(spec, num_steps=n)) for n in fewer if n < spec.num_steps
        },
    }
    if budgets:
        ways = {SOLVED: method_of(schedule), PUBLISHED: PUBLISHED_METHOD}
        for way, method in ways.items():
            solved = solve_curve(statistics, budgets[-1], method)
            curves[way] = {f"{way}, {k}": solved[k - 1][0] for k in budgets}
    return curves


def method_of(schedule: Schedule) -> Method:
    """What a schedule was solved with; the default where it was not solved."""
    if schedule.objective not in OBJECTIVES:
        return Method()
    return Method(
        forecast=schedule.forecast,
        objective=schedule.objective,
        sources=max((len(row) for row in schedule.forecasts.values()), default=2),
        centred=schedule.centred,
    )


def _conditions(
    backend: Backend, model_name: str, calibration: Calibration, schedule: Schedule, batch_size: int
) -> dict[str, str]:
    """The machine, the versions and the settings under which everything was measured."""
    spec = _beside(schedule, calibration)
    packages = ["ddt-accel", "torch", "numpy", "onnxruntime"]
    low, high = spec.guidance_interval
    accelerator = f", {torch.cuda.get_device_name()}" if backend.device.type == "cuda" else ""
    return {
        "model": f"{model_name}, checkpoint {calibration.checkpoint_sha256[:12]}",
        "network": f"{backend.config.num_encoder_blocks} encoder and {backend.config.num_decoder_blocks} decoder "
        f"blocks, width {backend.config.hidden_size}",
        "sampling": f"{spec.solver}, {spec.num_steps} steps, guidance {spec.guidance:g} for {low:g} < t < {high:g}, "
        f"time shift {spec.timeshift:g}" + (f", last step {spec.last_step:g}" if spec.last_step is not None else ""),
        "calibration": f"{calibration.num_samples} trajectories of {calibration.spec.num_steps} steps",
        "schedule": f"{schedule.spec.num_steps} steps, {schedule.forecast} forecast, objective {schedule.objective}"
        f"{_own_steps(schedule)}",
        "backend": backend.name,
        "device": backend.device.type + accelerator,
        "machine": f"{processor()}, {os.cpu_count()} CPUs, {torch.get_num_threads()} threads, {platform.system()}",
        "batch": f"{batch_size} images",
        "versions": ", ".join(f"{name} {_version(name)}" for name in packages)
        + f", Python {platform.python_version()}",
    }


def _own_steps(schedule: Schedule) -> str:
    if schedule.unconditional_steps is None:
        return ""
    return f"; the unconditional branch refreshes at {', '.join(map(str, schedule.unconditional_steps))}"


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "absent"
