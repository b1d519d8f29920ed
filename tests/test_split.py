"""Refreshes of the unconditional branch at steps of its own."""

from __future__ import annotations

import dataclasses
import itertools
import json

import numpy as np
import pytest
import torch

from ddt_accel import SamplingSpec, Schedule, calibrate, draw_noise, load_model, sample
from ddt_accel.backends.pytorch import TorchBackend
from ddt_accel.errors import ConfigError
from ddt_accel.evaluation.benchmark import network_rows
from ddt_accel.sampling.program import compile_program
from ddt_accel.sampling.trajectory import run
from ddt_accel.solver.forecast import forecast_error, forecast_weights
from ddt_accel.solver.solve import Method, solve_curve
from ddt_accel.solver.split import encoder_runs, split

SPEC = SamplingSpec(num_steps=8, guidance=1.8, guidance_interval=(0.3, 1.0))  # guided: steps 3 to 7
METHOD = Method(centred=False)


@pytest.fixture(scope="module")
def model(tiny_model_path):
    return load_model(tiny_model_path)


@pytest.fixture(scope="module")
def calibration(model):
    return calibrate(model, SPEC, num_samples=4)


SCHEDULES = {
    "hold": Schedule(spec=SPEC, refresh_steps=(0, 4), unconditional_steps=(1, 5, 6)),
    "same": Schedule(spec=SPEC, refresh_steps=(0, 2, 4), unconditional_steps=(0, 2, 4)),
    "forecast": Schedule(
        spec=SPEC,
        refresh_steps=(0, 1, 5),
        forecasts={2: ((0, -0.5), (1, 1.4)), 3: ((0, 0.3), (1, 0.6)), 6: ((1, -1.0), (5, 2.1))},
        unconditional_steps=(2, 3, 6),
        unconditional_forecasts={4: ((2, -1.0), (3, 1.8)), 5: ((3, 0.7),), 7: ((3, 0.2), (6, 0.9))},
    ),
}


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("biased", [False, True])
def test_each_branch_goes_its_own_way(model, name: str, biased: bool) -> None:
    """Against a loop over whole states in which the branches know nothing of each other."""
    schedule = SCHEDULES[name]
    bias = model.modulations(torch.zeros(1, 1, model.config.hidden_size)).flatten().numpy()
    if biased:
        schedule = dataclasses.replace(schedule, mean_modulations=bias[None])
    else:  # weights that add up to one need no bias

        def affine(rows):
            return {k: tuple((r, w / sum(w for _, w in row)) for r, w in row) for k, row in rows.items()}

        schedule = dataclasses.replace(
            schedule,
            forecasts=affine(schedule.forecasts),
            unconditional_forecasts=affine(schedule.unconditional_forecasts),
        )
    noise, labels = draw_noise((3, 8, 8), seed=1, indices=range(2)), torch.tensor([2, 0])
    null = torch.full_like(labels, model.config.num_classes)
    x, kept = noise, ({}, {})
    for k, (t, w) in enumerate(zip(SPEC.times.tolist(), SPEC.guidance_weights.tolist(), strict=True)):
        velocities = []
        steps = (schedule.refresh_steps, schedule.unconditional_steps)
        for side, classes in enumerate((labels, null)):
            if k in steps[side]:
                kept[side][k] = model.encode(x, torch.full((2,), t), classes)
            if side == 0 or w != 1:
                row = schedule.forecast_at(k, unconditional=side == 1)
                velocities.append(model.decode(x, sum(weight * kept[side][r] for r, weight in row)))
        v = velocities[0] if w == 1 else velocities[1] + w * (velocities[0] - velocities[1])
        x = x + (SPEC.grid[k + 1] - SPEC.grid[k]) * v
    torch.testing.assert_close(sample(model, schedule, noise, labels), x.float(), rtol=1e-4, atol=2e-5)


def test_the_same_steps_are_the_common_schedule(model) -> None:
    split_up, common = SCHEDULES["same"], Schedule(spec=SPEC, refresh_steps=(0, 2, 4))
    noise, labels = draw_noise((3, 8, 8), seed=1, indices=range(2)), torch.tensor([2, 0])
    ends = [run(TorchBackend(model), compile_program(s), noise, labels) for s in (split_up, common)]
    torch.testing.assert_close(ends[0], ends[1], rtol=1e-5, atol=1e-6)
    # Refresh 0 serves no guided step: the common schedule does not encode the unconditional branch there.
    assert network_rows(compile_program(common))[0] == encoder_runs(common) == 5
    assert network_rows(compile_program(split_up))[0] == 5


@pytest.mark.parametrize("objective", ["sum", "power"])
@pytest.mark.parametrize("total", [4, 6, 8])
def test_the_best_split_is_the_best_of_all(calibration, total: int, objective: str) -> None:
    """Brute force over every pair of refresh sets, priced one forecast at a time."""
    method = dataclasses.replace(METHOD, objective=objective)
    gamma = {"sum": 1, "power": 2}[objective]
    common = next(s for s, _ in solve_curve(calibration, 8, method) if encoder_runs(s) >= total)
    total = encoder_runs(common)
    found = split(calibration, common, method)
    weights = SPEC.guidance_weights
    first = int(np.flatnonzero(weights != 1)[0])

    def price(branch: int, steps: tuple[int, ...], gamma: int = gamma) -> float:
        gram, factor = calibration.branch_grams[branch], np.abs((weights, 1 - weights)[branch])
        powers = 0.0
        for start, end in zip(steps, (*steps[1:], 8), strict=True):
            drawn = [step for step in steps if step <= start][-2:]
            errors = [
                factor[k]
                * calibration.sensitivity[k]
                * forecast_error(gram, drawn, forecast_weights("calibrated", gram, SPEC.times, drawn, k), k)
                for k in range(start + 1, end)
            ]
            powers += sum(errors) ** gamma
        return powers

    best = min(
        price(0, (0, *a)) + price(1, (first, *b))
        for runs in range(1, total)
        for a in itertools.combinations(range(1, 8), runs - 1)
        for b in itertools.combinations(range(first + 1, 8), total - runs - 1)
    )
    assert found.predicted_cost == pytest.approx(best ** (1 / gamma), rel=1e-6)
    squares = price(0, found.refresh_steps, 2) + price(1, found.unconditional_steps, 2)
    miss = calibration.misses.at("split", common.budget)
    assert found.predicted_error == pytest.approx(np.sqrt(squares) * miss, rel=1e-6)
    assert encoder_runs(found) == total
    assert network_rows(compile_program(found))[0] == total


def test_it_comes_back_from_its_file(calibration, tmp_path) -> None:
    made = split(calibration, solve_curve(calibration, 3, METHOD)[-1][0], METHOD)
    made.save(tmp_path / "split.json")
    assert Schedule.load(tmp_path / "split.json") == made


@pytest.mark.parametrize(
    "fields",
    [
        {"unconditional_steps": (4, 5)},  # step 3 is guided, and nothing to reuse
        {"unconditional_steps": ()},
        {"unconditional_steps": (0, 9)},
        {"unconditional_steps": (2, 4), "unconditional_forecasts": {5: ((3, 1.0),)}},
        {"unconditional_forecasts": {5: ((0, 1.0),)}},
        {"spec": dataclasses.replace(SPEC, guidance=1.0), "unconditional_steps": (0,)},
    ],
)
def test_impossible_splits_are_refused(fields: dict) -> None:
    with pytest.raises(ConfigError):
        Schedule(**{"spec": SPEC, "refresh_steps": (0, 4), **fields})


def test_what_cannot_be_split_is_said(calibration) -> None:
    common = solve_curve(calibration, 3, METHOD)[-1][0]
    with pytest.raises(ConfigError, match="uncentred"):
        split(calibration, common, Method())
    with pytest.raises(ConfigError, match="uncentred"):
        split(calibration, common, Method(centred=False, objective="minimax"))


def test_from_the_command_line(cli, workspace) -> None:
    ran = cli("solve", "-w", workspace, "-k", 3, "--split", "--json")
    assert ran.code == 0, ran.err
    solved = Schedule.load(workspace / "schedule.json")
    assert list(solved.unconditional_steps) == json.loads(ran.out)["unconditional_steps"]
    for command in (
        ["sample", "-n", 2],
        ["bench", "-n", 2, "--curve-images", 2],
        ["inspect", workspace / "schedule.json"],
    ):
        place = [] if command[0] == "inspect" else ["-w", workspace]
        assert cli(*command, *place).code == 0
