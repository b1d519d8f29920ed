"""Rivals against their formulas: on polynomials, and against rows worked out by hand."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from ddt_accel import SamplingSpec, Schedule, calibrate, load_model
from ddt_accel.calibration.statistics import Calibration
from ddt_accel.rivals import foca
from ddt_accel.rivals.foca import foca_values
from ddt_accel.rivals.hicache import hermite_weights
from ddt_accel.rivals.l2p import ridge_weights
from ddt_accel.rivals.predit import multistep_weights
from ddt_accel.rivals.rival import evenly, forecasting, held
from ddt_accel.rivals.spectrum import chebyshev_weights
from ddt_accel.rivals.table import RIVALS
from ddt_accel.rivals.taylor_seer import taylor_weights


@pytest.fixture(scope="module")
def statistics(tiny_model_path) -> Calibration:
    return calibrate(load_model(tiny_model_path), SamplingSpec(num_steps=12), 2, sensitivity_samples=1)


@pytest.mark.parametrize("rival", RIVALS, ids=lambda rival: rival.name)
def test_every_variant_keeps_to_its_runs(rival, statistics) -> None:
    variants = rival.variants(statistics)
    assert len({variant.settings for variant in variants}) == len(variants) > 0
    for variant in variants:
        for runs in (1, 2, 5, 8, 12):
            schedule = variant.of(runs)
            if schedule is not None:
                assert schedule.budget <= runs, variant.settings
                assert schedule.spec.guides_as(statistics.spec)
                assert schedule.shares == (schedule.budget < 12 and rival.shares)


def test_grids_of_their_own_are_none_for_a_stochastic_sampler() -> None:
    stochastic = SimpleNamespace(spec=SamplingSpec(solver="sde"))
    assert [rival.variants(stochastic) for rival in RIVALS if not rival.shares] == [[], []]


def test_even_intervals() -> None:
    assert evenly(10, 5) == (0, 2, 4, 6, 8)
    assert evenly(10, 4, first=3) == (0, 1, 2, 6)
    assert evenly(10, 2, first=3) == (0, 1)
    assert evenly(10, 10) == tuple(range(10))


def test_weights_that_do_not_add_up_are_of_a_state_of_zeros(statistics) -> None:
    assert held(statistics, (0, 4)).mean_modulations is None
    damped = forecasting(statistics, (0, 4), lambda drawn, step: [0.0] * (len(drawn) - 1) + [0.5])
    assert damped.mean_modulations is not None
    np.testing.assert_array_equal(damped.mean_modulations[0], statistics.modulation_bias)


def test_taylor_rows_by_hand() -> None:
    u = 2 / 3
    drawn, step = [0, 3, 6, 9], 11
    np.testing.assert_allclose(taylor_weights(1, drawn, step), [0, 0, -u, 1 + u])
    np.testing.assert_allclose(taylor_weights(2, drawn, step), [0, u**2 / 2, -u - u**2, 1 + u + u**2 / 2])
    cubic = u**3 / 6
    expected = [-cubic, u**2 / 2 + 3 * cubic, -u - u**2 - 3 * cubic, 1 + u + u**2 / 2 + cubic]
    np.testing.assert_allclose(taylor_weights(3, drawn, step), expected)
    # Of uneven gaps every order is divided by the last one.
    d1, d1_before = np.array([0, -1, 1]) / 2, np.array([-1, 1, 0]) / 4
    np.testing.assert_allclose(taylor_weights(2, [0, 4, 6], 7), np.array([0, 0, 1]) + d1 + 0.5 * (d1 - d1_before) / 2)


@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_taylor_is_exact_on_lines(order) -> None:
    drawn = [0, 2, 3, 7, 11]
    np.testing.assert_allclose(taylor_weights(order, drawn, 14) @ np.array(drawn), 14)


def test_fewer_steps_are_unshared(statistics) -> None:
    rival = next(rival for rival in RIVALS if rival.name == "fewer steps")
    found = [schedule for variant in rival.variants(statistics) if (schedule := variant.of(7)) is not None]
    assert {schedule.spec.num_evaluations for schedule in found} == {7}
    assert {schedule.spec.num_steps for schedule in found} == {4, 7}
    assert not any(schedule.shares for schedule in found)
    assert found[0] == Schedule.full(SamplingSpec(num_steps=7))


def test_hermite_rows_by_hand() -> None:
    drawn, step, scale = [0, 3, 6], 8, 0.6
    p = 2 * scale**2 * 2 / 3
    q = scale**2 * (2 * scale**2 * 2**2 - 1) / 9
    np.testing.assert_allclose(hermite_weights(1, scale, drawn, step), [0, -p, 1 + p])
    np.testing.assert_allclose(hermite_weights(2, scale, drawn, step), [q, -p - 2 * q, 1 + p + q])


def test_hermite_forecasts_follow_a_line_at_one_scale() -> None:
    drawn = [0, 1, 4, 6]
    for scale, share in ((np.sqrt(0.5), 1.0), (0.5, 0.5)):
        np.testing.assert_allclose(hermite_weights(1, scale, drawn, 9) @ np.array(drawn), 6 + 3 * share)


def foca_by_its_equations(slope: str, states: dict[int, float], last: int) -> list[float]:
    """Equations 6 to 8 of numbers, to step `last`; the first three steps are refreshes."""
    values: list[float] = []
    for k in range(last + 1):
        if k in states:
            values.append(states[k])
            if k >= 2:
                c, b, a = [step for step in states if step <= k][-3:]
                of_steps = (3 * values[k] - 4 * values[k - 1] + values[k - 2]) / 2
                of_refreshes = (states[a] - states[b]) / (a - b) * 3 / 2 - (states[b] - states[c]) / (b - c) / 2
                anchor = of_steps if slope == "steps" else of_refreshes
            continue
        here = (3 * values[-1] - 4 * values[-2] + values[-3]) / 2
        predicted = 4 / 3 * values[-1] - 1 / 3 * values[-2] + 2 / 3 * here
        there = (3 * predicted - 4 * values[-1] + values[-2]) / 2
        values.append(values[-1] + (anchor + there) / 2)
    return values


@pytest.mark.parametrize("slope", ["steps", "refreshes"])
def test_foca_is_its_equations(slope) -> None:
    states = dict(zip([0, 1, 2, 5, 9, 12], np.random.default_rng(1).normal(size=6).tolist(), strict=True))
    values = foca_values(slope, list(states), 16)
    np.testing.assert_allclose(values @ list(states.values()), foca_by_its_equations(slope, states, 15))
    # Nothing draws on a later refresh.
    assert not any(values[step, index] for index, refresh in enumerate(states) for step in range(refresh))


@pytest.mark.parametrize("slope", ["steps", "refreshes"])
def test_foca_is_exact_on_lines_only(slope) -> None:
    drawn = [0, 1, 2, 4, 8]
    np.testing.assert_allclose(foca_values(slope, drawn, 12) @ np.array(drawn), range(12), atol=1e-12)
    np.testing.assert_allclose(foca_values(slope, [0, 1, 2], 4)[3], [0.5, -2, 2.5])  # 8 for 3²
    np.testing.assert_allclose(foca_values(slope, [0], 3), np.ones((3, 1)))


def test_foca_slopes_of_even_refreshes() -> None:
    """From the equation with h the interval: F_7 = F_6 + (d(a) + d(6)) / 2."""
    values = foca_values("refreshes", [0, 3, 6], 8)
    anchor, here = np.array([1, -4, 3]) / 6, (3 * values[6] - 4 * values[5] + values[4]) / 2
    np.testing.assert_allclose(values[7], values[6] + (anchor + here) / 2)


def test_foca_that_leaves_no_digit_is_none(statistics) -> None:
    long = SimpleNamespace(**{name: getattr(statistics, name) for name in ("guide", "modulation_bias")},
                           spec=SamplingSpec(num_steps=400), checkpoint_sha256=None)  # fmt: skip
    of_steps, of_refreshes = (foca.variants(long)[k].of(80) for k in (0, 1))
    assert of_steps is None
    assert of_refreshes is not None


def test_multistep_rows_by_hand() -> None:
    np.testing.assert_allclose(multistep_weights(2, [0, 1, 2], 3), [0.5, -2, 2.5])
    np.testing.assert_allclose(multistep_weights(3, [4], 6), [1])
    drawn, step = [0, 2, 3, 7, 11], 14
    np.testing.assert_allclose(multistep_weights(2, drawn, step), taylor_weights(2, drawn, step))
    # The polynomial through three quotients, by Newton's divided differences, integrated.
    rows = np.eye(5)
    c, b, a = ((rows[k] - rows[k - 1]) / (drawn[k] - drawn[k - 1]) for k in (2, 3, 4))
    x, gap = 3, 4
    ab, bc = (a - b) / 4, (b - c) / 4
    expected = rows[4] + x * a + x**2 / 2 * ab + (x**3 / 3 + gap * x**2 / 2) * (ab - bc) / 8
    np.testing.assert_allclose(multistep_weights(3, drawn, step), expected, atol=1e-12)
    np.testing.assert_allclose(multistep_weights(4, drawn, step) @ np.array(drawn), step)


def penalised(design: np.ndarray, penalty: np.ndarray, values: np.ndarray) -> np.ndarray:
    """The least of |design c − values|² + cᵀ penalty c, by least squares on more rows."""
    root = np.linalg.cholesky(penalty).T
    more = np.concatenate([values, np.zeros((len(root), *values.shape[1:]))])
    return np.linalg.lstsq(np.concatenate([design, root]), more, rcond=None)[0]


def test_spectrum_is_a_ridge_regression_on_chebyshev_polynomials() -> None:
    drawn, step, evaluations = [0, 1, 2, 5, 9, 13], 17, 20
    times = np.array([*drawn, step]) / 10 - 1
    basis = np.cos(np.arange(4) * np.arccos(times)[:, None])
    states = np.random.default_rng(2).normal(size=(6, 3))
    coefficients = penalised(basis[:-1], 0.1 * np.eye(4), states)
    np.testing.assert_allclose(chebyshev_weights(3, 0.1, evaluations, drawn, step) @ states, basis[-1] @ coefficients)
    # Nearly without a penalty it is exact on polynomials of its degree; with one, not even on constants.
    np.testing.assert_allclose(chebyshev_weights(3, 1e-12, evaluations, drawn, step) @ times[:-1] ** 3, times[-1] ** 3)
    assert chebyshev_weights(3, 0.1, evaluations, drawn, step).sum() < 0.999


def test_l2p_is_a_ridge_regression_on_the_refreshed_states() -> None:
    states = np.random.default_rng(3).normal(size=(8, 40))  # of eight steps
    drawn, step, ridge = [0, 3, 4], 6, 0.05
    design = states[drawn].T
    expected = penalised(design, ridge * np.diag((design**2).sum(axis=0)), states[step])
    np.testing.assert_allclose(ridge_weights(states @ states.T, ridge, drawn, step), expected)


def test_lemica_needs_sensitivities(statistics) -> None:
    rival = next(rival for rival in RIVALS if rival.name == "LeMiCa")
    unmeasured = replace(statistics, sensitivity_sum=np.zeros_like(statistics.sensitivity_sum))
    assert rival.variants(unmeasured) == []
