"""The published statistic, streamed."""

from __future__ import annotations

import dataclasses
import gc
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from ddt_accel import Calibration, SamplingSpec, Schedule, calibrate, draw_labels, draw_noise, load_model, solve
from ddt_accel.errors import ConfigError, MismatchError, NumericsError
from ddt_accel.networks.ddt.network import DDT
from ddt_accel.sampling.noise import ImageRange

SPEC = SamplingSpec(num_steps=6, guidance=1.7, guidance_interval=(0.3, 0.9))


@pytest.fixture
def model(tiny_model_path) -> DDT:
    return load_model(tiny_model_path)


def by_definition(model: DDT, spec: SamplingSpec, indices: range) -> np.ndarray:
    """All states kept, then the mean cosine of the same token's states; both branches, Euler."""
    x = draw_noise((3, 8, 8), seed=0, indices=indices)
    labels = draw_labels(model.config.num_classes, seed=0, indices=indices)
    y = torch.cat([torch.full_like(labels, model.config.num_classes), labels])
    states = []
    for k in range(spec.num_steps):
        t = torch.full((2 * len(x),), spec.times[k], dtype=torch.float32)
        states.append(model.encode(torch.cat([x, x]), t, y))
        u, c = model.decode(torch.cat([x, x]), states[-1]).chunk(2)
        x = x + (spec.grid[k + 1] - spec.grid[k]) * (u + spec.guidance_weights[k] * (c - u))
    return np.array([[F.cosine_similarity(a.double(), b.double(), dim=-1).mean() for b in states] for a in states])


def test_it_is_the_mean_cosine_of_tokens(model: DDT) -> None:
    calibration = calibrate(model, SPEC, num_samples=5, seed=0, batch_size=2)
    np.testing.assert_allclose(calibration.similarity, by_definition(model, SPEC, range(5)), atol=2e-6)
    assert calibration.similarity.dtype == np.float64


def test_similarity_of_the_published_implementation(reference) -> None:
    """From the stored noise and labels, through the statistic's own code."""
    from ddt_accel.backends.pytorch import TorchBackend
    from ddt_accel.sampling.program import compile_program
    from ddt_accel.sampling.trajectory import run

    case, t = reference.case, reference.tensors
    names = ("num_steps", "guidance", "guidance_interval", "timeshift", "last_step")
    spec = SamplingSpec(**{name: case[name] for name in names})
    states: list[torch.Tensor] = []
    program = compile_program(Schedule.full(spec), encode_unconditional="always")
    network = load_model(reference.checkpoint, config=reference.config)
    run(TorchBackend(network, on_state=states.append), program, t["noise"], t["labels"])
    unit = F.normalize(torch.stack(states).double(), dim=-1).flatten(1)
    similarity = (unit @ unit.T / (states[0].shape[0] * states[0].shape[1])).numpy()
    # small_shifted's trajectory is chaotic (see test_sampling), which the statistic inherits.
    np.testing.assert_allclose(similarity, t["similarity"].numpy(), atol=2e-3 if spec.timeshift != 1 else 1e-5)


def test_two_runs_merge_to_one_in_any_order(model: DDT) -> None:
    whole = calibrate(model, SPEC, num_samples=8, batch_size=2)
    parts = [calibrate(model, SPEC, num_samples=n, first_image=f, batch_size=2) for f, n in ((0, 2), (2, 4), (6, 2))]
    for order in ((0, 1, 2), (2, 0, 1), (1, 2, 0)):
        merged = parts[order[0]].merge(parts[order[1]]).merge(parts[order[2]])
        np.testing.assert_allclose(merged.similarity, whole.similarity, rtol=0, atol=1e-12)
        assert merged.ranges == whole.ranges


def test_an_interrupted_run_resumes_from_what_it_finished(model: DDT, tmp_path) -> None:
    kept: list[Calibration] = []

    class KilledError(Exception):
        pass

    def kill_after_two(done: Calibration) -> None:
        done.save(tmp_path / "partial.safetensors")
        kept.append(done)
        if len(kept) == 2:
            raise KilledError

    with pytest.raises(KilledError):
        calibrate(model, SPEC, num_samples=7, batch_size=2, on_batch=kill_after_two)
    batches: list[Calibration] = []
    resumed = calibrate(
        model,
        SPEC,
        num_samples=7,
        batch_size=2,
        resume=Calibration.load(tmp_path / "partial.safetensors"),
        on_batch=batches.append,
    )
    assert [done.num_samples for done in batches] == [6, 7]
    whole = calibrate(model, SPEC, num_samples=7, batch_size=2)
    assert np.array_equal(resumed.similarity_sum, whole.similarity_sum)
    assert resumed.sha256 == whole.sha256


def test_merging_what_does_not_belong_together_is_refused(model: DDT) -> None:
    calibration = calibrate(model, SPEC, num_samples=2)
    with pytest.raises(MismatchError, match="images 0 … 1 of seed 0"):
        calibration.merge(calibration)
    with pytest.raises(MismatchError, match="guidance"):
        calibration.merge(calibrate(model, dataclasses.replace(SPEC, guidance=3.0), num_samples=2, seed=1))
    with pytest.raises(MismatchError, match="checkpoint"):
        calibration.merge(
            dataclasses.replace(calibration, checkpoint_sha256="other", ranges=(ImageRange(seed=1, first=0, stop=2),))
        )
    with pytest.raises(MismatchError, match="latents"):
        calibration.merge(calibrate(model, SPEC, num_samples=2, seed=1, latent_shape=(3, 16, 16)))


def test_memory_does_not_grow_with_samples(model: DDT) -> None:
    """What is alive after every batch, of tensors and of statistics;."""
    alive: list[int] = []

    def weigh(done: Calibration) -> None:
        tensors = sum(t.untyped_storage().nbytes() for t in gc.get_objects() if type(t) is torch.Tensor)
        alive.append(tensors + done.similarity_sum.nbytes + done.gram_sum.nbytes + len(done.ranges))

    calibrate(model, SPEC, num_samples=12, batch_size=2, sensitivity_samples=0, on_batch=weigh)
    assert len(alive) == 6
    assert max(alive) == min(alive)


def test_states_that_are_not_finite_stop_it(model: DDT) -> None:
    model.t_embedder.mlp[0].bias.data.fill_(1e38)
    model.t_embedder.mlp[2].weight.data.fill_(1e30)
    with pytest.raises(NumericsError, match=r"step 0 .* seed 4, images 0 … 1; try"):
        calibrate(model, SPEC, num_samples=2, seed=4)


@pytest.mark.parametrize("settings", [{"num_samples": 0}, {"batch_size": 0}, {"first_image": -1}, {"seed": -1}])
def test_impossible_settings_are_refused(model: DDT, settings: dict) -> None:
    with pytest.raises(ConfigError):
        calibrate(model, SPEC, **settings)


def test_a_solved_schedule_knows_where_it_comes_from(model: DDT, tmp_path) -> None:
    calibration = calibrate(model, SPEC, num_samples=2)
    schedule = solve(calibration, budget=3, forecast="hold", objective="similarity")
    assert schedule.spec == SPEC
    assert schedule.checkpoint_sha256 == model.source.sha256
    assert schedule.calibration_sha256 == calibration.sha256
    schedule.save(tmp_path / "schedule.json")
    calibration.save(tmp_path / "calibration.safetensors")
    assert Schedule.load(tmp_path / "schedule.json") == schedule
    assert Calibration.load(tmp_path / "calibration.safetensors").sha256 == calibration.sha256


@pytest.mark.parametrize(("done", "samples", "followed"), [(0, 5, 3), (2, 5, 3), (4, 5, 1), (5, 5, 2), (0, 1, 0)])
def test_it_tells_how_far_it_is(model: DDT, done: int, samples: int, followed: int) -> None:
    """As many steps as were foretold, sensitivities among them, from wherever an interrupted run goes on."""
    settings = {"batch_size": 2, "sensitivity_samples": followed}
    beginning = calibrate(model, SPEC, done, **settings) if done else None
    totals, seen = [], []

    def on_stage(label: str, total: int) -> Callable[[], None]:
        totals.append(total)
        return lambda: seen.append(label)

    calibrate(model, SPEC, samples, **settings, resume=beginning, on_stage=on_stage)
    assert totals == [len(seen)]
    assert (len(seen) > 0) == (done < samples)
