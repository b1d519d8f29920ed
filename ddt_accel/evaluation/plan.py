"""Which steps, integrator and refreshes to take for a given cost, measured against the converged trajectory.

"Fewer steps" is what anyone can do without sharing, so that a plan is judged by where it ends, not by how well it
copies a particular sampler: the reference is a trajectory of many steps of second order from the same noise. One
calibration on a fine grid serves all grids (`calibration.resample`).

The expected squared error of a shared plan is taken as that of its unshared twin, which is measured, plus that of the
forecasts, which the calibration predicts. The most promising plans of every cost are then run.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ddt_accel.backends.sample import sample
from ddt_accel.calibration.resample import POINTS, resample
from ddt_accel.calibration.statistics import Calibration, ImageRange
from ddt_accel.errors import ConfigError, MismatchError
from ddt_accel.evaluation.costs import Costs
from ddt_accel.evaluation.fidelity import Interval, interval
from ddt_accel.sampling.backend import Backend
from ddt_accel.sampling.noise import draw_labels, draw_noise
from ddt_accel.schedule import Schedule
from ddt_accel.solver.solve import PUBLISHED, Method, solve_curve
from ddt_accel.spec import SamplingSpec

INTEGRATORS = ("euler", "heun", "ab2", "ab3")
STEPS = (4, 5, 6, 8, 10, 12, 14, 16, 20, 24, 30, 36, 42, 50, 60, 80, 100, 125, 160, 200, 250)
# The reference takes this many times the calibrated steps.
CONVERGED = 4
# On how many grids shared plans are run for every cost.
TRIED = 3


@dataclass(frozen=True, kw_only=True, eq=False)
class Plan:
    """A schedule, what it costs, and how far from the converged trajectory it ends.

    `cost` is in terms of the calibrated trajectory unshared; `fidelity` is −20 log₁₀ of the root-mean-square error of
    the latents over their range of 2, in dB, per image: for latents in [−1, 1] the PSNR before clipping.
    """

    name: str
    schedule: Schedule
    cost: float
    fidelity: NDArray[np.float64]

    @property
    def mean(self) -> float:
        return float(self.fidelity.mean())


@dataclass(frozen=True, kw_only=True)
class Row:
    """The best plans of at most a cost, without and with sharing, and what the published method reaches there."""

    cost: float
    unshared: Plan | None
    published: Plan | None
    shared: Plan | None

    @property
    def gain(self) -> Interval | None:
        """How much closer the shared plan ends, in dB, paired over images."""
        if self.unshared is None or self.shared is None:
            return None
        return interval(self.shared.fidelity - self.unshared.fidelity)

    @property
    def best(self) -> Plan | None:
        plans = [plan for plan in (self.unshared, self.published, self.shared) if plan is not None]
        return max(plans, key=lambda plan: plan.mean, default=None)


def make_plans(
    backend: Backend,
    calibration: Calibration,
    costs: Costs,
    targets: list[float],
    *,
    latent_shape: tuple[int, int, int],
    num_images: int,
    seed: int,
    batch_size: int,
    on_run: Callable[[str], None],
) -> list[Row]:
    """The best plans for every target cost, in terms of the calibrated trajectory unshared.

    Raises MismatchError for images that were calibrated on, ConfigError for a stochastic sampler, whose trajectories do
    not converge.
    """
    spec = calibration.spec
    if spec.solver == "sde":
        raise ConfigError(
            "A stochastic trajectory has no converged limit to plan for; calibrate a deterministic solver."
        )
    if num_images < 2 or not targets or min(targets) <= 0:
        raise ConfigError(f"{num_images} images for the costs {targets}: give at least 2 images, and costs above 0.")
    if calibration.contains(ImageRange(seed=seed, first=0, stop=num_images)):
        raise MismatchError(f"Seed {seed} was calibrated on; plan with another --seed.")
    unit = costs.of(Schedule.full(spec))

    def run(schedule: Schedule) -> Tensor:
        schedule = dataclasses.replace(schedule, checkpoint_sha256=calibration.checkpoint_sha256)
        parts = []
        for start in range(0, num_images, batch_size):
            indices = range(start, min(num_images, start + batch_size))
            noise = draw_noise(latent_shape, seed=seed, indices=indices)
            labels = draw_labels(backend.config.num_classes, seed=seed, indices=indices)
            parts.append(sample(backend, schedule, noise, labels).double().cpu().flatten(1))
        return torch.cat(parts)

    on_run("the converged trajectory")
    converged = run(Schedule.full(dataclasses.replace(spec, num_steps=CONVERGED * spec.num_steps, solver="ab2")))

    def measured(name: str, schedule: Schedule) -> Plan:
        on_run(name)
        error = (run(schedule) - converged).square().mean(1).numpy()
        return Plan(name=name, schedule=schedule, cost=costs.of(schedule) / unit, fidelity=-10 * np.log10(error / 4))

    unshared: dict[SamplingSpec, Plan] = {}
    for solver in INTEGRATORS:
        for steps in STEPS:
            grid = dataclasses.replace(spec, solver=solver, num_steps=steps, last_step=None)
            full = Schedule.full(grid)
            if steps <= spec.num_steps and costs.of(full) / unit <= 1.001:
                unshared[grid] = measured(f"{solver} {steps}", full)
    published = _published(calibration)
    families = [_family(calibration, twin) for twin in unshared.values() if twin.schedule.spec.num_steps >= POINTS]
    rows = []
    for target in sorted(targets):

        def affordable(schedules: list[Schedule], target: float = target) -> list[Schedule]:
            return [schedule for schedule in schedules if costs.of(schedule) / unit <= target]

        kept = [plan for plan in unshared.values() if plan.cost <= target]
        held = next(iter(reversed(affordable(published))), None)
        shared = [
            measured(_name(schedule), schedule)
            for schedule in _promising([[affordable(variant) for variant in family] for family in families], unshared)
        ]
        rows.append(
            Row(
                cost=target,
                unshared=max(kept, key=lambda plan: plan.mean, default=None),
                published=measured(_name(held), held) if held else None,
                shared=max(shared, key=lambda plan: plan.mean, default=None),
            )
        )
    return rows


def _name(schedule: Schedule) -> str:
    return f"{schedule.spec.solver} {schedule.spec.num_steps}, {schedule.budget} runs"


def _published(calibration: Calibration) -> list[Schedule]:
    """The published method on the calibrated grid, budget by budget."""
    evaluations = calibration.spec.num_evaluations
    return [schedule for schedule, _ in solve_curve(calibration, evaluations, PUBLISHED)]


def _family(calibration: Calibration, twin: Plan) -> list[list[Schedule]]:
    """All budgets that share something, on the grid of an unshared plan, with and without centred forecasts."""
    statistics = resample(calibration, twin.schedule.spec)
    budgets = twin.schedule.spec.num_evaluations - 1
    return [
        [schedule for schedule, _ in solve_curve(statistics, budgets, Method(centred=centred))]
        for centred in (True, False)
    ]


def _promising(families: list[list[list[Schedule]]], unshared: dict[SamplingSpec, Plan]) -> list[Schedule]:
    """The largest affordable budgets of the grids that should end closest to the converged trajectory."""
    found: list[tuple[float, list[Schedule]]] = []
    for variants in families:
        best = [variant[-1] for variant in variants if variant]
        if best:
            own = float(np.mean(4 * 10 ** (-unshared[best[0].spec].fidelity / 10)))
            found.append((own + min(schedule.predicted_cost or 0.0 for schedule in best) ** 2, best))
    found.sort(key=lambda entry: entry[0])
    return [schedule for _, best in found[:TRIED] for schedule in best]
