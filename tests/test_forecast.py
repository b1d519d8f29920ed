"""Forecast errors against the data they are computed from, and the exact program over pairs against brute force."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ddt_accel import (
    Calibration,
    SamplingSpec,
    Schedule,
    calibrate,
    draw_noise,
    load_model,
    sample,
    solve,
    solve_refresh_steps,
)
from ddt_accel.calibration.closed_loop import no_shared_sum
from ddt_accel.calibration.coarser import coarser_steps
from ddt_accel.errors import ConfigError, NumericsError
from ddt_accel.sampling.noise import ImageRange
from ddt_accel.solver.forecast import forecast_error, forecast_weights, pair_errors
from ddt_accel.solver.pairs import pair_cost, solve_pairs
from ddt_accel.solver.solve import Method, solve_curve

N = 7
TIMES = np.array([0.0, 0.1, 0.25, 0.4, 0.6, 0.8, 0.9])


def states(seed: int = 0, rank: int = 5) -> np.ndarray:
    """[N, samples]: states that depend smoothly on time, of finite rank, with some noise."""
    rng = np.random.default_rng(seed)
    basis = np.stack([np.cos(k * TIMES * 2) for k in range(rank)], axis=1)
    return basis @ rng.normal(size=(rank, 4000)) + 0.05 * rng.normal(size=(N, 4000))


def mean_squared(forecast: np.ndarray, truth: np.ndarray) -> float:
    return float(((forecast - truth) ** 2).mean())


@pytest.mark.parametrize("sources", [[3], [1, 3], [0, 1, 3], [0, 1, 2, 3]])
def test_calibrated_weights_are_least_squares(sources: list[int]) -> None:
    data = states()
    gram = data @ data.T / data.shape[1]
    for step in (4, 6):
        expected, *_ = np.linalg.lstsq(data[sources].T, data[step], rcond=None)
        weights = forecast_weights("calibrated", gram, TIMES, sources, step)
        np.testing.assert_allclose(weights, expected, rtol=2e-3, atol=2e-3)
        error = forecast_error(gram, sources, weights, step)
        assert error**2 == pytest.approx(mean_squared(weights @ data[sources], data[step]), rel=1e-9)


@pytest.mark.parametrize("forecast", ["hold", "linear", "calibrated"])
def test_pair_errors_are_those_of_the_forecasts(forecast: str) -> None:
    data = states(1)
    gram = data @ data.T / data.shape[1]
    errors = pair_errors(forecast, gram, TIMES)
    for a, b in itertools.combinations_with_replacement(range(N), 2):
        sources = [a, b] if a < b else [b]
        for i in range(b + 1, N):
            weights = forecast_weights(forecast, gram, TIMES, sources, i)
            truth = mean_squared(weights @ data[sources], data[i])
            assert errors[a, b, i] ** 2 == pytest.approx(truth, rel=1e-6)


def test_linear_forecasts_are_exact_on_lines() -> None:
    data = np.outer(1 - TIMES, np.arange(3.0)) + np.outer(TIMES, [2.0, -1.0, 0.5])
    weights = forecast_weights("linear", data @ data.T, TIMES, [0, 2, 3], 6)
    np.testing.assert_allclose(weights @ data[[0, 2, 3]], data[6], atol=1e-12)


def random_prices(n: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return np.round(rng.random((n, n, n)) * 4) / 4 if seed % 2 else rng.random((n, n, n))


def segments_of(price: np.ndarray, plan: tuple[int, ...]) -> list[float]:
    ends = (*plan[1:], len(price))
    befores = (plan[0], *plan[:-1])
    return [price[a, b, b + 1 : c].sum() for a, b, c in zip(befores, plan, ends, strict=True)]


@pytest.mark.parametrize("n", range(1, 9))
@pytest.mark.parametrize("gamma", [1.0, 2.0, math.inf])
@pytest.mark.parametrize("seed", range(3))
def test_every_budget_is_optimal_over_pairs(n: int, gamma: float, seed: int) -> None:
    price = random_prices(n, seed)
    for budget, solution in enumerate(solve_pairs(price, n, gamma=gamma), 1):
        plans = [(0, *rest) for rest in itertools.combinations(range(1, n), budget - 1)]
        worst = {plan: sorted(segments_of(price, plan), reverse=True) for plan in plans}
        if math.isinf(gamma):
            assert worst[solution.refresh_steps][:4] == pytest.approx(min(worst.values())[:4], abs=1e-12)
            assert solution.cost == pytest.approx(min(worst.values())[0], abs=1e-12)
        else:
            costs = {plan: sum(x**gamma for x in prices) ** (1 / gamma) for plan, prices in worst.items()}
            least = min(costs.values())
            assert solution.cost == pytest.approx(least, abs=1e-12)
            assert costs[solution.refresh_steps] == pytest.approx(least, abs=1e-12)
            assert solution.ties == sum(cost <= least * (1 + 1e-9) + 1e-12 for cost in costs.values())
        assert pair_cost(price, solution.refresh_steps, gamma=gamma) == pytest.approx(solution.cost, abs=1e-12)


@given(st.integers(1, 12), st.integers(0, 10**6))
@settings(max_examples=40, deadline=None)
def test_a_forecast_from_one_state_is_the_simple_program(n: int, seed: int) -> None:
    cost = np.random.default_rng(seed).random((n, n))
    np.fill_diagonal(cost, 0.0)
    price = np.broadcast_to(cost, (n, n, n))
    for budget, solution in enumerate(solve_pairs(price, n, gamma=1.0), 1):
        assert solution.refresh_steps == solve_refresh_steps(cost, budget)


@pytest.fixture(scope="module")
def calibration(tiny_model_path) -> Calibration:
    return calibrate(load_model(tiny_model_path), SamplingSpec(num_steps=9, guidance=1.5), num_samples=4)


@pytest.mark.parametrize("forecast", ["hold", "linear", "calibrated"])
@pytest.mark.parametrize("objective", ["sum", "power", "minimax"])
def test_a_solved_schedule_is_the_best_of_all(calibration, forecast: str, objective: str) -> None:
    """By the price of its own forecasts, computed here from the statistics, over all refresh steps."""

    spec, gamma = calibration.spec, {"sum": 1, "power": 2, "minimax": 60}[objective]
    gram = calibration.gram
    if forecast == "calibrated":
        gram = gram - calibration.mean @ calibration.mean.T

    def price(plan: tuple[int, ...]) -> float:
        errors = np.zeros(9)
        for step in set(range(9)) - set(plan):
            drawn = [r for r in plan if r < step][-2:]
            weights = forecast_weights(forecast, gram, spec.times, drawn, step)
            errors[step] = calibration.sensitivity[step] * forecast_error(gram, drawn, weights, step)
        segments = np.add.reduceat(errors, plan)
        return float(segments.max() if gamma == 60 else (segments**gamma).sum() ** (1 / gamma))

    for schedule, certificate in solve_curve(calibration, 9, Method(forecast=forecast, objective=objective)):
        plans = [(0, *rest) for rest in itertools.combinations(range(1, 9), schedule.budget - 1)]
        assert schedule.predicted_cost == pytest.approx(price(schedule.refresh_steps), rel=1e-6)
        assert schedule.predicted_cost <= min(map(price, plans)) * (1 + 1e-6) + 1e-12
        assert certificate.considered == len(plans)
        assert certificate.exact
        assert certificate.uniform_cost == pytest.approx(
            price(Schedule.uniform(spec, schedule.budget).refresh_steps), rel=1e-4, abs=1e-9
        )


def test_more_sources_predict_no_worse(calibration) -> None:
    costs = [solve(calibration, 4, sources=k).predicted_cost for k in (2, 3, 4)]
    assert costs[0] >= costs[1] >= costs[2]


def statistics(gram: np.ndarray, sensitivity: np.ndarray | None = None) -> Calibration:
    n = len(gram)
    total = np.zeros((n, 3))
    if sensitivity is not None:
        total[:, 0], total[:, 1] = 1, sensitivity**2
    spec = SamplingSpec(num_steps=n, guidance=1.0)
    return Calibration(
        spec=spec,
        similarity_sum=np.ones((n, n)),
        gram_sum=np.stack([gram, gram]),
        mean_sum=np.zeros((n, 2)),
        modulation_sum=np.zeros((n, 3)),
        bias_sum=np.zeros(3),
        sensitivity_sum=total,
        coarser_sum=np.zeros((len(coarser_steps(spec)), 3)),
        shared_sum=no_shared_sum(spec),
        ranges=(ImageRange(seed=0, first=0, stop=1),),
        checkpoint_sha256="ab",
        latent_shape=(3, 8, 8),
    )


@pytest.mark.parametrize("forecast", ["hold", "linear", "calibrated"])
def test_identical_states_are_no_trouble(forecast: str) -> None:
    """A singular Gram matrix: every forecast is exact, and every weight finite."""
    schedule = solve(statistics(np.full((6, 6), 4.0), np.ones(6)), 3, forecast=forecast, sources=3)
    assert schedule.predicted_cost == pytest.approx(0, abs=1e-2)
    assert all(abs(w) < 10 for row in schedule.forecasts.values() for _, w in row)
    assert solve(statistics(np.zeros((6, 6)), np.ones(6)), 3, forecast=forecast).predicted_cost == 0


@pytest.mark.parametrize(
    "gram", [np.array([[1.0, 2.0], [2.0, 1.0]]), np.array([[-1.0, 0], [0, 1.0]]), np.array([[np.nan, 0], [0, 1.0]])]
)
def test_what_is_no_gram_matrix_is_refused(gram: np.ndarray) -> None:
    with pytest.raises(NumericsError, match="calibrate anew"):
        solve(statistics(gram, np.ones(2)), 1)


def test_a_calibration_without_sensitivities_solves_as_published_only() -> None:
    bare = statistics(np.eye(4))
    with pytest.raises(ConfigError, match="no sensitivities"):
        solve(bare, 2)
    assert solve(bare, 2, forecast="hold", objective="similarity").refresh_steps[0] == 0


def test_weights_are_stored_and_nothing_else_is_needed(calibration, tmp_path) -> None:
    schedule = solve(calibration, 3)
    schedule.save(tmp_path / "s.json")
    loaded = Schedule.load(tmp_path / "s.json")
    assert loaded == schedule
    assert np.array_equal(loaded.mean_modulations, calibration.mean_modulations)
    solve(calibration, 5).save(tmp_path / "t.json")
    assert len(list(tmp_path.glob("means-*"))) == 1


@pytest.mark.parametrize("forecast", ["linear", "calibrated"])
def test_inner_products_that_cannot_be(forecast: str) -> None:
    """Every pair of these states is possible, the three together are not; they would promise an error below zero."""
    impossible = np.array([[1, 0.9, -0.9], [0.9, 1, 0.9], [-0.9, 0.9, 1]])
    with pytest.raises(NumericsError, match="positive semidefinite"):
        solve(statistics(impossible, np.ones(3)), 2, forecast=forecast, centred=False)


@pytest.mark.parametrize("centred", [True, False])
@pytest.mark.parametrize("sources", [1, 2, 3])
def test_what_is_priced_is_what_is_run(tiny_model_path, centred: bool, sources: int) -> None:
    """A solved schedule along the loop, against forecasts of whole states with the solver's weights."""
    model = load_model(tiny_model_path)
    calibration = calibrate(model, SamplingSpec(num_steps=8, guidance=1.0), num_samples=4)
    schedule = solve(calibration, 3, centred=centred, sources=sources)
    assert any(abs(sum(w for _, w in row) - 1) > 1e-3 for row in schedule.forecasts.values())
    mu = torch.from_numpy(calibration.mean).float() * centred
    x = noise = draw_noise((3, 8, 8), seed=1, indices=range(2))
    labels, states = torch.tensor([2, 0]), {}
    for k, t in enumerate(schedule.spec.times.tolist()):
        if k in schedule.refresh_steps:
            states[k] = state = model.encode(x, torch.full((2,), t), labels)
        else:
            state = mu[k] + sum(weight * (states[r] - mu[r]) for r, weight in schedule.forecasts[k])
        x = x + (schedule.spec.grid[k + 1] - schedule.spec.grid[k]) * model.decode(x, state)
    torch.testing.assert_close(sample(model, schedule, noise, labels), x.float(), rtol=1e-4, atol=2e-5)
