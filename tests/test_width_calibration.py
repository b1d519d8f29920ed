"""What is calibrated of nested widths, against loops written out over the narrow networks."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from test_widths import random_network
from torch import Tensor

from ddt_accel import Calibration, SamplingSpec, Schedule, calibrate, draw_labels, draw_noise, sample
from ddt_accel.artifacts import write_arrays
from ddt_accel.calibration import calibrate as under_test
from ddt_accel.calibration import sensitivity
from ddt_accel.calibration.closed_loop import narrow_runs, no_shared_sum
from ddt_accel.calibration.narrow_decoders import _measured
from ddt_accel.calibration.resample import interpolation, resample
from ddt_accel.calibration.statistics import FORMAT, VERSION
from ddt_accel.errors import ArtifactError, ConfigError, MismatchError, NumericsError
from ddt_accel.networks.dynamic.widths import narrow
from ddt_accel.networks.split import SplitNetwork
from ddt_accel.solver.with_widths import solve_narrowest

SHAPE = (3, 8, 8)
SPEC = SamplingSpec(num_steps=5, guidance=1.5, guidance_interval=(0.3, 0.9))
WIDTHS = (1.0, 0.75, 0.5)


@pytest.fixture(scope="module")
def network() -> SplitNetwork:
    return random_network("ddt")


@pytest.fixture(scope="module")
def calibration(network) -> Calibration:
    """Three images, the errors of two of them followed."""
    return calibrate(network, SPEC, num_samples=3, batch_size=2, sensitivity_samples=2)


@torch.inference_mode()
def trajectory(network: SplitNetwork, indices: range, decoders: dict[int, float]) -> tuple[list[list[Tensor]], Tensor]:
    """Euler, unshared: the states [2B, L, D] by evaluation and width, and the end."""
    networks = {width: narrow(network, width) for width in WIDTHS}
    x = draw_noise(SHAPE, seed=0, indices=indices)
    labels = draw_labels(5, seed=0, indices=indices)
    y = torch.cat([labels, torch.full_like(labels, 5)])
    states = []
    for k, (t, w) in enumerate(zip(SPEC.times.tolist(), SPEC.guidance_weights.tolist(), strict=True)):
        both, times = torch.cat([x, x]), torch.full((len(y),), t)
        states.append([networks[width].encode(both, times, y) for width in WIDTHS])
        modulations = network.modulations(states[-1][0])
        c, u = networks[decoders.get(k, 1.0)].decode_modulated(both, modulations).chunk(2)
        x = x + (SPEC.grid[k + 1] - SPEC.grid[k]) * (u + w * (c - u))
    return states, x.double()


def test_states_of_narrow_encoders_are_those_along_the_complete_trajectory(network, calibration) -> None:
    states, _ = trajectory(network, range(3), {})
    stacked = torch.stack([state.double() for row in states for state in row])  # [E · W, 2B, L, D]
    flat = stacked.flatten(1)
    sums = calibration.width_sums
    tokens = stacked.shape[2]
    np.testing.assert_allclose(sums.gram_sum / 3, (flat @ flat.T / (6 * tokens)).numpy(), rtol=1e-4, atol=1e-4)
    means = stacked.mean((1, 2)).view(5, 3, -1)
    np.testing.assert_allclose(sums.mean_sum / 3, means[:, 1:].numpy(), atol=1e-5)
    modulations = network.modulations(means[:, 1:].float())
    statistics = calibration.widths
    np.testing.assert_allclose(statistics.mean_modulations, modulations.numpy(), atol=1e-4)
    centred = (stacked - stacked.mean((1, 2), keepdim=True)).flatten(1)
    expected = (centred @ centred.T / (6 * tokens)).view(5, 3, 5, 3)
    np.testing.assert_allclose(statistics.gram, expected.numpy(), rtol=1e-3, atol=1e-4)
    # The complete network's part is what is calibrated without widths.
    np.testing.assert_allclose(statistics.gram[:, 0, :, 0], calibration.gram - calibration.mean_gram, rtol=1e-9)


def test_effects_of_narrow_decoders_are_those_of_each_alone(network, calibration) -> None:
    _, end = trajectory(network, range(2), {})
    effects = [trajectory(network, range(2), {i: v})[1] - end for i in range(5) for v in WIDTHS[1:]]
    flat = torch.stack(effects).flatten(1)
    sums = calibration.width_sums
    assert sums.effect_count.tolist() == [2] * 5
    expected = (flat @ flat.T / flat[0].numel()).numpy()
    np.testing.assert_allclose(sums.effect_sum / 2, expected, rtol=1e-2, atol=1e-5 * expected.max())
    assert np.array_equal(calibration.widths.effects.reshape(10, 10), sums.effect_sum / 2)


def test_schedules_that_are_narrow_everywhere_are_run(network, calibration) -> None:
    """As the batch's own statistics have them solved, whose predictions nothing has corrected yet."""
    sums = calibrate(network, SPEC, num_samples=2, sensitivity_samples=2)
    bare = dataclasses.replace(
        sums,
        shared_sum=no_shared_sum(SPEC),
        width_sums=dataclasses.replace(sums.width_sums, shared_sum=np.zeros_like(sums.width_sums.shared_sum)),
    )
    assert narrow_runs(SPEC) == [2, 5]
    assert np.array_equal(sums.width_sums.shared_sum, calibration.width_sums.shared_sum)
    noise, labels = draw_noise(SHAPE, seed=0, indices=range(2)), draw_labels(5, seed=0, indices=range(2))
    unshared = sample(network, Schedule.full(SPEC), noise, labels).double()
    for row, schedule in zip(sums.width_sums.shared_sum, solve_narrowest(bare, [2, 5]), strict=True):
        assert set(schedule.encoder_widths) == set(schedule.refresh_steps)
        assert set(schedule.encoder_widths.values()) == {0.5}
        error = (sample(network, schedule, noise, labels).double() - unshared).square().mean().item()
        assert row == pytest.approx([2, 2 * error, 2 * schedule.predicted_error**2], rel=1e-4)
    # So that of these very images predictions are what is measured.
    for row, schedule in zip(sums.width_sums.shared_sum, solve_narrowest(sums, [2, 5]), strict=True):
        if schedule.budget in (2, 5):
            assert 2 * schedule.predicted_error**2 == pytest.approx(row[1], rel=1e-6)


def test_parts_merge_and_continue_to_the_whole(network, calibration, tmp_path) -> None:
    parts = [
        calibrate(network, SPEC, n, first_image=first, batch_size=2, sensitivity_samples=followed)
        for first, n, followed in ((0, 2, 2), (2, 1, 0))
    ]
    for merged in (parts[0].merge(parts[1]), parts[1].merge(parts[0])):
        for name, array in calibration.width_sums.arrays().items():
            np.testing.assert_allclose(merged.width_sums.arrays()[name], array, rtol=1e-9, atol=1e-12)
    parts[0].save(tmp_path / "partial.safetensors")
    beginning = Calibration.load(tmp_path / "partial.safetensors")
    settings = {"num_samples": 3, "batch_size": 2, "sensitivity_samples": 2}
    assert calibrate(network, SPEC, **settings, resume=beginning).sha256 == calibration.sha256
    with pytest.raises(MismatchError, match="made at other widths"):
        calibrate(network, SPEC, **settings, resume=dataclasses.replace(beginning, width_sums=None))
    with pytest.raises(MismatchError, match=r"the widths \[1.0, 0.75, 0.5\] and \[1.0\] cannot be merged"):
        parts[0].merge(dataclasses.replace(parts[1], width_sums=None))


def test_files_have_them_only_where_there_are_several_widths(network, calibration, tmp_path) -> None:
    calibration.save(tmp_path / "widths.safetensors")
    read = Calibration.load(tmp_path / "widths.safetensors")
    assert read.sha256 == calibration.sha256
    assert read.width_sums.widths == WIDTHS
    whole = random_network("ddt")
    whole.source = dataclasses.replace(whole.source, widths=())
    plain = calibrate(whole, SPEC, num_samples=3, batch_size=2, sensitivity_samples=2)
    assert plain.widths is None
    assert not any("width" in name for name in (*plain._arrays(), *plain._document()))
    assert plain.sha256 == dataclasses.replace(calibration, width_sums=None).sha256
    guided = calibrate(network, SPEC, num_samples=1, sensitivity_samples=0, guide=random_network("pixnerd"))
    assert guided.width_sums is None
    wrong = dataclasses.replace(calibration.width_sums, widths=(1.0, 0.5))
    with pytest.raises(ConfigError, match=r"width_gram_sum is float64\[15, 15\]; expected float64 \[10, 10\]"):
        dataclasses.replace(calibration, width_sums=wrong)
    document = {**calibration._document(), "widths": [0.5, 1.0, 0.75]}
    write_arrays(tmp_path / "damaged.safetensors", FORMAT, VERSION, document, calibration._arrays())
    with pytest.raises(ArtifactError, match="expected 1 and others below it"):
        Calibration.load(tmp_path / "damaged.safetensors")


def test_a_decoder_without_heads_has_no_effects() -> None:
    """PixNerd's: only its encoder becomes narrow."""
    found = calibrate(random_network("pixnerd"), SPEC, num_samples=1, sensitivity_samples=1)
    assert found.width_sums.followed == 0
    assert found.widths.effects is None
    assert found.widths.gram.shape == (5, 3, 5, 3)


def test_bars_count_them(network) -> None:
    stages: list[list[int]] = []

    def on_stage(label: str, total: int):
        stages.append([total, 0])

        def advance() -> None:
            stages[-1][1] += 1

        return advance

    for steps, followed in ((None, 1), (2, 1), (None, 0)):
        calibrate(
            network, SPEC, 3, batch_size=2, sensitivity_samples=followed, sensitivity_steps=steps, on_stage=on_stage
        )
    assert [total for total, _ in stages] == [done for _, done in stages]


def test_what_was_not_measured_lies_between(network, monkeypatch) -> None:
    """On a line between its neighbours, never across a change of guidance; merged ones need all to have measured."""
    spec = SamplingSpec(num_steps=9, guidance=1.5, guidance_interval=(0.45, 1.0))
    every = calibrate(network, spec, 2, sensitivity_samples=2)
    some = calibrate(network, spec, 2, seed=1, sensitivity_samples=2, sensitivity_steps=3)
    assert np.flatnonzero(some.width_sums.effect_count).tolist() == [0, 1, 4, 5, 7, 8]
    effects = some.widths.effects
    np.testing.assert_allclose(effects[2], 2 / 3 * effects[1] + 1 / 3 * effects[4], rtol=1e-9)
    np.testing.assert_allclose(effects[6], (effects[5] + effects[7]) / 2, rtol=1e-9)
    both = every.merge(some).widths.effects
    known = np.flatnonzero(some.width_sums.effect_count)
    expected = (every.widths.effects + effects) / 2
    np.testing.assert_allclose(both[known][:, :, known], expected[known][:, :, known], rtol=1e-9)
    np.testing.assert_allclose(both[6], (both[5] + both[7]) / 2, rtol=1e-9)
    eigenvalues = np.linalg.eigvalsh(both.reshape(18, 18))
    assert eigenvalues[0] > -1e-9 * eigenvalues[-1]


def test_other_grids(network, calibration) -> None:
    """The same grid changes nothing; half the steps have twice the effect each."""
    fine = SamplingSpec(num_steps=12, guidance=1.5, guidance_interval=(0.3, 0.9))
    found = calibrate(network, fine, 2, sensitivity_samples=2)
    same = resample(found, dataclasses.replace(fine)).widths
    for name in ("gram", "mean_modulations", "effects"):
        np.testing.assert_allclose(getattr(same, name), getattr(found.widths, name), rtol=1e-6, atol=1e-9)
    coarse = dataclasses.replace(fine, num_steps=6)
    half = resample(found, coarse).widths
    weights = interpolation(fine.times, coarse.times)
    for u in range(3):
        for v in range(3):
            expected = weights @ found.widths.gram[:, u, :, v] @ weights.T
            np.testing.assert_allclose(half.gram[:, u, :, v], expected, rtol=1e-9)
    np.testing.assert_allclose(half.effects, 4 * found.widths.effects[::2][:, :, ::2], rtol=1e-5)


def test_narrow_states_that_are_not_finite_stop_it(network, monkeypatch) -> None:
    seeing = under_test.see_narrow

    def broken(backend, session, out) -> None:
        seeing(backend, session, out)
        out[1, 0, 2, 3] = float("nan")

    monkeypatch.setattr(under_test, "see_narrow", broken)
    with pytest.raises(NumericsError, match=r"not finite at step 0 .* seed 0, images 0 … 0"):
        calibrate(network, SPEC, 1, sensitivity_samples=0)


def test_measured_evaluations_are_those_of_sensitivities_and_the_first() -> None:
    for steps in (1, 2, 50, 130):
        spec = SamplingSpec(num_steps=steps)
        assert _measured(spec, None) == [0, *sensitivity.measured_steps(spec)]
