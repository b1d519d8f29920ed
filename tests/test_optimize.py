"""The best schedule for a target: chosen among all that can be had, and what becomes of it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from ddt_accel import Calibration, SamplingSpec, Schedule, calibrate, draw_labels, draw_noise, load_model, sample
from ddt_accel.backends.pytorch import TorchBackend
from ddt_accel.evaluation.budgets import Target
from ddt_accel.evaluation.candidates import INTEGRATORS
from ddt_accel.evaluation.costs import added_up, counted_costs, forecast_reads, implied_costs
from ddt_accel.evaluation.fidelity import latent_decibels
from ddt_accel.evaluation.judge import Judge
from ddt_accel.fitting.fit_spec import FitSpec
from ddt_accel.fitting.joint import JointFit
from ddt_accel.fitting.optimize import RUNG, Optimizer, comparable
from ddt_accel.fitting.search import QUICK
from ddt_accel.sampling.noise import ImageRange
from ddt_accel.sampling.program import compile_program
from ddt_accel.sampling.reference import converged
from ddt_accel.stages import silent

SPEC = SamplingSpec(num_steps=12, guidance=1.5)
SHAPE = (3, 8, 8)
FIT = FitSpec(seed=3, images=4, held_out=4, batch_size=4, micro_batch=4, iterations=1, reference_steps=48)


@pytest.fixture(scope="module")
def model(tiny_model_path):
    return load_model(tiny_model_path)


@pytest.fixture(scope="module")
def calibration(model) -> Calibration:
    return calibrate(model, SPEC, num_samples=3, sensitivity_samples=2)


@pytest.fixture(scope="module")
def judge(model, calibration) -> Judge:
    images = ImageRange(seed=2, first=0, stop=3)
    return Judge(TorchBackend(model), calibration, counted_costs(model.config, SHAPE), images, 4)


@pytest.fixture(scope="module")
def optimizer(model, calibration, judge, tmp_path_factory) -> Callable[..., Optimizer]:
    """In a folder of its own, or in one that all tests share, with all that was searched there."""
    common = tmp_path_factory.mktemp("optimizer")
    joint = JointFit(model, calibration, judge.costs, FIT, search=QUICK, folder=common)

    def made(folder: Path = common, known: tuple[Schedule, ...] = (), *, thorough: bool = False) -> Optimizer:
        own = joint if folder == common else JointFit(model, calibration, judge.costs, FIT, search=QUICK, folder=folder)
        return Optimizer(judge, own, thorough=thorough, known=known, folder=folder / "plans", on_stage=silent)

    return made


def decibels(model, schedule: Schedule) -> float:
    """On the judge's images, by definition."""
    noise, labels = draw_noise(SHAPE, seed=2, indices=range(3)), draw_labels(4, seed=2, indices=range(3))
    ends = [sample(model, one, noise, labels) for one in (schedule, converged(SPEC, 48))]
    return float(latent_decibels(*ends).mean())


def test_a_time_gets_what_ends_closest_of_all_that_it_affords(optimizer, model, judge, calibration) -> None:
    """Named integrators in as many steps as it buys, both fits, and schedules that were there before."""
    whole = Schedule.full(SPEC)
    known = [
        dataclasses.replace(Schedule.full(dataclasses.replace(SPEC, num_steps=steps, solver="ab2", timeshift=shift)))
        for steps, shift in ((5, 1.0), (5, 1.4), (11, 1.0))
    ]
    chosen = optimizer(known=tuple(known))
    choice = chosen.choose(Target(speedup=2))

    def cost(schedule: Schedule) -> float:
        return judge.costs.of(schedule) / judge.costs.of(whole)

    named = [
        max((one for one in (Schedule.full(dataclasses.replace(SPEC, num_steps=n, solver=solver)) for n in range(4, 13))
             if cost(one) <= choice.limit), key=lambda one: one.spec.num_steps, default=None)
        for solver in INTEGRATORS
    ]  # fmt: skip
    fits = [chosen.joint.closed(choice.limit, shared=shared) for shared in (False, True)]
    every = [one for one in (*named, *fits, *known) if one is not None and cost(one) <= choice.limit]
    assert choice.met
    assert choice.best.cost <= choice.limit <= 0.5
    assert choice.best.mean == pytest.approx(max(decibels(model, one) for one in every), abs=0.05)
    shared = [one for one in every if one.budget < one.spec.num_evaluations]
    assert choice.shared.mean == pytest.approx(max(decibels(model, one) for one in shared), abs=0.05)
    ((name, other),) = choice.others.items()
    assert (name == "best without sharing") == (choice.best is choice.shared)
    assert other in (choice.shared, choice.unshared)
    # In milliseconds it is the same target.
    seconds = dataclasses.replace(judge.costs, unit="seconds")
    assert optimizer(known=tuple(known)).choose(
        Target(milliseconds=1000 * seconds.of(whole) / 2)
    ).best.name == choice.best.name  # fmt: skip


def test_what_was_found_is_not_searched_again(optimizer, tmp_path) -> None:
    first = optimizer(tmp_path).choose(Target(speedup=2.5))
    again = optimizer(tmp_path)
    assert again.choose(Target(speedup=2.5)).best.name == first.best.name
    assert "_searched" not in vars(again.joint)
    for kept in (tmp_path / "plans").glob("*.json"):
        kept.write_text("{}")  # damaged: found anew
    assert optimizer(tmp_path).choose(Target(speedup=2.5)).best.mean == pytest.approx(first.best.mean, abs=1e-3)


def test_what_takes_longer_is_chosen_once_more(model, calibration, judge, tmp_path) -> None:
    """By the costs that whole trajectories imply: the closest of all that was measured and is as cheap by them."""
    own = Judge(judge.backend, calibration, judge.costs, judge.images, 4)
    joint = JointFit(model, calibration, own.costs, FIT, search=QUICK, folder=tmp_path)
    chosen = Optimizer(own, joint, thorough=False, known=(), folder=tmp_path / "plans", on_stage=silent)
    first = chosen.choose(Target(speedup=2))
    # So dear that what was chosen is not affordable any more.
    costs = own.costs
    dearer = dataclasses.replace(
        costs,
        forecast=costs.forecast + 0.1 * costs.of(first.best.schedule) / max(1, reads(first.best.schedule)),
        evaluation=0.1 * costs.encoder,
    )
    seconds = 0.97 * dearer.of(first.best.schedule)
    again = chosen.once_more(first, dearer, seconds)
    assert again.met
    assert again.best.cost == pytest.approx(dearer.of(again.best.schedule) / dearer.of(Schedule.full(SPEC)))
    assert dearer.of(again.best.schedule) <= seconds
    affordable = [plan for plan in own.plans if dearer.of(plan.schedule) <= 0.97 * seconds]
    assert again.best.mean == max(plan.mean for plan in affordable)
    assert any(plan.schedule.is_fitted for plan in affordable)


def reads(schedule: Schedule) -> int:
    return forecast_reads(compile_program(schedule))


def test_implied_costs_add_up_to_what_both_trajectories_took(judge) -> None:
    shared = Schedule(spec=SPEC, refresh_steps=(0, 1, 6), forecasts={3: ((1, 1.5), (0, -0.5))})
    full, parts = Schedule.full(SPEC), dataclasses.replace(judge.costs, unit="seconds", evaluation=1e6)
    unshared, own = added_up("unshared", full, parts), added_up("own", shared, parts)
    own = dataclasses.replace(own, seconds=1.2 * own.seconds)
    implied = implied_costs(unshared, SPEC, own, shared, "", judge.costs)
    assert implied.of(full) == pytest.approx(unshared.seconds)
    assert implied.of(shared) == pytest.approx(own.seconds)
    assert implied.encoder == pytest.approx(parts.encoder)
    assert implied.forecast > parts.forecast


def test_a_fidelity_gets_the_cheapest_that_has_it(optimizer) -> None:
    """As a look at every rung of the ladder finds it."""
    chosen = optimizer()
    at_half = chosen.choose(Target(speedup=2)).best
    psnr = at_half.interval.low - 1
    choice = chosen.choose(Target(psnr=psnr))
    assert choice.met
    assert choice.best.interval.low >= psnr
    rung, cheaper = choice.limit / RUNG, []
    while rung >= chosen.least:
        cheaper += [plan for plan in chosen._plans(rung, thorough=False) if plan.interval.low >= psnr]
        rung /= RUNG
    assert not cheaper
    assert choice.best.cost <= at_half.cost * RUNG


def test_the_cheapest_steps_that_are_close_enough_stand_beside_it(optimizer) -> None:
    """Of all integrators, by a look at every number of steps; or they are it, where nothing is cheaper."""
    chosen = optimizer()
    grids = [SPEC.on_grid(steps, timeshift=SPEC.timeshift, solver=s) for s in INTEGRATORS for steps in range(4, 13)]
    every = list(map(chosen.judge.measure, map(Schedule.full, grids)))
    psnr = sorted(plan.interval.low for plan in every)[-6]
    enough = [plan for plan in every if plan.interval.low >= psnr]
    choice = chosen.choose(Target(psnr=psnr))
    assert choice.met
    assert choice.unshared.interval.low >= psnr
    assert choice.best.cost <= choice.unshared.cost <= min(plan.cost for plan in enough)
    assert all(plan.interval.low >= psnr for plan in choice.others.values())


def test_what_cannot_be_reached_gets_the_nearest(optimizer) -> None:
    chosen = optimizer()
    fast = chosen.choose(Target(speedup=1000))
    assert not fast.met
    assert fast.best.cost <= chosen.least * (1 + 1e-6)
    close = chosen.choose(Target(psnr=190))
    assert not close.met
    assert close.best.mean >= max(plan.mean for plan in chosen._plans(1 + 1e-9, thorough=False))


def test_thorough_tries_plans_and_gradients_too(optimizer, tmp_path, judge) -> None:
    choice = optimizer(tmp_path, thorough=True).choose(Target(speedup=2))
    quick = optimizer(tmp_path).choose(Target(speedup=2))
    assert choice.best.cost <= 0.5 * (1 + 1e-6)
    assert choice.unshared.mean >= quick.unshared.mean - 0.5  # a gradient step of one image is no harm
    assert any("state" in path.name for path in tmp_path.iterdir())


def test_only_schedules_for_this_sampler_are_compared(calibration) -> None:
    mine = dataclasses.replace(
        Schedule.full(dataclasses.replace(SPEC, num_steps=5)), checkpoint_sha256=calibration.checkpoint_sha256,
        fitted_on=((3, 0, 9),),
    )  # fmt: skip
    assert comparable(mine, calibration)
    others = [
        dataclasses.replace(mine, checkpoint_sha256="another"),
        dataclasses.replace(mine, spec=dataclasses.replace(mine.spec, guidance=3.0)),
        dataclasses.replace(mine, spec=dataclasses.replace(mine.spec, guidance_interval=(0.0, 1.0))),
        dataclasses.replace(mine, spec=dataclasses.replace(mine.spec, last_step=0.04)),
        dataclasses.replace(mine, spec=dataclasses.replace(mine.spec, solver="sde")),
        Schedule.full(dataclasses.replace(SPEC, num_steps=13)),
    ]
    assert not any(comparable(other, calibration) for other in others)
    assert np.isfinite(calibration.coarser_error(5)).all()
