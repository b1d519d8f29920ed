"""Statistics on other grids, costs, and plans, each against what they stand for: the real run."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from ddt_accel import SamplingSpec, Schedule, calibrate, draw_labels, draw_noise, load_model, sample, solve
from ddt_accel.backends.pytorch import TorchBackend
from ddt_accel.calibration.resample import interpolation, resample
from ddt_accel.errors import ArtifactError, ConfigError, MismatchError
from ddt_accel.evaluation.benchmark import measure
from ddt_accel.evaluation.candidates import STEPS, finest
from ddt_accel.evaluation.costs import Costs, counted_costs, measured_costs
from ddt_accel.evaluation.fidelity import latent_decibels
from ddt_accel.evaluation.judge import Plan, gain
from ddt_accel.evaluation.plan import SHIFTS, TRIED, Row, _promising, make_plans
from ddt_accel.networks.families import release_of
from ddt_accel.sampling.reference import converged
from ddt_accel.stages import silent

SHAPE = (3, 8, 8)
FINE = SamplingSpec(num_steps=24, solver="ab2", guidance=1.4)


@pytest.fixture(scope="module")
def model(tiny_model_path):
    return load_model(tiny_model_path)


@pytest.fixture(scope="module")
def calibration(model):
    return calibrate(model, FINE, num_samples=6)


def test_interpolation_is_exact_for_cubics() -> None:
    known = np.array([0.0, 0.1, 0.25, 0.3, 0.6, 0.7, 1.0])
    wanted = np.array([0.0, 0.05, 0.3, 0.44, 0.69, 0.99])

    def cubic(t: np.ndarray) -> np.ndarray:
        return 1 - 2 * t + 3 * t**2 - 4 * t**3

    np.testing.assert_allclose(interpolation(known, wanted) @ cubic(known), cubic(wanted), atol=1e-12)
    np.testing.assert_allclose(interpolation(known, known), np.eye(len(known)), atol=1e-12)


def test_the_same_grid_changes_nothing(calibration) -> None:
    same = resample(calibration, FINE)
    for name in ("similarity", "gram", "mean", "mean_modulations", "sensitivity"):
        np.testing.assert_allclose(getattr(same, name), getattr(calibration, name), rtol=1e-6, atol=1e-6)
    assert solve(same, 5).refresh_steps == solve(calibration, 5).refresh_steps


@pytest.mark.parametrize("spec", [
    dataclasses.replace(FINE, num_steps=15), dataclasses.replace(FINE, num_steps=12, solver="heun"),
    dataclasses.replace(FINE, num_steps=16, timeshift=1.5),
])  # fmt: skip
def test_another_grid_is_close_to_its_own_calibration(model, calibration, spec: SamplingSpec) -> None:
    direct, between = calibrate(model, spec, num_samples=6), resample(calibration, spec)
    np.testing.assert_allclose(between.similarity, direct.similarity, atol=0.02)
    np.testing.assert_allclose(between.gram, direct.gram, rtol=0.03, atol=0.03 * direct.gram.max())
    np.testing.assert_allclose(between.mean, direct.mean, atol=0.05)
    assert np.median(np.abs(np.log(between.sensitivity[1:-1] / direct.sensitivity[1:-1]))) < 0.35


def test_sensitivities_jump_where_guidance_does(calibration) -> None:
    """Known to be 1 before the interval and 4 inside it, per unit of time they stay so on every grid."""
    total = np.zeros_like(calibration.sensitivity_sum)
    guided = FINE.guidance_weights != 1
    total[:, 0], total[:, 1] = 1, (np.where(guided, 4.0, 1.0) * np.diff(FINE.grid)) ** 2
    made = dataclasses.replace(calibration, sensitivity_sum=total)
    for steps in (17, 20, 23):
        spec = dataclasses.replace(FINE, num_steps=steps)
        rate = resample(made, spec).sensitivity / np.diff(spec.grid)
        np.testing.assert_allclose(rate, np.where(spec.guidance_weights != 1, 4.0, 1.0), rtol=1e-9)


def test_other_guidance_is_refused(calibration) -> None:
    with pytest.raises(MismatchError, match="calibrate for it"):
        resample(calibration, dataclasses.replace(FINE, guidance=3.0))


def test_counted_costs_are_those_of_the_published_network() -> None:
    """Multiply-adds of DDT-XL/2 at 256 px: encoder 93.2 G and modulations 12.9 G, decoder 25.4 G."""
    release = release_of("MCG-NJU/DDT-XL-22en6de-R256", "")
    config, shape = release.config, release.latent_shape
    costs = counted_costs(config, shape)
    assert costs.encoder / 1e9 == pytest.approx(93.2 + 12.9, rel=2e-3)
    assert costs.decoder / 1e9 == pytest.approx(25.4, rel=2e-3)
    assert counted_costs(config, shape).of(Schedule.full(SamplingSpec(guidance=1.0))) == pytest.approx(
        50 * (costs.encoder + costs.decoder)
    )


def test_measured_costs_add_up_to_what_was_measured(model, calibration, tmp_path) -> None:
    schedule = solve(calibration, 6)
    runs = {"unshared": Schedule.full(FINE), "solved": schedule}
    (unshared, solved), _ = measure(
        TorchBackend(model), runs, latent_shape=SHAPE, num_images=8, seed=1, batch_size=4
    )  # fmt: skip
    counted = counted_costs(model.config, SHAPE)
    costs = measured_costs(unshared, FINE, solved, schedule, "here", counted)
    assert costs.of(runs["unshared"]) == pytest.approx(unshared.seconds, rel=1e-6)
    assert costs.of(schedule) < costs.of(runs["unshared"])
    reads = sum(len(row) for row in schedule.forecasts.values())
    guided = sum(len(row) for k, row in schedule.forecasts.items() if FINE.guidance_weights[k] != 1)
    assert costs.forecast * (reads + guided) == pytest.approx(solved.forecast_seconds)
    held = measured_costs(unshared, FINE, unshared, runs["unshared"], "here", counted)
    assert held.forecast == pytest.approx(held.encoder * counted.forecast / counted.encoder)
    costs.save(tmp_path / "costs.json")
    assert Costs.load(tmp_path / "costs.json") == costs
    with pytest.raises(ConfigError):
        dataclasses.replace(costs, encoder=0.0)
    (tmp_path / "costs.json").write_text("{}")
    with pytest.raises(ArtifactError):
        Costs.load(tmp_path / "costs.json")


def test_plans_end_where_they_say(model, calibration) -> None:
    costs = counted_costs(model.config, SHAPE)
    rows = make_plans(
        TorchBackend(model), calibration, costs, [0.5, 0.3], latent_shape=SHAPE, num_images=3, seed=5, batch_size=2,
        on_stage=silent,
    )  # fmt: skip
    assert [row.cost for row in rows] == [0.3, 0.5]
    unit = costs.of(Schedule.full(FINE))
    # Chosen on the first three images, reported on the next three.
    noise, labels = draw_noise(SHAPE, seed=5, indices=range(3, 6)), draw_labels(4, seed=5, indices=range(3, 6))
    limit = sample(model, Schedule.full(dataclasses.replace(FINE, num_steps=96)), noise, labels)
    for row in rows:
        assert row.unshared.schedule.budget == row.unshared.schedule.spec.num_evaluations
        assert row.shared.schedule.budget < row.shared.schedule.spec.num_evaluations
        for plan in (row.unshared, row.shared):
            assert plan.cost <= row.cost
            assert plan.cost == pytest.approx(costs.of(plan.schedule) / unit)
            error = (sample(model, plan.schedule, noise, labels) - limit).square().flatten(1).mean(1).numpy()
            np.testing.assert_allclose(plan.fidelity, -10 * np.log10(error / 4), atol=0.05)
        assert row.shared.schedule.checkpoint_sha256 == row.unshared.schedule.checkpoint_sha256 is not None
        own = sample(model, Schedule.full(row.shared.schedule.spec), noise, labels)
        error = (sample(model, row.shared.schedule, noise, labels) - own).square().flatten(1).mean(1).numpy()
        np.testing.assert_allclose(row.shared.copying, -10 * np.log10(error / 4), atol=0.05)
        assert row.unshared.copying is None
        assert row.best.promise == max(p.promise for p in (row.fewer, row.unshared, row.published, row.shared) if p)
        assert gain(row.shared, row.unshared).mean == pytest.approx(row.shared.mean - row.unshared.mean)
        assert gain(row.shared, row.fewer).mean == pytest.approx(row.shared.mean - row.fewer.mean)
        assert row.fewer.schedule.spec.timeshift == FINE.timeshift


def test_the_finest_grid_that_a_cost_affords() -> None:
    def count(target: float, timeshift: float = 1.0, spec: SamplingSpec = FINE) -> list[int]:
        return [grid.num_steps for grid in finest(spec, "heun", timeshift, lambda grid: grid.num_evaluations, target)]

    assert [count(target) for target in (6.9, 7.0, 8.9, 9.0, 46.9, 47.0, 1e9)] == [[], [4], [4], [5], [23], [24], [24]]
    assert count(9.0, timeshift=1e9) == []
    assert count(9.0, spec=dataclasses.replace(FINE, num_steps=3)) == []


def test_fewer_steps_are_as_many_as_a_cost_affords(model, calibration) -> None:
    """By every integrator, and at every time shift by the best of them."""
    costs, target = counted_costs(model.config, SHAPE), 0.38
    (row,) = make_plans(
        TorchBackend(model), calibration, costs, [target], latent_shape=SHAPE, num_images=3, seed=5, batch_size=3,
        on_stage=silent,
    )  # fmt: skip
    unit = costs.of(Schedule.full(FINE))
    noise, labels = draw_noise(SHAPE, seed=5, indices=range(3)), draw_labels(4, seed=5, indices=range(3))
    limit = sample(model, converged(FINE, 96), noise, labels)

    def most(solver: str, timeshift: float) -> Schedule:
        grids = [Schedule.full(FINE.on_grid(k, timeshift=timeshift, solver=solver)) for k in range(4, 25)]
        return [schedule for schedule in grids if costs.of(schedule) <= target * unit][-1]

    def decibels(schedule: Schedule) -> float:
        return float(latent_decibels(sample(model, schedule, noise, labels), limit).mean())

    assert most("ab2", 1.0).spec.num_steps not in STEPS
    assert row.fewer.promise >= max(decibels(most(solver, 1.0)) for solver in ("euler", "heun", "ab2", "ab3")) - 1e-3
    solver = row.fewer.schedule.spec.solver
    assert row.unshared.promise >= max(decibels(most(solver, shift)) for shift in SHIFTS) - 1e-3


def test_the_best_plans_are_those_that_promised_most() -> None:
    """Not those that had luck on the images that are reported."""
    plans = {
        name: Plan(
            name=name, schedule=Schedule.full(FINE), cost=0.5, fidelity=np.full(3, mean), copying=None, promise=promise
        )
        for name, mean, promise in (
            ("fewer", 30.0, 31.0), ("unshared", 35.0, 32.0), ("fitted_unshared", 34.0, 33.0), ("shared", 36.0, 34.0),
            ("fitted_shared", 35.5, 35.0),
        )
    }  # fmt: skip
    row = Row(cost=0.5, published=None, **plans)
    assert [row.best_unshared.name, row.best_shared.name] == ["fitted_unshared", "fitted_shared"]
    assert row.best is row.best_shared


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"num_images": 1}, "at least 2"),
        ({"targets": [0.0]}, "above 0"),
        ({"targets": [float("inf")]}, "above 0"),
        ({"targets": [float("nan")]}, "above 0"),
        ({"batch_size": 0}, "at least 1"),
        ({"seed": 0}, "calibrated"),
    ],
)
def test_impossible_plans_are_refused(model, calibration, changes: dict, said: str) -> None:
    settings = {"targets": [0.5], "num_images": 2, "seed": 1, "batch_size": 2, **changes}
    with pytest.raises((ConfigError, MismatchError), match=said):
        make_plans(
            TorchBackend(model), calibration, counted_costs(model.config, SHAPE), latent_shape=SHAPE,
            on_stage=silent, **settings,
        )  # fmt: skip


def test_the_most_promising_grids_are_run() -> None:
    """By the sum of both squared errors, of the grid and of the forecasts; neither alone gives this order."""
    errors = {8: (0.50, 0.01), 10: (0.30, 0.30), 12: (0.20, 0.60), 14: (0.10, 0.55), 16: (0.05, 0.90)}
    unshared, families = {}, []
    for steps, (own, forecast) in errors.items():
        spec = dataclasses.replace(FINE, num_steps=steps)
        full = Schedule.full(spec)
        fidelity = np.full(2, -20 * np.log10(own / 2))
        unshared[spec] = Plan(name=str(steps), schedule=full, cost=1.0, fidelity=fidelity, copying=None)
        shared = dataclasses.replace(Schedule.uniform(spec, 3), predicted_error=forecast)
        families.append([[shared], []])
    order = sorted(errors, key=lambda steps: sum(error**2 for error in errors[steps]))
    assert [schedule.spec.num_steps for schedule in _promising(families, unshared)] == order[:TRIED]


def test_sharing_is_compared_by_the_best_plans_of_either_kind() -> None:
    def plan(decibels: float) -> Plan:
        values = np.full(4, decibels) + np.array([0.1, -0.1, 0.2, -0.2])
        return Plan(name=str(decibels), schedule=Schedule.full(FINE), cost=1.0, fidelity=values, copying=None)

    row = Row(
        cost=1.0, fewer=plan(30), unshared=plan(33), published=plan(50), shared=plan(41), fitted_unshared=plan(38),
        fitted_shared=plan(40),
    )  # fmt: skip
    assert (row.best_shared.name, row.best_unshared.name, row.best.name) == ("41", "38", "50")
    assert gain(row.best_shared, row.best_unshared).mean == pytest.approx(3)
    assert gain(None, row.fewer) is None
    assert dataclasses.replace(row, shared=None, fitted_shared=None).best_shared is None
