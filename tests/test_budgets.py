"""A target chooses the schedule that it describes, by search over the whole curve."""

from __future__ import annotations

import json
import math

import pytest

from ddt_accel import Calibration, SamplingSpec, Schedule, calibrate, load_model
from ddt_accel.errors import ConfigError
from ddt_accel.evaluation.budgets import Target, choose, predicted_psnr
from ddt_accel.evaluation.costs import Costs, counted_costs
from ddt_accel.solver.solve import PUBLISHED, solve_curve

SPEC = SamplingSpec(num_steps=12, guidance=1.5)
SECONDS = Costs(unit="seconds", encoder=0.010, decoder=0.002, forecast=0.0001, evaluation=0.0005, conditions="made up")


@pytest.fixture(scope="module")
def calibration(tiny_model_path) -> Calibration:
    return calibrate(load_model(tiny_model_path), SPEC, num_samples=4)


@pytest.fixture(scope="module")
def curve(calibration):
    return solve_curve(calibration, 12)


def test_a_time_buys_as_many_runs_as_it_can(curve) -> None:
    whole = SECONDS.of(Schedule.full(SPEC))
    for speedup in (1.0, 1.3, 2.0, 3.0):
        chosen, _ = choose(curve, Target(speedup=speedup), SECONDS)
        assert whole / SECONDS.of(chosen) >= speedup
        assert all(whole / SECONDS.of(s) < speedup for s, _ in curve if s.budget > chosen.budget)
        same, _ = choose(curve, Target(milliseconds=1000 * whole / speedup), SECONDS)
        assert same == chosen


def test_an_error_costs_as_few_runs_as_it_can(curve) -> None:
    for bound in (curve[3][0].predicted_error, curve[6][0].predicted_error * 1.01):
        chosen, _ = choose(curve, Target(error=bound), SECONDS)
        assert chosen.predicted_error <= bound
        assert all(s.predicted_error > bound for s, _ in curve if s.budget < chosen.budget)
        assert choose(curve, Target(psnr=-20 * math.log10(bound / 2) - 1e-9), SECONDS)[0] == chosen
    assert predicted_psnr(curve[3][0]) == pytest.approx(-20 * math.log10(curve[3][0].predicted_error / 2))
    assert predicted_psnr(Schedule.full(SPEC)) is None


def test_what_cannot_be_reached_names_the_best(curve, calibration, tiny_model_path) -> None:
    with pytest.raises(ConfigError, match=r"one encoder run in 12 steps makes it \d\.\d\d times as fast"):
        choose(curve, Target(speedup=50), SECONDS)
    with pytest.raises(ConfigError, match="of that speed comes that close: the least predicted error"):
        choose(curve, Target(speedup=3, psnr=300), SECONDS)
    with pytest.raises(ConfigError, match="run `ddt-accel bench` first"):
        choose(curve, Target(milliseconds=5), counted_costs(load_model(tiny_model_path).config, (3, 8, 8)))
    with pytest.raises(ConfigError, match="'similarity' does not predict"):
        choose(solve_curve(calibration, 12, PUBLISHED), Target(psnr=30), SECONDS)
    for nonsense in ({"speedup": 0.0}, {"milliseconds": -1.0}, {"error": math.nan}):
        with pytest.raises(ConfigError, match="makes no sense"):
            Target(**nonsense)


def test_from_the_command_line(cli, workspace) -> None:
    def solved(*arguments: object) -> dict:
        ran = cli("solve", "-w", workspace, "--json", *arguments)
        assert ran.code == 0, ran.err
        return json.loads(ran.out)

    by_count = solved("--target-speedup", 1.5)
    assert 1 <= len(by_count["refresh_steps"]) < 6
    assert Schedule.load(workspace / "schedule.json").refresh_steps == tuple(by_count["refresh_steps"])
    table = solved("--pareto")
    assert [len(row["refresh_steps"]) for row in table["curve"]] == [1, 2, 3, 4, 5, 6]
    assert Schedule.load(workspace / "curve" / "3.json").budget == 3
    assert cli("bench", "-w", workspace, "-n", 2, "--curve-images", 2).code == 0
    assert solved("--pareto")["unit"] == "seconds"
    assert solved("--target-ms", 1e6)["predicted_cost"] == 0
    coarse = cli("solve", "-w", workspace, "--steps", 5, "-k", 2)
    assert "Interpolating" in coarse.err
    assert Schedule.load(workspace / "schedule.json").spec.num_steps == 5
    assert cli("bench", "-w", workspace, "-n", 2, "--curve-images", 2).code == 0
    for wrong in (["--pareto", "-k", 2], ["-k", 2, "--target-speedup", 2], ["--target-speedup", 99]):
        assert cli("solve", "-w", workspace, *wrong).code == 2


def test_plan_from_the_command_line(cli, workspace) -> None:
    ran = cli("plan", "-w", workspace, "-n", 2, "--cost", 0.9, "--cost", 0.6, "--json")
    assert ran.code == 0, ran.err
    rows = json.loads(ran.out)["rows"]
    assert [row["cost"] for row in rows] == [0.6, 0.9]
    assert Schedule.load(workspace / "schedule.json").spec.num_steps <= 6
