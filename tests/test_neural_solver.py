"""The neural solver against its published numbers."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from ddt_accel import SamplingSpec
from ddt_accel.rivals.neural_solver import FLOWDCN, SIT, solver, variants

TABLES = [(table, steps) for table in (FLOWDCN, SIT) for steps in table]
SPECS = {
    "published": SamplingSpec(),
    "ends before": SamplingSpec(end=0.999, timeshift=2.0),
    "final step": SamplingSpec(num_steps=250, last_step=0.04),
    "everywhere": SamplingSpec(guidance_interval=(-1.0, 1.0), closed_interval=True),
    "unguided": SamplingSpec(guidance=1.0),
}


def test_five_steps_are_the_published_ones() -> None:
    """But for the scale, for lengths add up to 0.9999."""
    schedule, total = solver(SamplingSpec(), FLOWDCN, 5), 0.9999
    np.testing.assert_allclose(np.array(schedule.times) * total, [0, 0.0521, 0.1996, 0.4110, 0.6907])
    expected = [
        {0: 0.0521},
        {0: -0.18585, 1: 0.33335},
        {0: 0.291732, 1: -0.477764, 2: 0.397432},
        {2: -0.257324, 3: 0.537024},
        {3: -0.21644, 4: 0.52564},
    ]
    for row, known in zip(schedule.integrator, expected, strict=True):
        assert {j: pytest.approx(weight * total) for j, weight in row} == known


@pytest.mark.parametrize(("table", "steps"), TABLES)
def test_tables_are_whole(table, steps) -> None:
    assert [len(row) for row in table[steps]] == [1, *range(2, steps + 1)]
    assert 0.9999 - 1e-9 <= sum(row[0] for row in table[steps]) <= 1.0002 + 1e-9


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
@pytest.mark.parametrize(("table", "steps"), TABLES)
def test_it_ends_where_the_sampler_does_and_guides_where_it_should(table, steps, spec) -> None:
    schedule = solver(spec, table, steps)
    assert schedule.budget == schedule.spec.num_evaluations == steps
    reached = np.cumsum([sum(weight for _, weight in row) for row in schedule.integrator])
    np.testing.assert_allclose(reached, [*schedule.times[1:], spec.end_time])
    assert schedule.spec.aim == spec.aim
    np.testing.assert_array_equal(schedule.spec.guidance_weights, weights_at(schedule.times, spec))


@pytest.mark.parametrize(("table", "steps"), TABLES)
def test_of_an_interval_with_two_ends_one_evaluation_may_be_guided_otherwise(table, steps) -> None:
    """A grid has one shift: both ends cannot always fall between the evaluations that they should."""
    for interval in ((0.2, 0.6), (0.1, 0.8), (0.3, 0.5)):
        spec = SamplingSpec(guidance_interval=interval)
        schedule = solver(spec, table, steps)
        assert (schedule.spec.guidance_weights != weights_at(schedule.times, spec)).sum() <= 1


def weights_at(times: tuple[float, ...], spec: SamplingSpec) -> np.ndarray:
    low, high = spec.guidance_interval
    return np.where((low < np.array(times)) & (np.array(times) < high), spec.guidance, 1.0)


def test_the_most_steps_that_runs_are_enough_for() -> None:
    searched = variants(SimpleNamespace(spec=SamplingSpec()))
    for runs, expected in ((4, (None, None)), (5, (5, 5)), (12, (10, 10)), (15, (15, 10)), (50, (15, 10))):
        found = [variant.of(runs) for variant in searched]
        assert tuple(schedule and schedule.budget for schedule in found) == expected
