"""A target chooses the schedule that it describes, by search over the whole curve."""

from __future__ import annotations

import dataclasses
import json
import math
import re

import numpy as np
import pytest

from ddt_accel import Calibration, SamplingSpec, Schedule, calibrate, load_model
from ddt_accel.calibration.resample import resample
from ddt_accel.cli.fewer_steps import verdict
from ddt_accel.cli.solving import _number
from ddt_accel.errors import ConfigError
from ddt_accel.evaluation.budgets import Beside, Target, beside, choose, predicted_psnr
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


def test_fewer_steps_stand_beside_a_schedule(curve, calibration) -> None:
    """The fewest that cost no less; their errors are those of the calibrated images, the schedule's are predicted."""

    def price(steps: int) -> float:
        return SECONDS.of(Schedule.full(dataclasses.replace(SPEC, num_steps=steps)))

    for schedule, _ in curve[:-1]:
        found = beside(calibration, schedule, SECONDS)
        assert SECONDS.of(schedule) <= price(found.steps)
        assert found.steps == 1 or price(found.steps - 1) < SECONDS.of(schedule)
        assert found.speedup == pytest.approx(price(12) / price(found.steps))
        copying, reference = calibration.coarser_error(found.steps)
        if found.steps == 12:  # which is what would be copied
            assert found.copying is None
        else:
            assert found.copying == pytest.approx(20 * math.log10(2 / copying))
        assert found.reference == pytest.approx(20 * math.log10(2 / reference))
        own = calibration.coarser_error(12)[1]
        assert found.unshared == pytest.approx(20 * math.log10(2 / own))
        assert found.expected == pytest.approx(-10 * math.log10((own**2 + schedule.predicted_error**2) / 4))
        assert found.reference_gain == pytest.approx(found.expected - found.reference)
        if found.copying is not None:
            assert found.copying_gain == pytest.approx(predicted_psnr(schedule) - found.copying)
    published = solve_curve(calibration, 4, PUBLISHED)[-1][0]
    assert beside(calibration, published, SECONDS).reference_gain is None
    assert beside(calibration, published, SECONDS).copying_gain is None
    coarser, _ = solve_curve(resample(calibration, dataclasses.replace(SPEC, num_steps=8)), 3)[-1]
    found = beside(calibration, coarser, SECONDS)
    assert found.copying is None  # no trajectory of eight steps was measured to copy
    assert found.unshared == pytest.approx(20 * math.log10(2 / calibration.coarser_error(8)[1]))
    unmeasured = dataclasses.replace(calibration, coarser_sum=np.zeros_like(calibration.coarser_sum))
    assert beside(unmeasured, coarser, SECONDS) is None


@pytest.mark.parametrize(("scale", "said"), [(1e6, "Sharing loses here: "), (1e-6, "Sharing should gain ")])
def test_solve_says_when_fewer_steps_are_better(cli, workspace, scale: float, said: str) -> None:
    """With sensitivities as they would be if errors of the state did much, or nothing."""
    kept = Calibration.load(workspace / "calibration.safetensors")
    made = dataclasses.replace(kept, sensitivity_sum=kept.sensitivity_sum * [1, scale, scale**2])
    made.save(workspace / "calibration.safetensors")
    ran = cli("solve", "-w", workspace, "-k", 2)
    assert ran.code == 0, ran.err
    assert said in ran.out
    predicted = predicted_psnr(Schedule.load(workspace / "schedule.json"))
    assert f"Predicted: {predicted:.1f} dB to the unshared trajectory" in ran.out
    (steps,) = re.findall(r"Fewer steps at this cost: (\d),", ran.out)
    told = json.loads(cli("solve", "-w", workspace, "-k", 2, "--json").out)
    assert told["fewer_steps"]["steps"] == int(steps)
    for gain in ("copying_gain", "reference_gain"):
        assert (told["fewer_steps"][gain] < 0) == said.startswith("Sharing loses")
    assert told["predicted_psnr"] == pytest.approx(predicted)
    table = cli("solve", "-w", workspace, "--pareto")
    assert "fewer steps" in table.out
    assert "sharing gains, dB to the unshared" in table.out
    assert "sharing gains, dB to the reference" in table.out
    assert not re.search(r"[-+]0\.0\b", table.out)
    assert [_number(gain, "+.1f") for gain in (-0.04, 0.04, -0.06)] == ["0.0", "0.0", "-0.1"]
    (row,) = [row for row in json.loads(cli("solve", "-w", workspace, "--pareto", "--json").out)["curve"]
              if len(row["refresh_steps"]) == 2]  # fmt: skip
    assert row["fewer_steps"] == pytest.approx(told["fewer_steps"])


def test_the_measure_of_the_target_decides() -> None:
    """Three runs end closer to the reference solution, twelve steps closer to the unshared pictures."""
    schedule = Schedule(spec=dataclasses.replace(SPEC, num_steps=50), refresh_steps=(0, 10, 30))
    found = Beside(steps=12, speedup=2.0, copying=45.9, reference=30.0, predicted=40.2, expected=30.2, unshared=31.0)
    for tolerance in (Target(psnr=40), Target(error=0.02)):
        said = verdict(schedule, found, tolerance)
        assert said.startswith("Sharing loses here: 12 steps end 5.7 dB closer to the unshared pictures.")
        assert "reference" not in said
    for other in (Target(), Target(speedup=2)):
        said = verdict(schedule, found, other)
        assert "further from the unshared pictures by 5.7 dB, nearer to the reference solution by 0.2 dB" in said
    unmeasured = dataclasses.replace(found, copying=None)
    assert "gain 0.2 dB to the reference solution" in verdict(schedule, unmeasured, Target(psnr=40))
    doubtful = dataclasses.replace(found, copying=36.0, reference=26.0)
    for missed, doubted in ((3.0, False), (6.0, True)):
        said = verdict(schedule, doubtful, Target(), missed=missed)
        assert said.startswith("Sharing should gain 4.2 dB to the unshared pictures and 4.2 dB to the reference")
        assert said.endswith(f"; predictions missed by up to {missed:.0f} dB elsewhere.") == doubted
    every = dataclasses.replace(found, steps=50, copying=None)
    assert verdict(schedule, every, Target()).startswith("Sharing gains nothing here: all 50 steps")


def test_solve_says_where_no_sharing_reaches_a_target(cli, workspace) -> None:
    ran = cli("solve", "-w", workspace, "--min-psnr", 200)
    assert ran.code == 0, ran.err
    assert Schedule.load(workspace / "schedule.json").budget == 6
    assert "No schedule that shares is predicted to reach that; the best of them comes to " in ran.err
    assert "No schedule" not in cli("solve", "-w", workspace, "--max-error", 1e9).err


@pytest.mark.parametrize("command", [["solve", "-k", 2], ["plan", "-n", 2, "--cost", 0.6]])
def test_what_replaces_a_fit_keeps_it_once(cli, workspace, command: list[object]) -> None:
    path, plans = workspace / "schedule.json", workspace / "plans"
    fitted = dataclasses.replace(Schedule.load(path), times=(0.0, 0.1, 0.2, 0.4, 0.6, 0.8), objective="fitted")
    fitted.save(plans / "0.6-shared.json")  # as `plan --fit` leaves it
    fitted.save(path)
    ran = cli(*command, "-w", workspace)
    assert ran.code == 0, ran.err
    assert f"is kept: {plans / '0.6-shared.json'}" in ran.err
    assert [one.name for one in plans.glob("*.json")] == ["0.6-shared.json"]
    other = dataclasses.replace(fitted, times=(0.0, 0.1, 0.2, 0.4, 0.6, 0.9))
    for _ in range(2 if command[0] == "solve" else 1):
        other.save(path)
        ran = cli(*command, "-w", workspace)
        (kept,) = plans.glob("replaced-*.json")
        assert f"is kept: {kept}" in ran.err
        assert Schedule.load(kept) == other
    if command[0] == "solve":  # what is written elsewhere replaces nothing
        other.save(path)
        assert "is kept" not in cli(*command, "-w", workspace, "--out", workspace / "s.json").err
        assert Schedule.load(path) == other


def test_solve_without_costs_or_with_an_old_calibration_says_so(cli, workspace, tmp_path) -> None:
    kept = workspace / "calibration.safetensors"
    elsewhere = ["-w", tmp_path / "empty", "--calibration", kept, "--out", tmp_path / "s.json"]
    old = Calibration.load(kept)
    dataclasses.replace(old, coarser_sum=np.zeros_like(old.coarser_sum)).save(kept)
    for place in (elsewhere, ["-w", workspace]):
        ran = cli("solve", "-k", 2, *place)
        assert ran.code == 0, ran.err
        assert "`ddt-accel calibrate` anew measures it, or `ddt-accel plan`." in ran.out
    table = cli("solve", "-w", workspace, "--pareto")
    assert table.code == 0, table.err
    assert table.out.count("–") == 1  # all runs make no error
    assert "sharing gains, dB" not in table.out
    assert "has not measured what they do; `ddt-accel calibrate` anew measures it." in table.out
    ran = cli("solve", "-k", 2, *elsewhere)
    hint = f"Next: ddt-accel export -w {tmp_path / 'empty'}, or ddt-accel sample --backend torch --schedule "
    assert hint in ran.out


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
