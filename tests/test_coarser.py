"""What fewer steps do, as the calibration has it: measured as by definition, read in between, absent in old files."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from ddt_accel import Calibration, SamplingSpec, Schedule, calibrate, draw_labels, draw_noise, load_model, sample
from ddt_accel.artifacts import write_arrays
from ddt_accel.calibration.coarser import FINER, coarser_steps, coarser_sum
from ddt_accel.calibration.statistics import ARRAYS, FORMAT, VERSION
from ddt_accel.sampling.noise import ImageRange
from ddt_accel.sampling.reference import converged

SPEC = SamplingSpec(num_steps=16, guidance=1.6)


@pytest.fixture(scope="module")
def calibration(tiny_model_path) -> Calibration:
    return calibrate(load_model(tiny_model_path), SPEC, num_samples=5, batch_size=2, sensitivity_samples=3)


def ends(model, schedule: Schedule) -> torch.Tensor:
    noise, labels = draw_noise((3, 8, 8), seed=0, indices=range(3)), draw_labels(4, seed=0, indices=range(3))
    return sample(model, schedule, noise, labels).double()


def test_they_are_errors_of_fewer_steps(calibration, tiny_model_path) -> None:
    """On the images whose errors are followed, whatever the batches; of all steps none to themselves."""
    model = load_model(tiny_model_path)
    whole, reference = ends(model, Schedule.full(SPEC)), ends(model, converged(SPEC, FINER * 16))
    assert coarser_steps(SPEC) == [1, 2, 3, 4, 6, 10, 16]
    assert (calibration.coarser_sum[:, 0] == 3).all()
    for steps in (2, 6, 16):
        found = ends(model, Schedule.full(dataclasses.replace(SPEC, num_steps=steps)))
        expected = [(found - aim).square().mean().sqrt().item() for aim in (whole, reference)]
        assert calibration.coarser_error(steps) == pytest.approx(expected, rel=1e-3, abs=1e-6)


def test_in_between_they_follow_the_order_of_the_sampler(calibration) -> None:
    """Made up: errors that fall as 1 / n to the reference, so that those to the end of all steps are 1/n − 1/16."""
    counts = np.array(coarser_steps(SPEC), dtype=float)
    total = np.stack([np.full(len(counts), 2.0), 2 * (1 / counts - 1 / 16) ** 2, 2 / counts**2], axis=1)
    made = dataclasses.replace(calibration, coarser_sum=total)
    for steps in (5, 8, 13):
        assert made.coarser_error(steps) == pytest.approx((1 / steps - 1 / 16, 1 / steps), rel=1e-9)
    assert made.coarser_error(17) is None
    total[:2] = 0  # those ended in NaN, say
    assert made.coarser_error(2) is None
    assert made.coarser_error(3) is not None


def test_old_calibrations_are_read_and_keep_their_checksum(calibration, tmp_path) -> None:
    arrays = {name: getattr(calibration, name) for name in ARRAYS}
    write_arrays(tmp_path / "old.safetensors", FORMAT, VERSION, calibration._document(), arrays)
    old = Calibration.load(tmp_path / "old.safetensors")
    assert old.coarser_error(8) is None
    old.save(tmp_path / "again.safetensors")
    assert (tmp_path / "again.safetensors").read_bytes() == (tmp_path / "old.safetensors").read_bytes()
    fresh = dataclasses.replace(calibration, ranges=(ImageRange(seed=9, first=0, stop=5),))
    assert np.array_equal(old.merge(fresh).coarser_sum, calibration.coarser_sum)


def test_parts_merge_to_the_whole(calibration, tiny_model_path, tmp_path) -> None:
    model = load_model(tiny_model_path)
    parts = [
        calibrate(model, SPEC, count, first_image=first, sensitivity_samples=most)
        for first, count, most in ((2, 3, 1), (0, 2, 2))
    ]
    merged = parts[0].merge(parts[1])
    np.testing.assert_allclose(merged.coarser_sum, calibration.coarser_sum, rtol=1e-4, atol=1e-9)
    calibration.save(tmp_path / "kept.safetensors")
    assert Calibration.load(tmp_path / "kept.safetensors").sha256 == calibration.sha256 != merged.sha256


def test_a_stochastic_sampler_has_none(tiny_model_path) -> None:
    model, spec = load_model(tiny_model_path), SamplingSpec(num_steps=4, solver="sde")
    assert coarser_sum((model,), spec, ImageRange(seed=0, first=0, stop=1), (3, 8, 8)).shape == (0, 3)
    assert calibrate(model, spec, num_samples=1, sensitivity_samples=1).coarser_error(2) is None
