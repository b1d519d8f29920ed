"""Rivals against their formulas: on polynomials, and against rows worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest

from ddt_accel import SamplingSpec, Schedule, calibrate, load_model
from ddt_accel.calibration.statistics import Calibration
from ddt_accel.rivals.rival import evenly, forecasting, held
from ddt_accel.rivals.table import RIVALS
from ddt_accel.rivals.taylor_seer import taylor_weights


@pytest.fixture(scope="module")
def statistics(tiny_model_path) -> Calibration:
    return calibrate(load_model(tiny_model_path), SamplingSpec(num_steps=12), 2, sensitivity_samples=1)


@pytest.mark.parametrize("rival", RIVALS, ids=lambda rival: rival.name)
def test_every_variant_keeps_to_its_runs(rival, statistics) -> None:
    for variant in rival.variants(statistics):
        for runs in (1, 2, 5, 8, 12):
            schedule = variant.of(runs)
            if schedule is not None:
                assert schedule.budget <= runs, variant.settings
                assert schedule.spec.guides_as(statistics.spec)


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
