"""Forecasts that are aligned with the unshared trajectory, against brute force and where nothing is to be gained."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from scipy.optimize import minimize

from ddt_accel import SamplingSpec, Schedule, calibrate, load_model, sample, solve
from ddt_accel.backends.pytorch import TorchBackend
from ddt_accel.backends.sample import sample_images
from ddt_accel.errors import ConfigError
from ddt_accel.fitting.aligned import align, unshared_path
from ddt_accel.fitting.scalars import widened
from ddt_accel.sampling.noise import ImageRange, draw_labels, draw_noise
from ddt_accel.solver.solve import Method, schedule_with
from ddt_accel.solver.split import split_with

SHAPE, SPEC = (3, 8, 8), SamplingSpec(num_steps=8)
IMAGES = ImageRange(seed=7, first=0, stop=6)


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
    aligned = align(backend, given, path, IMAGES, 4)

    def loss(weights) -> float:
        row = tuple(zip((1, 2), weights, strict=True))
        return error(backend, dataclasses.replace(given, forecasts={3: row}))

    (_, first), (_, second) = given.forecasts[3]
    found = minimize(loss, [first, second], method="Nelder-Mead", options={"xatol": 1e-4, "fatol": 1e-6})
    assert error(backend, aligned) < error(backend, given)
    assert error(backend, aligned) == pytest.approx(found.fun, abs=0.02)


@pytest.mark.parametrize("budget", [2, 4])
def test_it_ends_closer_on_other_images(backend, statistics, budget) -> None:
    given = solve(statistics, budget)
    path = unshared_path(backend, given, IMAGES, SHAPE, 6)
    aligned = align(backend, given, path, IMAGES, 6)
    others = ImageRange(seed=8, first=0, stop=8)
    assert error(backend, aligned, others) < error(backend, given, others)
    assert aligned.refresh_steps == given.refresh_steps
    assert aligned.fitted_on == ((7, 0, 6),)
    assert aligned.predicted_error is None


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
    aligned = align(backend, given, path, IMAGES, 6)
    assert error(backend, aligned) < error(backend, given)
    assert aligned.forecasts.keys() == given.forecasts.keys()
    assert aligned.unconditional_forecasts.keys() == given.unconditional_forecasts.keys()
    assert aligned.unconditional_forecasts != given.unconditional_forecasts


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
