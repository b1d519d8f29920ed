"""Sensitivities against the derivative of the trajectory, taken by automatic differentiation."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from ddt_accel import SamplingSpec, calibrate, draw_labels, draw_noise, load_model
from ddt_accel.calibration import sensitivity as under_test
from ddt_accel.calibration.sensitivity import measured_steps, sensitivity_sum
from ddt_accel.networks.ddt.network import DDT
from ddt_accel.sampling.noise import ImageRange

SHAPE = (3, 8, 8)


def final(model: DDT, spec: SamplingSpec, noise: Tensor, labels: Tensor, step: int, error: Tensor | None) -> Tensor:
    """The end of a plain Euler trajectory, `error` [2B, L, D] added to the state of one step; keeps the states."""
    x, y = noise, torch.cat([labels, torch.full_like(labels, model.config.num_classes)])
    for k, t in enumerate(spec.times.tolist()):
        state = model.encode(torch.cat([x, x]), torch.full((len(y),), t, dtype=x.dtype), y)
        state = state + error if error is not None and k == step else state
        c, u = model.decode(torch.cat([x, x]), state).chunk(2)
        x = x + (spec.grid[k + 1] - spec.grid[k]) * (u + spec.guidance_weights[k] * (c - u))
    return x


def all_states(model: DDT, spec: SamplingSpec, noise: Tensor, labels: Tensor) -> list[Tensor]:
    x, y, states = noise, torch.cat([labels, torch.full_like(labels, model.config.num_classes)]), []
    for k, t in enumerate(spec.times.tolist()):
        states.append(model.encode(torch.cat([x, x]), torch.full((len(y),), t), y))
        c, u = model.decode(torch.cat([x, x]), states[-1]).chunk(2)
        x = x + (spec.grid[k + 1] - spec.grid[k]) * (u + spec.guidance_weights[k] * (c - u))
    return states


def test_they_are_the_derivative(tiny_model_path, monkeypatch) -> None:
    model = load_model(tiny_model_path)
    spec = SamplingSpec(num_steps=5, guidance=1.6)
    monkeypatch.setattr(under_test, "DISTURBANCE", 0.02)
    total = sensitivity_sum((model,), spec, ImageRange(seed=3, first=0, stop=2), SHAPE)
    noise, labels = draw_noise(SHAPE, seed=3, indices=range(2)), draw_labels(4, seed=3, indices=range(2))
    states = all_states(model, spec, noise, labels)
    assert total[0].tolist() == [0, 0, 0]
    for step in range(1, 5):
        error = states[step - 1] - states[step]
        with sdpa_kernel(SDPBackend.MATH):  # the fused kernel has no forward derivative
            _, slope = torch.func.jvp(
                lambda e, step=step: final(model, spec, noise, labels, step, e), (torch.zeros_like(error),), (error,)
            )
        squared = error.square().sum(-1).mean(-1).view(2, 2).mean(0)
        ratio = slope.square().flatten(1).mean(1) / squared
        count, mean, squares = total[step] / [1, 2, 2]
        assert count == 2
        assert mean == pytest.approx(ratio.mean().item(), rel=0.05)
        assert squares == pytest.approx(ratio.square().mean().item(), rel=0.1)


@pytest.mark.parametrize("n", [1, 2, 10, 50, 51, 100, 250])
def test_they_cost_at_most_thirty_trajectories(n: int) -> None:
    spec = SamplingSpec(num_steps=n, guidance_interval=(0.3, 0.8))
    assert 1 + sum(n - step for step in measured_steps(spec)) / n <= 30


def test_what_was_not_measured_lies_between_and_never_across_guidance(tiny_model_path, monkeypatch) -> None:
    model, spec = load_model(tiny_model_path), SamplingSpec(num_steps=12, guidance=3.0, guidance_interval=(0.45, 1.0))
    every = calibrate(model, spec, num_samples=2).sensitivity
    monkeypatch.setattr(under_test, "MAX_MEASURED", 4)
    some = calibrate(model, spec, num_samples=2).sensitivity
    measured = measured_steps(spec)
    assert len(measured) < 11
    np.testing.assert_allclose(some[measured], every[measured], rtol=1e-5)
    guided = spec.guidance_weights != 1
    for part in (guided, ~guided):
        known = [k for k in measured if part[k]]
        assert some[part].min() >= every[known].min() * 0.999
        assert some[part].max() <= every[known].max() * 1.001


def test_parts_merge_to_the_whole(tiny_model_path) -> None:
    model, spec = load_model(tiny_model_path), SamplingSpec(num_steps=4)
    whole = calibrate(model, spec, num_samples=4, batch_size=2, sensitivity_samples=4)
    parts = [calibrate(model, spec, 2, batch_size=2, first_image=first) for first in (0, 2)]
    merged = parts[1].merge(parts[0])
    for name in ("gram_sum", "mean_sum", "modulation_sum", "sensitivity_sum"):
        np.testing.assert_allclose(getattr(merged, name), getattr(whole, name), rtol=1e-12, atol=1e-12)


def test_gram_matrix_and_means_are_those_of_the_states(tiny_model_path) -> None:
    model, spec = load_model(tiny_model_path), SamplingSpec(num_steps=4, guidance=1.4)
    calibration = calibrate(model, spec, num_samples=3, batch_size=2, sensitivity_samples=0)
    noise, labels = draw_noise(SHAPE, seed=0, indices=range(3)), draw_labels(4, seed=0, indices=range(3))
    states = torch.stack(all_states(model, spec, noise, labels)).double()
    tokens = states.shape[2]
    for branch, rows in enumerate((slice(0, 3), slice(3, 6))):
        flat = states[:, rows].flatten(1)
        expected = (flat @ flat.T / (3 * tokens)).numpy()
        np.testing.assert_allclose(calibration.gram_sum[branch] / 3, expected, rtol=1e-5)
    np.testing.assert_allclose(calibration.mean, states.mean((1, 2)).numpy(), atol=1e-6)
    modulations = torch.stack([model.modulations(state.float()).mean((0, 1)) for state in states])
    np.testing.assert_allclose(calibration.mean_modulations, modulations.numpy(), atol=1e-5)
    assert calibration.sensitivity is None
