"""Fits in closed form, and searches by them, against what they minimise, brute force, and the runs themselves."""

from __future__ import annotations

import copy
import dataclasses
import json

import numpy as np
import pytest
import torch

from ddt_accel import SamplingSpec, Schedule, calibrate, draw_labels, draw_noise, load_model, sample, solve
from ddt_accel.backends.pytorch import StateSession, TorchBackend
from ddt_accel.errors import ConfigError, MismatchError, NumericsError
from ddt_accel.evaluation.converged import Keeper, Reference, converged_course, converged_ends
from ddt_accel.evaluation.costs import counted_costs
from ddt_accel.evaluation.course import Course
from ddt_accel.evaluation.fidelity import latent_decibels
from ddt_accel.fitting.closed_form import closed_form
from ddt_accel.fitting.fit import LOOK_EVERY
from ddt_accel.fitting.fit_spec import FitSpec
from ddt_accel.fitting.joint import JointFit
from ddt_accel.fitting.published_times import published_times
from ddt_accel.fitting.scalars import widened
from ddt_accel.fitting.search import EXPANDED, Pattern, Search, starts
from ddt_accel.networks.split import latent_shape_of
from ddt_accel.rivals.neural_solver import FLOWDCN, SIT, solver
from ddt_accel.sampling.integrators import updates
from ddt_accel.sampling.noise import ImageRange
from ddt_accel.sampling.reference import converged
from ddt_accel.solver.split import encoder_runs

SHAPE = (3, 8, 8)
FINE = SamplingSpec(num_steps=12, solver="ab2", guidance=1.5)
IMAGES = ImageRange(seed=9, first=2, stop=8)
QUICK = FitSpec(iterations=LOOK_EVERY, images=6, held_out=4, batch_size=3, micro_batch=3, reference_steps=48)


@pytest.fixture(scope="module")
def model(tiny_model_path):
    return load_model(tiny_model_path)


@pytest.fixture(scope="module")
def backend(model):
    return TorchBackend(model)


@pytest.fixture(scope="module")
def calibration(model):
    return calibrate(model, FINE, num_samples=4)


@pytest.fixture(scope="module")
def path(backend) -> Course:
    return converged_course(backend, FINE, 48, IMAGES, SHAPE, 4)


def patterns(calibration) -> list[Pattern]:
    return starts(calibration, (5, 8), lambda schedule: schedule.budget <= 5)


def ends(model, schedule: Schedule, images: ImageRange) -> torch.Tensor:
    chosen = range(images.first, images.stop)
    return sample(
        model, schedule, draw_noise(SHAPE, seed=images.seed, indices=chosen),
        draw_labels(model.config.num_classes, seed=images.seed, indices=chosen),
    )  # fmt: skip


def test_the_path_ends_where_the_converged_trajectory_does(backend, path, tmp_path) -> None:
    torch.testing.assert_close(path.ends, converged_ends(backend, FINE, 48, IMAGES, SHAPE, 6), atol=1e-5, rtol=0)
    noise = draw_noise(SHAPE, seed=IMAGES.seed, indices=range(IMAGES.first, IMAGES.stop))
    torch.testing.assert_close(path.at(0.0), noise)
    torch.testing.assert_close(path.at(1.0), path.ends)
    torch.testing.assert_close(path.at(float(path.times[17])), path.latents[17])
    fine = converged_course(backend, FINE, 96, IMAGES, SHAPE, 4, cache=tmp_path)
    torch.testing.assert_close(path.at(float(fine.times[37])), fine.latents[37], atol=2e-3, rtol=0)
    again = converged_course(backend, dataclasses.replace(FINE, timeshift=2.0), 96, IMAGES, SHAPE, 4, cache=tmp_path)
    assert torch.equal(again.latents, fine.latents)
    assert len(list(tmp_path.iterdir())) == 1


def test_a_final_step_belongs_to_the_limit(model, backend) -> None:
    """It is the network's own estimate of the data from where the even steps lead, whatever the grid."""
    spec = dataclasses.replace(FINE, last_step=0.3)
    path = converged_course(backend, spec, 48, IMAGES, SHAPE, 4)
    torch.testing.assert_close(path.ends, converged_ends(backend, spec, 48, IMAGES, SHAPE, 6), atol=1e-5, rtol=0)
    unbent = converged_course(backend, FINE, 90, IMAGES, SHAPE, 4)
    torch.testing.assert_close(path.latents[-2], unbent.at(0.7), atol=2e-3, rtol=0)
    labels = draw_labels(model.config.num_classes, seed=IMAGES.seed, indices=range(IMAGES.first, IMAGES.stop))
    time, null = torch.full((IMAGES.count,), 0.7), torch.full_like(labels, model.config.num_classes)
    with torch.no_grad():
        conditional, unconditional = (model(path.latents[-2], time, y) for y in (labels, null))
    estimate = path.latents[-2] + 0.3 * torch.lerp(unconditional, conditional, spec.guidance)
    torch.testing.assert_close(path.ends, estimate, atol=1e-5, rtol=0)
    # The step is a straight line, which the cubics up to there know nothing of.
    torch.testing.assert_close(path.at(0.85), (path.latents[-2] + path.latents[-1]) / 2, atol=1e-5, rtol=0)
    before = (float(path.times[-3]) + 0.7) / 2
    torch.testing.assert_close(path.at(before), unbent.at(before), atol=2e-3, rtol=0)
    assert (path.ends - unbent.ends).abs().max() > 1e-2
    shifted = spec.on_grid(9, timeshift=1.7, solver="euler")
    assert converged(shifted, 48).spec == converged(spec, 48).spec


@pytest.mark.parametrize(("solver", "after"), [("euler", [1, 2, 3, 4]), ("ab3", [1, 2, 3, 4]), ("heun", [2, 4, 6, 7])])
def test_a_sampler_is_followed_step_by_step(model, backend, tmp_path, solver: str, after: list[int]) -> None:
    """To where it stands when all evaluations after a step are left out."""
    spec = dataclasses.replace(FINE, num_steps=4, solver=solver)
    unshared, keeper = Reference(kind="unshared", spec=spec, images=IMAGES), Keeper(backend, SHAPE, tmp_path)
    course = unshared.course(keeper.made(unshared, 4))
    assert course.times.tolist() == spec.grid.tolist()
    for latents, count in zip(course.latents[1:], after, strict=True):
        rows = tuple(row.velocities if k < count else () for k, row in enumerate(updates(spec)))
        stopped = dataclasses.replace(Schedule.full(spec), integrator=rows)
        torch.testing.assert_close(latents, ends(model, stopped, IMAGES), atol=1e-5, rtol=0)
    assert torch.equal(unshared.course(keeper.made(unshared, 4)).latents, course.latents)


def test_it_finds_an_integrator_that_arrives(model, backend) -> None:
    """The trajectory of AB3 on the schedule's own grid can be had exactly; Euler's weights are where it starts."""
    spec = dataclasses.replace(FINE, num_steps=6, solver="ab3")
    unshared = Reference(kind="unshared", spec=spec, images=IMAGES)
    course = unshared.course(unshared.run(backend, SHAPE, 4))
    euler = Schedule.full(dataclasses.replace(spec, solver="euler"))
    found = closed_form(backend, euler, course, 4)
    error = latent_decibels(ends(model, found, IMAGES), course.ends)
    assert error.min() > 60 > latent_decibels(ends(model, euler, IMAGES), course.ends).max() + 10


@pytest.mark.parametrize("kind", ["unshared", "shared", "own branches", "heun"])
def test_no_other_weights_leave_a_smaller_error(model, backend, calibration, path, kind: str) -> None:
    """The last row is a stationary point of the mean log error, and a minimum; nothing but the integrator changes."""
    found = {
        "unshared": lambda: next(p for p in patterns(calibration) if len(p.refresh_steps) == 5).schedule(calibration),
        "shared": lambda: next(p for p in patterns(calibration) if p.centred).schedule(calibration),
        "own branches": lambda: next(p for p in patterns(calibration) if p.unconditional_steps).schedule(calibration),
        "heun": lambda: Schedule.uniform(dataclasses.replace(FINE, num_steps=4, solver="heun"), 4),
    }
    warm = found[kind]()
    fitted = closed_form(backend, warm, path, 4)
    assert dataclasses.replace(
        fitted, integrator=None, objective=warm.objective, fitted_on=(), predicted_cost=warm.predicted_cost,
        predicted_error=warm.predicted_error,
    ) == warm  # fmt: skip
    assert fitted.fitted_on == ((9, 2, 8),)

    def error(row: list[tuple[int, float]]) -> float:
        moved = dataclasses.replace(fitted, integrator=(*fitted.integrator[:-1], tuple(row)))
        return float(-latent_decibels(ends(model, moved, IMAGES), path.ends).mean())

    last = fitted.integrator[-1]
    least = error(list(last))
    assert least < -latent_decibels(ends(model, warm, IMAGES), path.ends).mean() - 1
    for j in range(len(last)):
        for change in (0.02, -0.02):
            row = list(last)
            row[j] = (j, row[j][1] + change)
            assert error(row) > least - 0.01


def test_batches_do_not_matter(backend, calibration, path) -> None:
    schedule = patterns(calibration)[1].schedule(calibration)
    rows = [closed_form(backend, schedule, path, size).integrator for size in (6, 4)]
    for one, other in zip(*rows, strict=True):
        np.testing.assert_allclose([w for _, w in one], [w for _, w in other], atol=2e-3)


def test_states_are_kept_where_modulations_take_too_much(backend, path, calibration, monkeypatch) -> None:
    """The same numbers but for rounding, whether forecasts are made of modulations or of states."""
    schedule = solve(calibration, 4)
    expected = closed_form(backend, schedule, path, 4).integrator
    monkeypatch.setattr("ddt_accel.fitting.closed_form.MOST_KEPT", 0)
    encoded, encode = [], StateSession.encode

    def counted(session: StateSession, slot: int, rows: slice, width: float) -> None:
        encoded.append(slot)
        encode(session, slot, rows, width)

    monkeypatch.setattr(StateSession, "encode", counted)
    found = closed_form(backend, schedule, path, 4).integrator
    assert encoded
    for row, other in zip(found, expected, strict=True):
        np.testing.assert_allclose([weight for _, weight in row], [weight for _, weight in other], rtol=1e-3, atol=1e-4)


def test_a_stochastic_sampler_has_no_closed_form(backend, path) -> None:
    with pytest.raises(ConfigError, match="stochastic"):
        closed_form(backend, Schedule.full(dataclasses.replace(FINE, solver="sde")), path, 4)


def test_neighbours_are_patterns_that_can_be_run(calibration) -> None:
    for pattern in patterns(calibration):
        near = pattern.neighbours()
        assert len(set(near)) == len(near)
        assert pattern not in near
        runs = encoder_runs(pattern.schedule(calibration))
        for other in near:
            assert len(other.refresh_steps) == len(pattern.refresh_steps)
            if other.unconditional_steps is not None:
                assert encoder_runs(other.schedule(calibration)) == runs
            other.schedule(calibration)
        # Every common pattern that is one move of one refresh away is among them.
        count, steps = pattern.spec.num_steps, set(pattern.refresh_steps)
        if pattern.unconditional_steps is None:
            brute = {
                tuple(sorted(steps - {a} | {b}))
                for a in steps - {0}
                for b in range(1, count)
                if abs(a - b) == 1 and b not in steps
            }
            assert brute == {other.refresh_steps for other in near} - {pattern.refresh_steps}


def test_a_search_keeps_the_best_that_it_can_afford(model, backend, calibration, path) -> None:
    search = Search(backend, calibration, path, batch_size=4, on_stage=lambda label, total: lambda: None)
    found, score = patterns(calibration), search.jury.score
    best = search.best(found, lambda schedule: schedule.budget <= 4)
    cheap = [pattern for pattern in found if len(pattern.refresh_steps) <= 4]
    assert len(found) > len(cheap) > 4
    assert len(best.refresh_steps) <= 4
    # With so few images the first look is on all of them, so that nothing better is passed over.
    assert score(best) >= max(map(score, cheap))
    # The score is what it says: of images that the closed form was not fitted to.
    jury = search.jury
    fitted = closed_form(backend, best.schedule(calibration), jury.fitted, 4)
    assert jury.fitted.images.stop == jury.held_out.first
    decibels = latent_decibels(ends(model, fitted, jury.held_out), jury.ends)
    assert score(best) == pytest.approx(decibels.mean(), abs=0.01)
    assert search.best(found, lambda schedule: False) is None


def test_published_times_are_those_of_the_most_steps_that_are_affordable(calibration) -> None:
    def made(most: int, steps: int | None = None) -> list[Schedule]:
        found = published_times(calibration, lambda schedule: schedule.budget <= most, steps)
        return [one.schedule(calibration) for one in found]

    for count, schedules in ((7, made(7)), (6, made(12, 6)), (10, made(12))):  # both have 5 to 10 steps
        expected = [solver(FINE, table, count) for table in (FLOWDCN, SIT)]
        assert [one.times for one in schedules] == [one.times for one in expected]
        assert [one.integrator for one in schedules] == [one.integrator for one in expected]
        assert {one.checkpoint_sha256 for one in schedules} == {calibration.checkpoint_sha256}
    assert made(4) == made(6, 7) == made(20, 11) == []
    # Where their times fit no grid of the sampler, they are left out.
    odd = dataclasses.replace(FINE, timeshift=1000.0, last_step=0.999)
    assert published_times(dataclasses.replace(calibration, spec=odd), lambda schedule: True) == []


def test_a_search_goes_on_beside_the_times_that_others_searched(backend, calibration, path) -> None:
    """It is behind neither them nor what it finds without them."""
    search = Search(backend, calibration, path, batch_size=4, on_stage=lambda label, total: lambda: None)
    start, score = patterns(calibration)[1], search.jury.score
    published = published_times(calibration, lambda schedule: True)
    best = search.best([start, *published], lambda _: True)
    alone = search.best([start], lambda _: True)
    assert score(best) >= max(score(alone), *map(score, published))
    assert score(alone) > score(start)
    assert search.best(published, lambda _: True) == max(published, key=score)


@pytest.mark.parametrize("final_step", [None, 0.05])
def test_what_is_found_may_begin_from_published_times(model, backend, calibration, monkeypatch, final_step) -> None:
    """As whatever else is found: fitted to where the sampler leads, within the cost, and unshared."""
    monkeypatch.setattr("ddt_accel.fitting.finder.starts", lambda *_, **__: [])
    spec = dataclasses.replace(FINE, last_step=final_step)
    known = calibration if final_step is None else calibrate(model, spec, 2, sensitivity_samples=0)
    costs = counted_costs(model.config, latent_shape_of(model))
    joint = JointFit(model, known, costs, QUICK, steps=6)
    assert joint.find(shared=True) is None
    found = joint.find()
    assert found.times in [solver(spec, table, 6).times for table in (FLOWDCN, SIT)]
    assert found.fitted_on
    closed = joint.closed(1.0, shared=False)
    fitted = joint.fitted(1.0, shared=False)
    images = QUICK.ranges[2]
    limit = converged_ends(backend, spec, 48, images, SHAPE, 4)
    decibels = [latent_decibels(ends(model, one, images), limit).mean() for one in (found, closed, fitted)]
    assert decibels[0] < min(decibels[1:])
    assert costs.of(fitted) <= costs.of(Schedule.full(spec))


def test_neighbours_are_tried_until_none_is_better(backend, calibration, path) -> None:
    search = Search(backend, calibration, path, batch_size=4, on_stage=lambda label, total: lambda: None)
    start, score = patterns(calibration)[1], search.jury.score
    best = search.best([start], lambda schedule: True)
    assert best != start
    assert score(best) >= max(map(score, start.neighbours()))
    # It stands still where no neighbour is better, unless it has tried enough.
    walk = start
    for _ in range(EXPANDED):
        walk = max([walk, *walk.neighbours()], key=score)
    assert score(best) == pytest.approx(score(walk))


def test_images_that_were_calibrated_on_are_refused(backend, calibration) -> None:
    seen = converged_course(backend, FINE, 24, ImageRange(seed=0, first=0, stop=4), SHAPE, 4)
    with pytest.raises(MismatchError, match="calibrated on"):
        Search(backend, calibration, seen, batch_size=4, on_stage=lambda label, total: lambda: None)


def test_joint_fits_stay_within_cost_and_budget(model, calibration, tmp_path, searched_briefly) -> None:
    costs = counted_costs(model.config, latent_shape_of(model))
    joint = JointFit(model, calibration, costs, QUICK, folder=tmp_path)
    unit = costs.of(Schedule.full(FINE))
    for cost in (0.4, 0.6):
        alone, together = joint.find(cost=cost, shared=False), joint.find(cost=cost, shared=True)
        assert costs.of(alone) <= cost * unit >= costs.of(together)
        assert alone.budget == alone.spec.num_steps
        assert together.budget < together.spec.num_steps
    assert joint.find(budget=3).budget <= 3
    assert joint.find(cost=1e-3) is None
    assert joint.fitted(1e-3, shared=True) is None
    fitted = joint.fitted(0.5, shared=True)
    assert fitted.is_fitted
    assert costs.of(fitted) <= 0.5 * unit
    for wrong in ({"cost": 0.0}, {"cost": float("inf")}, {"budget": 0}, {"budget": 99}):
        with pytest.raises(ConfigError):
            joint.find(**wrong)
    with pytest.raises(MismatchError, match="13 steps"):
        JointFit(model, calibration, costs, QUICK, steps=13)
    with pytest.raises(MismatchError, match="calibrated on"):
        JointFit(model, calibration, costs, dataclasses.replace(QUICK, seed=0))
    # Where the steps are said, any number of encoder runs may be had, and what a fit will read is paid for.
    for steps, budget in ((10, 2), (2, 1), (3, 2)):
        found = JointFit(model, calibration, costs, QUICK, steps=steps, folder=tmp_path).find(budget=budget)
        assert (found.spec.num_steps, found.budget) == (steps, budget)
        assert found.fitted_on == ((QUICK.seed, 0, 6),)
    wide = JointFit(model, calibration, costs, dataclasses.replace(QUICK, sources=4), folder=tmp_path)
    found = wide.find(cost=0.5, shared=True)
    assert costs.of(widened(found, calibration.modulation_bias, 4)) <= 0.5 * unit


def test_fitted_plans_from_the_command_line(cli, workspace, searched_briefly) -> None:
    ran = cli(
        "plan", "-w", workspace, "--fit", "--cost", 0.7, "-n", 2, "--iterations", 1, "--out", workspace / "planned.json"
    )  # fmt: skip
    assert ran.code == 0, ran.err
    assert "fitted and" in ran.out
    assert "At 0.7 sharing" in ran.out
    ran = cli("plan", "-w", workspace, "--fit", "--cost", 0.7, "-n", 2, "--iterations", 1, "--json")
    (row,) = json.loads(ran.out)["rows"]
    assert row["fitted_shared"]["cost"] <= 0.7 >= row["fitted_unshared"]["cost"]
    for way in ("shared", "unshared"):
        kept = Schedule.load(workspace / "plans" / f"0.7-{way}.json")
        assert list(kept.refresh_steps) == row[f"fitted_{way}"]["refresh_steps"]
    assert row["fitted_unshared"]["fidelity_db"] > row["fewer"]["fidelity_db"]
    ran = cli("plan", "-w", workspace, "--fit", "--seed", 3)
    assert ran.code == 2
    assert "no fit has seen" in ran.err
    for wrong, said in (
        (["--cost", 0], "above 0"),
        (["--seed", 0], "calibrated on"),
        (["--fit-seed", 0], "calibrated"),
    ):
        ran = cli("plan", "-w", workspace, "--fit", *wrong)
        assert ran.code == 2
        assert said in ran.err
        assert "searching" not in ran.err
    ran = cli("plan", "-w", workspace, "--iterations", 5)
    assert ran.code == 2
    assert "add --fit" in ran.err


def test_few_steps_and_far_time_shifts_are_no_reason_to_fail(model) -> None:
    for spec in (
        dataclasses.replace(FINE, num_steps=3),
        dataclasses.replace(FINE, num_steps=5, timeshift=600.0),
        dataclasses.replace(FINE, num_steps=5, guidance=1.0),
    ):
        calibration = calibrate(model, spec, num_samples=2)
        joint = JointFit(model, calibration, counted_costs(model.config, SHAPE), QUICK)
        assert joint.find(cost=1.0).spec.num_steps <= spec.num_steps
    sde = calibrate(model, dataclasses.replace(FINE, num_steps=3, solver="sde"), num_samples=2)
    with pytest.raises(ConfigError, match="stochastic"):
        JointFit(model, sde, counted_costs(model.config, SHAPE), QUICK)


def test_converged_trajectories_that_are_not_finite_are_not_kept(model, tmp_path) -> None:
    broken = copy.deepcopy(model)
    with torch.no_grad():
        broken.final_layer.linear.weight.fill_(float("inf"))
    with pytest.raises(NumericsError, match="NaN"):
        converged_course(TorchBackend(broken), FINE, 24, IMAGES, SHAPE, 4, cache=tmp_path)
    assert list(tmp_path.iterdir()) == []
