"""Coordinates against the runtime's trajectory and least squares; descent along them against descent in weights."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from ddt_accel import SamplingSpec, Schedule, calibrate, draw_labels, draw_noise, load_model
from ddt_accel.backends.pytorch import TorchBackend
from ddt_accel.errors import NumericsError
from ddt_accel.fitting.coordinates import EXPONENT, LEAST, Coordinates, row_basis
from ddt_accel.fitting.descent import Descent
from ddt_accel.fitting.scalars import Scalars
from ddt_accel.sampling.program import compile_program
from ddt_accel.sampling.trajectory import Trajectory
from ddt_accel.solver.solve import Method, solve_curve
from ddt_accel.solver.split import split

SPEC = SamplingSpec(num_steps=6, solver="ab2", guidance=1.5)


@pytest.fixture(scope="module")
def model(tiny_model_path):
    return load_model(tiny_model_path)


@pytest.fixture(scope="module", params=["centred", "branches of their own"])
def schedule(model, request) -> Schedule:
    calibration = calibrate(model, SPEC, num_samples=4)
    method = Method(centred=request.param == "centred")
    solved = solve_curve(calibration, 3, method)[-1][0]
    return solved if method.centred else split(calibration, solved, method)


def passed(model, schedule: Schedule, noise, labels) -> tuple[np.ndarray, dict[tuple[int, int], np.ndarray]]:
    """By the runtime's loop: velocities [E, …], and the modulations of every refresh of either branch."""
    every = tuple(tuple((j, 0.0) for j in range(k + 1)) for k in range(schedule.spec.num_evaluations))  # all are kept
    program = compile_program(schedule)
    trajectory = Trajectory(
        TorchBackend(model), compile_program(dataclasses.replace(schedule, integrator=every)), noise, labels
    )
    velocities, states, null = [], {}, torch.full_like(labels, model.config.num_classes)
    for k, evaluation in enumerate(program.evaluations):
        for side, branch in enumerate(evaluation.branches):
            if branch.encode:
                times = torch.full((len(noise),), evaluation.time)
                with torch.no_grad():
                    state = model.encode(trajectory.latents, times, (labels, null)[side])
                    states[side, k] = model.modulations(state).numpy()
        trajectory.evaluate(k)
        trajectory.advance(k, evaluation.update)
        velocities.append(trajectory.velocity(k).numpy().copy())
    return np.stack(velocities), states


def check(basis: np.ndarray, inputs: list[np.ndarray]) -> None:
    """Coordinates of a row are orthogonal in what it gives; as long as the part of an input that no later one has, to
    the power, in units of the longest."""
    flat = np.stack([value.ravel() for value in inputs]).astype(np.float64)
    flat /= np.linalg.norm(flat, axis=1).max()
    given = basis.T @ flat
    lengths = []
    for j, own in enumerate(flat):
        later = flat[j + 1 :].T
        rest = own - later @ np.linalg.lstsq(later, own, rcond=None)[0] if later.size else own
        new = np.linalg.norm(rest)
        lengths.append(new**EXPONENT if new > LEAST else 0.0)
    np.testing.assert_allclose(given @ given.T, np.diag(np.square(lengths)), atol=2e-3)


def test_they_are_orthogonal_in_what_a_row_gives(model, schedule) -> None:
    noise, labels = draw_noise((3, 8, 8), seed=9, indices=range(3)), draw_labels(4, seed=9, indices=range(3))
    with torch.no_grad():
        bias = model.modulations(torch.zeros(1, 1, model.config.hidden_size))[0, 0].numpy()
    scalars = Scalars(schedule, bias)
    batches = [(noise[:2], labels[:2]), (noise[2:], labels[2:])]
    bases = Coordinates.along(model, scalars, batches).bases
    velocities, states = passed(model, scalars.schedule(), noise, labels)
    means, checked = scalars.warm.mean_modulations, 0
    assert means is not None
    means = np.broadcast_to(means, (scalars.count, means.shape[1]))
    for k in range(scalars.count):
        check(bases["integrator"][k, : k + 1, : k + 1].numpy(), list(velocities[: k + 1]))
        assert not bases["integrator"][k, k + 1 :].any()
        for side in range(len(scalars.forecasts)):
            branches = scalars.program.evaluations[k].branches
            drawn = [] if side >= len(branches) or branches[side].encode else [r for r, _ in branches[side].forecast]
            basis = bases["forecasts"][side, k].numpy()
            assert basis.any() == bool(drawn)
            if drawn:
                check(basis[np.ix_(drawn, drawn)], [states[side, r] - means[r] for r in drawn])
                checked += len(drawn) > 1
    assert checked >= 2


def collinear() -> tuple[torch.Tensor, torch.Tensor, float]:
    """Inputs [6, 40] as alike as velocities, a target [40], and the least mean square that weights of them leave."""
    generator = torch.Generator().manual_seed(0)
    common, own = torch.randn(1, 40, generator=generator), torch.randn(6, 40, generator=generator)
    inputs = (common + 0.03 * own).double()
    target = inputs.T @ torch.tensor([3.0, -9.0, 14.0, -8.0, 2.0, -1.0], dtype=torch.float64)
    target += 0.01 * torch.randn(40, generator=generator).double()
    left = target.numpy() - inputs.numpy().T @ np.linalg.lstsq(inputs.numpy().T, target.numpy(), rcond=None)[0]
    return inputs, target, float(np.square(left).mean())


def descended(inputs: torch.Tensor, target: torch.Tensor, coordinates: Coordinates) -> float:
    weights = torch.zeros(6, dtype=torch.float64, requires_grad=True)
    descent = Descent({"weights": weights}, coordinates, learning_rate=0.2, iterations=200)
    for _ in range(descent.iterations):
        (target - weights @ inputs).square().mean().log().backward()
        descent.step()
    return float((target - weights.detach() @ inputs).square().mean())


def test_descent_along_them_reaches_least_squares() -> None:
    """Where neighbours differ by 3 %, it comes near in 200 steps, and descent in the weights themselves does not."""
    inputs, target, least = collinear()
    along = descended(
        inputs, target, Coordinates({"weights": torch.from_numpy(row_basis((inputs @ inputs.T).numpy(), range(6)))})
    )
    plain = descended(inputs, target, Coordinates({}))
    assert least <= along < 1.3 * least
    assert plain > 3 * along


def test_inputs_that_tell_nothing_new_do_not_move() -> None:
    """A copy of a later input, one that differs by rounding, and one of zeros: their weights stay, others can move."""
    generator = np.random.default_rng(0)
    late, other = generator.normal(size=(2, 50))
    inputs = np.stack([other, late * (1 + 1e-7), np.zeros(50), late, np.zeros(50)])
    basis = row_basis(inputs @ inputs.T, range(5))
    assert basis.any(0).tolist() == [True, False, False, True, False]
    assert basis.any(1).tolist() == [True, False, False, True, False]
    given = basis.T @ inputs
    assert given[0] @ given[3] == pytest.approx(0, abs=1e-9)
    assert not row_basis(np.zeros((3, 3)), range(3)).any()
    assert not row_basis(inputs @ inputs.T, []).any()


def test_coordinates_refuse_what_is_not_finite(model) -> None:
    start = dataclasses.replace(Schedule.full(SPEC), integrator=tuple(((k, 1e30),) for k in range(6)))
    scalars = Scalars(start, np.zeros(model.config.modulation_size, dtype=np.float32))
    batch = (draw_noise((3, 8, 8), seed=9, indices=range(2)), draw_labels(4, seed=9, indices=range(2)))
    with pytest.raises(NumericsError, match="leaves the finite numbers"):
        Coordinates.along(model, scalars, [batch])


def test_gradients_go_the_way_that_changes_come() -> None:
    """⟨g, T d⟩ = ⟨Tᵀ g, d⟩."""
    generator = torch.Generator().manual_seed(3)
    basis, gradient, step = (torch.randn(4, *shape, generator=generator) for shape in ((5, 5), (5,), (5,)))
    coordinates = Coordinates({"integrator": basis})
    for name in ("integrator", "gaps"):
        forth = (gradient * coordinates.change(name, step)).sum()
        assert forth == pytest.approx(float((coordinates.gradient(name, gradient) * step).sum()), rel=1e-4)
    assert torch.equal(coordinates.change("gaps", step), step)


def test_descent_refuses_gradients_that_are_not_finite() -> None:
    value = torch.ones(2, dtype=torch.float64, requires_grad=True)
    descent = Descent({"gaps": value}, Coordinates({}), learning_rate=0.1, iterations=5)
    (value * torch.tensor([1.0, np.inf])).sum().backward()
    with pytest.raises(NumericsError, match="not finite at iteration 0"):
        descent.step()
    assert value.tolist() == [1, 1]
