"""TCC's estimates along the shared trajectory, against a loop over the network by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ddt_accel import SamplingSpec, calibrate, load_model
from ddt_accel.rivals.tcc import consistent, variants
from ddt_accel.sampling.noise import ImageRange, draw_labels, draw_noise

SHAPE, IMAGES = (3, 8, 8), ImageRange(seed=3, first=0, stop=3)
SPEC = SamplingSpec(num_steps=6, guidance=1.5, guidance_interval=(0.0, 1.0))


@torch.inference_mode()
def by_hand(model, schedule):
    """Weights and mean states of every evaluation, by least squares on all states at once."""
    x = draw_noise(SHAPE, seed=3, indices=range(3))
    y = draw_labels(model.config.num_classes, seed=3, indices=range(3))
    labels, grid = torch.cat([y, torch.full_like(y, model.config.null_label)]), SPEC.grid
    states, means, rows = {}, [], {}
    for k, time in enumerate(SPEC.times):
        both = torch.cat([x, x])
        state = model.encode(both, torch.full((6,), float(time)), labels)
        means.append(state.mean((0, 1)))
        if k in schedule.refresh_steps:
            states[k] = state - means[k]
            used = state
        else:
            drawn = [r for r, _ in schedule.forecast_at(k)]
            inputs = np.stack([states[r].double().numpy().ravel() for r in drawn], axis=1)
            weights, *_ = np.linalg.lstsq(inputs, (state - means[k]).double().numpy().ravel(), rcond=None)
            rows[k] = dict(zip(drawn, weights, strict=True))
            used = means[k] + sum(float(w) * states[r] for r, w in rows[k].items())
        conditional, unconditional = model.decode(both, used).chunk(2)
        guided = 1.5 if SPEC.guidance_weights[k] != 1 else 1.0
        x = x + float(grid[k + 1] - grid[k]) * torch.lerp(unconditional, conditional, guided)
    return rows, torch.stack(means)


@pytest.mark.parametrize("index", [0, 2])
def test_weights_and_means_are_those_of_the_shared_trajectory(tiny_model_path, index) -> None:
    model = load_model(tiny_model_path)
    statistics = calibrate(model, SPEC, 2, sensitivity_samples=0)
    before = variants(statistics)[index].of(3)
    after = consistent((model,), before, IMAGES, SHAPE)
    rows, means = by_hand(model, before)
    assert after.refresh_steps == before.refresh_steps
    assert after.forecasts.keys() == rows.keys()
    for k, row in after.forecasts.items():
        for r, weight in row:
            assert weight == pytest.approx(rows[k][r], abs=2e-3)
    np.testing.assert_allclose(after.mean_modulations, model.modulations(means[None])[0].numpy(), atol=2e-3)
    assert after.fitted_on == ((3, 0, 3),)
