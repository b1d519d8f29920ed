"""Refinement against what it claims: closer ends on its own images, and nothing kept that does not hold elsewhere."""

from __future__ import annotations

import json

import numpy as np
import pytest

from ddt_accel import SamplingSpec, Schedule, calibrate, draw_labels, draw_noise, load_model, sample
from ddt_accel.backends.pytorch import TorchBackend
from ddt_accel.errors import ConfigError
from ddt_accel.evaluation.refine import moved, refine
from ddt_accel.sampling.noise import ImageRange
from ddt_accel.solver.solve import Method, schedule_with

SPEC = SamplingSpec(num_steps=8, guidance=1.5)
SHAPE = (3, 8, 8)
IMAGES, HELD_OUT = ImageRange(seed=7, first=0, stop=6), ImageRange(seed=8, first=0, stop=6)


@pytest.fixture(scope="module")
def model(tiny_model_path):
    return load_model(tiny_model_path)


@pytest.fixture(scope="module")
def calibration(model):
    return calibrate(model, SPEC, num_samples=4)


def distance(model, schedule: Schedule, images: ImageRange) -> np.ndarray:
    indices = range(images.first, images.stop)
    noise = draw_noise(SHAPE, seed=images.seed, indices=indices)
    labels = draw_labels(4, seed=images.seed, indices=indices)
    ends = [sample(model, s, noise, labels) for s in (schedule, Schedule.full(SPEC))]
    return 10 * np.log10((ends[0] - ends[1]).square().flatten(1).mean(1).numpy() / 4)


def test_it_finds_a_better_place_for_a_bad_refresh(model, calibration) -> None:
    bad = schedule_with(calibration, (0, 6, 7), Method())
    refined = refine(
        TorchBackend(model), calibration, bad, Method(), latent_shape=SHAPE, images=IMAGES, held_out=HELD_OUT,
        batch_size=4, on_run=lambda: None,
    )  # fmt: skip
    assert refined.schedule.refresh_steps != bad.refresh_steps
    for images, gain in ((IMAGES, refined.gain), (HELD_OUT, refined.held_out_gain)):
        measured = (distance(model, bad, images) - distance(model, refined.schedule, images)).mean()
        assert gain.mean == pytest.approx(measured, abs=0.02)
        assert gain.mean > 0


def test_what_does_not_hold_elsewhere_is_given_up(model, calibration, monkeypatch) -> None:
    """Chance winners: with no bar for significance some neighbour always wins on its own images."""
    from ddt_accel.evaluation import refine as under_test

    monkeypatch.setattr(under_test, "SIGNIFICANT", -1e9)
    monkeypatch.setattr(under_test, "ROUNDS", 1)
    start = schedule_with(calibration, (0, 2, 4), Method())
    refined = refine(
        TorchBackend(model), calibration, start, Method(), latent_shape=SHAPE, images=IMAGES, held_out=HELD_OUT,
        batch_size=4, on_run=lambda: None,
    )  # fmt: skip
    kept = refined.schedule.refresh_steps == start.refresh_steps
    assert kept == (refined.held_out_gain.low <= 0)


def test_neighbours_differ_in_one_refresh() -> None:
    found = moved((0, 2, 3), 5)
    assert sorted(set(found)) == [(0, 1, 2), (0, 1, 3), (0, 2, 4), (0, 3, 4)]
    assert moved((0,), 3) == []


def test_too_few_images_are_refused(model, calibration) -> None:
    with pytest.raises(ConfigError, match="at least 4"):
        refine(
            TorchBackend(model), calibration, schedule_with(calibration, (0, 4), Method()), Method(),
            latent_shape=SHAPE, images=ImageRange(seed=7, first=0, stop=2), held_out=HELD_OUT, batch_size=4,
            on_run=lambda: None,
        )  # fmt: skip


def test_from_the_command_line(cli, workspace) -> None:
    ran = cli("solve", "-w", workspace, "-k", 2, "--refine", "--refine-images", 4, "--json")
    assert ran.code == 0, ran.err
    told = json.loads(ran.out)["refined"]
    assert list(Schedule.load(workspace / "schedule.json").refresh_steps) == told["refresh_steps"]
    assert told["schedules_run"] > 1
