"""Trajectories that end before the data, closed guidance intervals, and networks without a null label."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from itertools import pairwise

import numpy as np
import pytest
import torch

from ddt_accel import Calibration, SamplingSpec, Schedule, calibrate, draw_labels, draw_noise, solve
from ddt_accel.artifacts import checksum
from ddt_accel.backends.pytorch import TorchBackend
from ddt_accel.calibration.resample import resample
from ddt_accel.errors import ConfigError, MismatchError
from ddt_accel.evaluation.converged import converged_course
from ddt_accel.fitting.closed_form import closed_form
from ddt_accel.fitting.scalars import Scalars
from ddt_accel.fitting.trajectory import fitted_trajectory
from ddt_accel.networks.rae.config import DiTDHConfig
from ddt_accel.networks.rae.network import DiTDH
from ddt_accel.report.baseline import baseline_of
from ddt_accel.sampling.noise import ImageRange
from ddt_accel.sampling.program import compile_program
from ddt_accel.sampling.reference import converged
from ddt_accel.sampling.trajectory import run
from ddt_accel.spec import SOLVERS

ENDING = SamplingSpec(
    num_steps=8, guidance=1.5, guidance_interval=(0.0, 1.0), timeshift=2.0, end=0.9, closed_interval=True
)
SHAPE = (3, 4, 4)


def tiny(*, null: bool = True) -> DiTDH:
    """A network for [3, 4, 4], all of its weights random."""
    torch.manual_seed(0)
    config = DiTDHConfig(
        input_size=4, patch_size=1, in_channels=3, hidden_size=[8, 16], depth=[2, 1], num_heads=[1, 2], mlp_ratio=4.0,
        class_dropout_prob=0.1 if null else 0.0, num_classes=5, use_qknorm=False, use_swiglu=True, use_rope=True,
        use_rmsnorm=True, wo_shift=False, use_pos_embed=True,
    )  # fmt: skip
    network = DiTDH(config).eval().requires_grad_(False)
    for value in network.parameters():
        value.copy_(0.2 * torch.randn_like(value))
    return network


@pytest.mark.parametrize("steps", [1, 2, 7, 10, 49, 250])
@pytest.mark.parametrize("shift", [1.0, 2.1213203, 6.928203])
def test_grid_is_that_of_torch(steps: int, shift: float) -> None:
    tau = torch.linspace(0.0, 0.999, steps + 1)
    expected = tau / (tau + (1 - tau) * shift)
    spec = SamplingSpec(num_steps=steps, timeshift=shift, end=0.999)
    assert np.array_equal(spec.grid, expected.double().numpy())
    assert spec.grid[-1] == pytest.approx(spec.end_time, abs=1e-6)


@pytest.mark.parametrize("solver", SOLVERS)
def test_every_solver_covers_the_grid(solver: str) -> None:
    """Constant velocities lead exactly from the first time to the last, and lines of them where the order is two."""
    spec = replace(ENDING, solver=solver)
    rows = compile_program(Schedule.full(spec)).evaluations
    assert len(rows) == spec.num_evaluations == (16 if solver == "heun" else 8)
    if solver != "sde":
        total = sum(weight for row in rows for _, weight in row.update.velocities)
        assert total == pytest.approx(spec.grid[-1], abs=1e-6)
    if solver == "heun":  # the corrector of the last step, too, for the network knows its end
        assert rows[-1].time == spec.grid[-1]
        moved = sum(weight * rows[j].time for row in rows for j, weight in row.update.velocities)
        assert moved == pytest.approx(spec.grid[-1] ** 2 / 2, abs=1e-6)


def test_other_grids_end_at_the_same_time() -> None:
    for shift in (1.0, 0.6, 3.4):
        other = ENDING.on_grid(5, timeshift=shift, solver="ab2")
        assert other.grid[-1] == pytest.approx(ENDING.grid[-1], abs=1e-5)
        assert other.aim == ENDING.aim
    assert ENDING.on_grid(5, timeshift=2.0, solver="euler").end == 0.9
    assert converged(ENDING, 40).spec.grid[-1] == pytest.approx(ENDING.grid[-1], abs=1e-5)
    assert replace(ENDING, end=0.95).aim != ENDING.aim != replace(ENDING, closed_interval=False).aim


def test_an_end_of_a_closed_interval_that_is_a_time_is_inside() -> None:
    """However float32 rounds the two: 0.3 and 0.7 of 10 steps, and what is added up from steps of several."""
    for solver in ("euler", "ab3"):
        spec = SamplingSpec(num_steps=9, solver=solver, end=0.9, guidance_interval=(0.3, 0.7), closed_interval=True)
        assert np.flatnonzero(spec.guidance_weights != 1).tolist() == [3, 4, 5, 6, 7]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"end": 1.0}, "leave it out for 1"),
        ({"end": 0.0}, "give a time in"),
        ({"end": "0.9"}, "give a time in"),
        ({"end": 0.9, "last_step": 0.1}, "give one of them"),
        ({"closed_interval": 1}, "give true or false"),
        ({"closed_interval": True, "guidance": 1.0}, "guides nothing"),
        ({"end": 1e-42, "num_steps": 10_000}, "an end of 1e-42 .* steps of length 0"),
    ],
)
def test_bad_settings_are_refused_in_a_sentence(changes, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        SamplingSpec(**changes)


def test_files_of_samplers_without_an_end_read_as_before(tmp_path) -> None:
    old = asdict(SamplingSpec())
    del old["end"], old["closed_interval"]
    assert SamplingSpec.from_dict(old) == SamplingSpec()
    # The same words, so that checksums of old files are those of new ones.
    assert checksum(old) == checksum(SamplingSpec().document())
    assert SamplingSpec.from_dict(json.loads(json.dumps(ENDING.document()))) == ENDING
    Schedule.full(ENDING).save(tmp_path / "schedule.json")
    assert Schedule.load(tmp_path / "schedule.json") == Schedule.full(ENDING)
    with pytest.raises(ConfigError, match="exactly"):
        SamplingSpec.from_dict(old | {"ends": 0.9})


def test_differences_are_named() -> None:
    assert ENDING.differences(replace(ENDING, end=None, closed_interval=False)) == [
        "end: 0.9, not None", "closed interval: True, not False",
    ]  # fmt: skip


@pytest.fixture(scope="module")
def calibration() -> Calibration:
    return calibrate(tiny(), ENDING, 4, latent_shape=SHAPE, sensitivity_samples=2, batch_size=2)


def test_calibrate_solve_and_sample_to_an_end(calibration: Calibration, tmp_path) -> None:
    calibration.save(tmp_path / "calibration.safetensors")
    loaded = Calibration.load(tmp_path / "calibration.safetensors")
    assert loaded.spec == ENDING
    assert loaded.sha256 == calibration.sha256
    assert calibration.coarser_error(8) is not None
    for solver in ("euler", "heun", "ab2"):
        statistics = resample(calibration, ENDING.on_grid(6, timeshift=3.0, solver=solver))
        assert solve(statistics, budget=3).budget == 3
    schedule = solve(calibration, budget=4)
    assert schedule.spec == ENDING
    with pytest.raises(MismatchError, match="ends included, not"):
        resample(calibration, replace(ENDING, closed_interval=False))


def test_fitted_numbers_stay_within_the_end(calibration: Calibration) -> None:
    network, images = tiny(), ImageRange(seed=5, first=0, stop=4)
    backend = TorchBackend(network)
    path = converged_course(backend, ENDING, 32, images, SHAPE, 4)
    assert path.times[-1] == pytest.approx(ENDING.grid[-1], abs=1e-5)
    for solver in ("euler", "heun"):
        schedule = Schedule.full(replace(ENDING, num_steps=4, solver=solver))
        labels, noise = draw_labels(5, seed=5, indices=range(4)), draw_noise(SHAPE, seed=5, indices=range(4))
        before = run(backend, compile_program(schedule), noise, labels)
        after = run(backend, compile_program(closed_form(backend, schedule, path, 4)), noise, labels)
        assert (after - path.ends).norm() < 0.5 * (before - path.ends).norm()
        scalars = Scalars(schedule, network.modulation_bias.numpy())
        assert torch.allclose(fitted_trajectory(network, scalars, noise, labels).end.float(), before, atol=1e-5)
        with torch.no_grad():
            scalars.gaps += torch.where(scalars.gaps.isfinite(), torch.randn_like(scalars.gaps), 0.0)
        moved = scalars.schedule()
        assert all(0 <= a <= b <= ENDING.end_time + 1e-5 for a, b in pairwise(moved.times or ()))
    with pytest.raises(ConfigError, match="times is"):
        replace(moved, times=(*moved.times[:-1], 0.95))


def test_a_fit_stands_beside_the_sampler_that_it_leads_to(calibration: Calibration) -> None:
    fitted = replace(Schedule.full(ENDING), objective="fitted")
    assert baseline_of(fitted, calibration) == ENDING
    with pytest.raises(MismatchError, match="--end"):
        baseline_of(replace(fitted, spec=replace(ENDING, end=0.8)), calibration)
    with pytest.raises(MismatchError, match="ends included"):
        baseline_of(replace(fitted, spec=replace(ENDING, closed_interval=False)), calibration)


def test_an_interval_without_evaluations_is_refused() -> None:
    spec = replace(ENDING, guidance_interval=(0.99, 1.0))
    with pytest.raises(ConfigError, match="guides nothing; widen it"):
        calibrate(tiny(), spec, 2, latent_shape=SHAPE)


def test_what_has_no_null_label_is_not_guided() -> None:
    network, unguided = tiny(null=False), replace(ENDING, guidance=1.0, closed_interval=False)
    with pytest.raises(ConfigError, match="give guidance 1"):
        calibrate(network, ENDING, 2, latent_shape=SHAPE)
    noise, labels = draw_noise(SHAPE, seed=0, indices=range(2)), torch.tensor([0, 4])
    backend, guided = TorchBackend(network), compile_program(Schedule.full(ENDING))
    with pytest.raises(ConfigError, match="give guidance 1"):
        run(backend, guided, noise, labels)
    with pytest.raises(ConfigError, match="no null label"):
        run(backend, compile_program(Schedule.full(unguided)), noise, torch.tensor([0, 5]))
    scalars = Scalars(Schedule.full(ENDING), network.modulation_bias.numpy())
    with pytest.raises(ConfigError, match="give guidance 1"):
        fitted_trajectory(network, scalars, noise, labels)
    statistics = calibrate(network, unguided, 3, latent_shape=SHAPE, sensitivity_samples=1, batch_size=2)
    assert np.array_equal(*statistics.branch_grams)
    assert np.allclose(statistics.similarity.diagonal(), 1)
    assert statistics.sensitivity is not None
    assert solve(statistics, budget=3).budget == 3
    schedule = solve(statistics, budget=3)
    assert torch.isfinite(run(backend, compile_program(schedule), noise, labels)).all()
