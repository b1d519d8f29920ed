"""The study behind a report: which schedules are measured, and what is kept of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from ddt_accel.calibration.resample import resample
from ddt_accel.calibration.statistics import Calibration
from ddt_accel.errors import ConfigError, MismatchError
from ddt_accel.evaluation.benchmark import Measurement
from ddt_accel.evaluation.budgets import Target
from ddt_accel.evaluation.converged import reference_steps
from ddt_accel.evaluation.fidelity import Interval, interval
from ddt_accel.report.baseline import baseline_of, check_held_out
from ddt_accel.report.bench import Bench
from ddt_accel.report.conditions import conditions
from ddt_accel.report.headline import Nearness, Values, choose, nearness
from ddt_accel.report.table import Table
from ddt_accel.report.ways import PUBLISHED, SOLVED, UNIFORM, curves
from ddt_accel.sampling.backend import Backend
from ddt_accel.sampling.noise import ImageRange
from ddt_accel.schedule import FITTED, Schedule
from ddt_accel.solver.solve import OBJECTIVES, Statistics, solve_curve
from ddt_accel.solver.solve import PUBLISHED as PUBLISHED_METHOD
from ddt_accel.spec import SamplingSpec
from ddt_accel.stages import OnStage

UNSHARED, GIVEN = "unshared", "given"
# How many pictures of each are kept.
SHOWN = 16
# On so many images, which nothing is reported on, it is chosen what sharing is compared with.
CHOOSING = 4


@dataclass(frozen=True, kw_only=True)
class Study:
    """Everything that a report shows."""

    statistics: Statistics
    schedule: Schedule
    schedules: dict[str, Schedule]  # of all measurements
    measurements: list[Measurement]  # unshared, uniform, published, the schedule, others, as many steps
    others: tuple[str, ...]
    fewer: dict[str, str]  # what without sharing takes as long as a measured schedule
    headline: str  # the name of the measurement that a report begins with
    target: Target | None
    met: bool  # the target; without one, whether it ends as near to the reference solution as the baseline
    latents: dict[str, Tensor]  # the first of them, a few images each
    ends: Tensor | None  # of the reference solutions of the first images
    limits: dict[str, Values]  # dB to the reference solution, of the first images, as many as it was measured for
    curves: dict[str, list[Measurement]]  # by way of being faster, their times added up from those of the parts
    curve_limits: dict[str, Values]  # dB to the reference solution of the first `curve_images`, by name
    disturbance: float  # the largest share by which a measured time differs from that of its parts
    paces: dict[str, float]  # seconds of each measurement to compare them by, which may be those of their parts
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
        """The mean of `limits`, None where images are identical; empty where there is no reference solution."""
        return {name: interval([np.inf if v is None else v for v in found]) for name, found in self.limits.items()}

    @property
    def near(self) -> Nearness:
        return nearness(self.measurements, self.limits)


def chosen_name(schedule: Schedule) -> str:
    if schedule.is_fitted:
        return FITTED
    return SOLVED if schedule.objective in OBJECTIVES else GIVEN


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
    target: Target | None = None,
    reference_images: int = 16,
    settled: bool = False,
) -> Study:
    """Measures the schedule and others beside unshared, uniform and published ones, then as many steps without sharing
    as take as long, then other budgets on the first `curve_images`.

    The reference solution is computed for the first `reference_images`. `on_stage` is called with what comes next and
    how many steps it takes. With `settled` the schedule was chosen for the target, and the report is about it. Raises
    MismatchError where images were calibrated or fitted on.
    """
    if min(num_images, curve_images, reference_images) < 2 or batch_size < 1:
        raise ConfigError(
            f"{num_images} images, {curve_images} on the curve, {reference_images} beside the reference solution, "
            f"batches of {batch_size}: an interval needs at least 2 images, and a batch 1."
        )
    if calibration.latent_shape != latent_shape:
        raise MismatchError(
            f"The calibration is of latents {list(calibration.latent_shape)}, the networks are for "
            f"{list(latent_shape)}; calibrate with these."
        )
    others = dict(others or {})
    choosing = ImageRange(seed=seed, first=num_images, stop=num_images + CHOOSING)
    check_held_out(dataclasses.replace(choosing, first=0), calibration, (schedule, *others.values()))
    spec = baseline_of(schedule, calibration)
    statistics = calibration if calibration.spec == spec else resample(calibration, spec)
    chosen, budget = chosen_name(schedule), min(schedule.budget, spec.num_evaluations)
    schedules = {
        UNSHARED: dataclasses.replace(
            Schedule.full(spec), checkpoint_sha256=schedule.checkpoint_sha256, guide_sha256=schedule.guide_sha256
        ),
        UNIFORM: Schedule.uniform(spec, budget),
        PUBLISHED: solve_curve(statistics, budget, PUBLISHED_METHOD)[-1][0],
        chosen: schedule,
        **others,
    }
    bench = Bench(backend=backend, latent_shape=latent_shape, seed=seed, batch_size=batch_size, on_stage=on_stage)
    table = Table.measured(bench, schedules, num_images)
    curve_images = min(num_images, curve_images)
    steps = None if spec.solver == "sde" else reference_steps(spec.num_steps)
    if steps is not None:
        table.add_reference(bench, spec, steps, min(num_images, max(reference_images, curve_images)))

    leading, _ = choose(table.rows, UNSHARED, chosen, target, table.near, settled=settled)
    fewer = table.add_fewer(bench, [chosen, leading], choosing, steps)
    headline, met = choose(table.rows, UNSHARED, chosen, target, table.near, settled=settled)

    ways = curves(statistics, schedule, [table.schedules[name].spec for name in fewer.values()], table.schedules)
    asked = {name: one for way in ways.values() for name, one in way.items()}
    costs = table.costs(bench, chosen)
    points, curve_limits = table.curve(bench, costs, asked, curve_images)
    return Study(
        statistics=statistics,
        schedule=schedule,
        schedules=table.schedules,
        measurements=table.rows,
        others=tuple(others),
        fewer=fewer,
        headline=headline,
        target=target,
        met=met,
        latents={name: images[:SHOWN] for name, images in table.latents.items()},
        ends=None if table.ends is None else table.ends[:SHOWN],
        limits=table.limits,
        curves={way: [points[name] for name in (UNSHARED, *found)] for way, found in ways.items()},
        curve_limits=curve_limits,
        disturbance=table.disturbance(costs),
        paces=table.paces(costs),
        num_images=num_images,
        curve_images=curve_images,
        seed=seed,
        conditions=conditions(backend, model_name, spec, calibration, schedule, batch_size),
    )
