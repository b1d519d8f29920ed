"""Forecasts that are aligned with the unshared trajectory, against brute force and where nothing is to be gained."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
import torch
from scipy.optimize import minimize

from ddt_accel import SamplingSpec, Schedule, calibrate, load_model, sample, solve
from ddt_accel.artifacts import write_json
from ddt_accel.backends.pytorch import TorchBackend
from ddt_accel.backends.sample import sample_images
from ddt_accel.errors import ConfigError
from ddt_accel.fitting.aligned import align, aligned, unshared_path
from ddt_accel.fitting.scalars import widened
from ddt_accel.sampling.noise import ImageRange, draw_labels, draw_noise
from ddt_accel.solver.solve import Method, schedule_with
from ddt_accel.solver.split import split_with
from ddt_accel.workspace import ModelChoice

SHAPE, SPEC = (3, 8, 8), SamplingSpec(num_steps=8)
IMAGES, OTHERS = ImageRange(seed=7, first=0, stop=6), ImageRange(seed=8, first=0, stop=8)


@pytest.fixture(scope="module")
def backend(tiny_model_path) -> TorchBackend:
    return TorchBackend(load_model(tiny_model_path))


@pytest.fixture(scope="module")
def statistics(backend):
    return calibrate(backend.model, SPEC, 4, sensitivity_samples=2)


def error(backend, schedule, images=IMAGES) -> float:
    ends, unshared = (sample_images(backend, one, images, SHAPE, 6) for one in (schedule, schedule.unshared()))
    return (ends - unshared).double().square().flatten(1).sum(1).log().mean().item()


def test_one_step_is_the_optimum(backend, statistics) -> None:
    """With the last evaluation the only one that forecasts, the weights are those that leave the least error."""
    spec = dataclasses.replace(SPEC, num_steps=4)
    given = schedule_with(calibrate(backend.model, spec, 4, sensitivity_samples=1), (0, 1, 2), Method(sources=2))
    path = unshared_path(backend, given, IMAGES, SHAPE, 6)
    best = align(backend, given, path, IMAGES, 4)

    def loss(weights) -> float:
        row = tuple(zip((1, 2), weights, strict=True))
        return error(backend, dataclasses.replace(given, forecasts={3: row}))

    (_, first), (_, second) = given.forecasts[3]
    found = minimize(loss, [first, second], method="Nelder-Mead", options={"xatol": 1e-4, "fatol": 1e-6})
    assert error(backend, best) < error(backend, given)
    assert error(backend, best) == pytest.approx(found.fun, abs=0.02)


@pytest.mark.parametrize("budget", [2, 4])
def test_it_ends_closer_on_other_images(backend, statistics, budget) -> None:
    given = solve(statistics, budget)
    path = unshared_path(backend, given, IMAGES, SHAPE, 6)
    better = align(backend, given, path, IMAGES, 6)
    assert error(backend, better, OTHERS) < error(backend, given, OTHERS)
    assert better.refresh_steps == given.refresh_steps
    assert better.fitted_on == ((7, 0, 6),)
    assert better.predicted_error is None


def test_what_is_kept_is_judged_on_other_images(backend, statistics) -> None:
    given = solve(statistics, 2)
    found = aligned(backend, given, SHAPE, IMAGES, OTHERS, 4)
    assert found.schedule.forecasts != given.forecasts
    assert found.schedule.fitted_on == ((7, 0, 6), (8, 0, 8))
    gain = 10 / np.log(10) * (error(backend, given, OTHERS) - error(backend, found.schedule, OTHERS))
    assert found.gain.mean == pytest.approx(gain, abs=0.02)
    ends, unshared = (sample_images(backend, s, OTHERS, SHAPE, 8) for s in (found.schedule, given.unshared()))
    measured = (ends - unshared).square().mean().sqrt().item()
    assert found.error == found.schedule.predicted_error == pytest.approx(measured, rel=1e-3)
    held = Schedule.uniform(SPEC, 2)
    assert aligned(backend, held, SHAPE, IMAGES, OTHERS, 4).schedule.forecasts == {}


def test_batches_do_not_matter(backend, statistics) -> None:
    given = solve(statistics, 3)
    path = unshared_path(backend, given, IMAGES, SHAPE, 6)
    np.testing.assert_allclose(path, unshared_path(backend, given, IMAGES, SHAPE, 4), atol=1e-5)
    one, other = (align(backend, given, path, IMAGES, size) for size in (6, 4))
    for k, row in one.forecasts.items():
        np.testing.assert_allclose(row, other.forecasts[k], atol=2e-3)


def test_branches_of_their_own_get_weights_of_their_own(backend, statistics) -> None:
    given = split_with(statistics, (0, 2, 4), (2, 5), Method(centred=False))
    path = unshared_path(backend, given, IMAGES, SHAPE, 6)
    better = align(backend, given, path, IMAGES, 6)
    assert error(backend, better) < error(backend, given)
    assert better.forecasts.keys() == given.forecasts.keys()
    assert better.unconditional_forecasts.keys() == given.unconditional_forecasts.keys()
    assert better.unconditional_forecasts != given.unconditional_forecasts


def test_the_path_is_the_unshared_trajectory(backend) -> None:
    schedule = Schedule.uniform(SPEC, 3)
    path = unshared_path(backend, schedule, IMAGES, SHAPE, 4)
    noise = draw_noise(SHAPE, seed=7, indices=range(6))
    labels = draw_labels(4, seed=7, indices=range(6))
    torch.testing.assert_close(path[-1], sample(backend, Schedule.full(SPEC), noise, labels))
    assert path.shape == (8, 6, *SHAPE)


def test_held_states_stay_held(backend) -> None:
    schedule = Schedule.uniform(SPEC, 3)
    path = unshared_path(backend, schedule, IMAGES, SHAPE, 6)
    assert align(backend, schedule, path, IMAGES, 6).forecasts == {}
    wide = widened(schedule, backend.model.modulation_bias.numpy(), 2)
    assert error(backend, align(backend, wide, path, IMAGES, 6)) < error(backend, schedule)


def test_a_stochastic_sampler_is_refused(backend) -> None:
    schedule = Schedule.uniform(SamplingSpec(num_steps=4, solver="sde"), 2)
    with pytest.raises(ConfigError, match="stochastic"):
        align(backend, schedule, torch.zeros(4, 6, *SHAPE), IMAGES, 6)


@pytest.mark.parametrize("more", [[], ["--split"], ["--refine"]])
def test_solve_aligns_on_the_command_line(cli, solved, tiny_model_path, more) -> None:
    write_json(solved / "workspace.json", "ddt-accel workspace", 1, ModelChoice(source=str(tiny_model_path)).document())
    ran = cli("solve", "--workspace", solved, "--budget", 2, "--align", "--refine-images", 6, "--json", *more)
    assert ran.code == 0, ran.err
    told = json.loads(ran.out)["aligned"]
    schedule = Schedule.load(solved / "schedule.json")
    assert schedule.predicted_error == pytest.approx(told["error"])
    assert (schedule.forecast == "aligned") == (told["held_out_gain_db"]["low"] > 0)


def test_every_budget_at_once_is_not_aligned(cli, solved) -> None:
    ran = cli("solve", "--workspace", solved, "--align", "--pareto")
    assert ran.code == 2
    assert "--align is for one budget" in " ".join(ran.err.split())
