"""What predictions miss, as the calibration measures it by running schedules, and as it is applied to others."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from ddt_accel import Calibration, SamplingSpec, Schedule, calibrate, draw_labels, draw_noise, load_model, sample
from ddt_accel.artifacts import write_arrays
from ddt_accel.calibration import closed_loop
from ddt_accel.calibration.closed_loop import METHODS, no_shared_sum, shared_evaluations, shared_runs
from ddt_accel.calibration.resample import resample
from ddt_accel.calibration.statistics import ARRAYS, COARSER, FORMAT, VERSION
from ddt_accel.errors import NumericsError
from ddt_accel.sampling.noise import ImageRange
from ddt_accel.solver.misses import WAYS
from ddt_accel.solver.solve import PUBLISHED, Method, solve_curve
from ddt_accel.solver.split import splits

SPEC = SamplingSpec(num_steps=12, guidance=1.8, guidance_interval=(0.3, 1.0))
RUNS = [2, 3, 6]


@pytest.fixture(scope="module")
def model(tiny_model_path):
    return load_model(tiny_model_path)


@pytest.fixture(scope="module")
def calibration(model) -> Calibration:
    """Five images in one batch, the errors of three of them followed."""
    return calibrate(model, SPEC, num_samples=5, sensitivity_samples=3)


def unmeasured(calibration: Calibration) -> Calibration:
    return dataclasses.replace(calibration, shared_sum=no_shared_sum(calibration.spec))


def solved(calibration: Calibration, way: str, runs: int) -> Schedule:
    common = solve_curve(calibration, runs, METHODS[way])[-1][0]
    if way != "split":
        return common
    return min(splits(calibration, common, METHODS[way]), key=lambda found: found.predicted_cost)


def held_by_hand(model, refreshes: tuple[int, ...]) -> torch.Tensor:
    x, labels = draw_noise((3, 8, 8), seed=0, indices=range(3)), draw_labels(4, seed=0, indices=range(3))
    y = torch.cat([labels, torch.full_like(labels, 4)])
    for k, (t, w) in enumerate(zip(SPEC.times.tolist(), SPEC.guidance_weights.tolist(), strict=True)):
        if k in refreshes:
            state = model.encode(torch.cat([x, x]), torch.full((6,), t), y)
        c, u = model.decode(torch.cat([x, x]), state).chunk(2)
        x = x + (SPEC.grid[k + 1] - SPEC.grid[k]) * (u + w * (c - u))
    return x.double()


def test_they_are_errors_of_held_trajectories_run_by_hand(model, calibration) -> None:
    assert shared_runs(SPEC) == RUNS
    unshared = held_by_hand(model, tuple(range(12)))
    for place, runs in enumerate(RUNS):
        schedule = solved(unmeasured(calibration), "hold", runs)
        expected = (held_by_hand(model, schedule.refresh_steps) - unshared).square().mean().item() * 3
        count, measured, predicted = calibration.shared_sum[WAYS.index("hold"), place]
        assert (count, predicted) == (3, pytest.approx(3 * schedule.predicted_error**2, rel=1e-9))
        assert measured == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("way", WAYS)
def test_they_are_errors_of_what_the_solver_finds(model, calibration, way: str) -> None:
    noise, labels = draw_noise((3, 8, 8), seed=0, indices=range(3)), draw_labels(4, seed=0, indices=range(3))
    unshared = sample(model, Schedule.full(SPEC), noise, labels).double()
    for place, runs in enumerate(RUNS):
        schedule = solved(unmeasured(calibration), way, runs)
        assert (schedule.unconditional_steps is not None) == (way == "split")
        error = (sample(model, schedule, noise, labels).double() - unshared).square().mean().sqrt().item()
        row = calibration.shared_sum[WAYS.index(way), place]
        assert row == pytest.approx([3, 3 * error**2, 3 * schedule.predicted_error**2], rel=1e-4)
        # On these very images predictions are now what is measured.
        assert solved(calibration, way, runs).predicted_error == pytest.approx(error, rel=1e-4)


def test_parts_merge_in_any_order(model) -> None:
    """A batch measures its own, whatever came before it."""
    spec = SamplingSpec(num_steps=6, guidance=1.5)
    whole = calibrate(model, spec, num_samples=6, batch_size=2, sensitivity_samples=5)
    a, b, c = (calibrate(model, spec, 2, first_image=k, batch_size=2, sensitivity_samples=5 - k) for k in (0, 2, 4))
    assert whole.shared_sum[:, :, 0].max() == 5
    assert np.array_equal(whole.shared_sum, a.merge(b).merge(c).shared_sum)
    for merged in (a.merge(b.merge(c)), c.merge(b).merge(a), b.merge(a).merge(c)):
        np.testing.assert_allclose(merged.shared_sum, whole.shared_sum, rtol=1e-12)


def test_old_calibrations_are_read_and_keep_their_checksum(calibration, tmp_path) -> None:
    arrays = {name: getattr(calibration, name) for name in (*ARRAYS, COARSER)}
    write_arrays(tmp_path / "old.safetensors", FORMAT, VERSION, calibration._document(), arrays)
    old = Calibration.load(tmp_path / "old.safetensors")
    assert old.sha256 == unmeasured(calibration).sha256 != calibration.sha256
    old.save(tmp_path / "again.safetensors")
    assert (tmp_path / "again.safetensors").read_bytes() == (tmp_path / "old.safetensors").read_bytes()
    fresh = dataclasses.replace(calibration, ranges=(ImageRange(seed=9, first=0, stop=5),))
    assert np.array_equal(old.merge(fresh).shared_sum, calibration.shared_sum)
    calibration.save(tmp_path / "new.safetensors")
    assert Calibration.load(tmp_path / "new.safetensors").sha256 == calibration.sha256


def made_up(calibration: Calibration, **ratios: list[float]) -> Calibration:
    """Measured errors that are `ratios` times the predicted ones; zero is a place without measurements."""
    total = no_shared_sum(SPEC)
    for way, row in ratios.items():
        for place, ratio in enumerate(row):
            total[WAYS.index(way), place] = (4, 4 * 0.09 * ratio**2, 4 * 0.09) if ratio else 0
    return dataclasses.replace(calibration, shared_sum=total)


def test_predictions_are_corrected_by_them(calibration) -> None:
    bare = unmeasured(calibration)
    made = made_up(calibration, calibrated=[0.5, 0.9, 1.8], hold=[3, 3, 3], split=[0.25, 0, 0.4])

    def factors(method: Method) -> list[float]:
        before, after = (solve_curve(one, 12, method) for one in (bare, made))
        for (one, its), (other, others) in zip(before, after, strict=True):
            assert (one.refresh_steps, one.forecasts) == (other.refresh_steps, other.forecasts)
            assert (one.predicted_cost, its) == (other.predicted_cost, others)
        assert after.pop()[0].predicted_error == before.pop()[0].predicted_error == 0
        return [other.predicted_error / one.predicted_error for (one, _), (other, _) in zip(before, after, strict=True)]

    # A line in log ratio over log runs: from 3 to 6 runs, where the ratio doubles, it goes with their number.
    expected = pytest.approx([0.5, 0.5, 0.9, 1.2, 1.5, *[1.8] * 6], rel=1e-9)
    like_it = Method(centred=False), Method(sources=3), Method(objective="minimax"), Method(forecast="linear")
    for method in (Method(), *like_it):
        assert factors(method) == expected
    assert factors(Method(forecast="hold")) == pytest.approx([3.0] * 11)
    assert solve_curve(made, 3, PUBLISHED)[-1][0].predicted_error is None

    common = [solve_curve(bare, 3, METHODS["split"])[-1][0] for _ in range(2)]
    found = [splits(one, schedule, METHODS["split"]) for one, schedule in zip((bare, made), common, strict=True)]
    middle = 0.25 * (0.4 / 0.25) ** (np.log(3 / 2) / np.log(3))  # what was not measured is read in between
    for one, other in zip(*found, strict=True):
        assert other.predicted_error == pytest.approx(one.predicted_error * middle, rel=1e-9)


def test_nothing_is_corrected_where_nothing_was_measured(calibration) -> None:
    bare, made = unmeasured(calibration), made_up(calibration, hold=[3, 0, 2])
    for way in ("calibrated", "split"):
        assert solved(made, way, 3).predicted_error == solved(bare, way, 3).predicted_error


def test_on_other_grids_the_same_runs_miss_alike(calibration) -> None:
    coarse = dataclasses.replace(SPEC, num_steps=8)
    before, after = (
        solve_curve(resample(one, coarse), 3)[-1][0]
        for one in (unmeasured(calibration), made_up(calibration, calibrated=[1, 0.7, 1]))
    )
    assert after.predicted_error == pytest.approx(0.7 * before.predicted_error, rel=1e-9)


def test_bars_count_them(model) -> None:
    for spec in (SPEC, dataclasses.replace(SPEC, guidance=1.0)):
        stages: list[list[int]] = []

        def on_stage(label: str, total: int, stages=stages):
            stages.append([total, 0])

            def advance() -> None:
                stages[-1][1] += 1

            return advance

        calibrate(model, spec, 2, sensitivity_samples=1, on_stage=on_stage)
        assert [total for total, _ in stages] == [done for _, done in stages]
    ways = 2, 3
    assert [shared_evaluations(spec) for spec in (dataclasses.replace(SPEC, guidance=1.0), SPEC)] == [
        12 * (1 + 3 * count) for count in ways
    ]


def test_what_cannot_be_measured_is_left_out(model, monkeypatch) -> None:
    unguided = calibrate(model, dataclasses.replace(SPEC, guidance=1.0), 2, sensitivity_samples=1)
    assert not unguided.shared_sum[WAYS.index("split")].any()
    assert unguided.shared_sum[WAYS.index("hold")].all()
    assert not calibrate(model, SPEC, 2, sensitivity_samples=0).shared_sum.any()
    assert [shared_runs(SamplingSpec(num_steps=n)) for n in (1, 2, 3, 50, 250, 1000)] == [
        [], [], [2], [3, 5, 8, 14, 25], [15, 25, 40, 70, 125], [],
    ]  # fmt: skip

    running = closed_loop.sample_images

    def broken(backend, schedule, *arguments):
        if len(schedule.refresh_steps) == 2:
            raise NumericsError("NaN")
        return running(backend, schedule, *arguments)

    monkeypatch.setattr(closed_loop, "sample_images", broken)
    assert calibrate(model, SPEC, 2, sensitivity_samples=1).shared_sum[:2, :, 0].tolist() == [[0, 1, 1]] * 2
