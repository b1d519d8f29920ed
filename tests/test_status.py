"""What a workspace holds, as `ddt-accel status` and `ddt-accel` alone tell it."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import TINY

from ddt_accel import Calibration, SamplingSpec, Schedule
from ddt_accel.artifacts import checksum, write_json
from ddt_accel.evaluation.costs import SECONDS, Costs, counted_costs
from ddt_accel.report.numbers import FORMAT, VERSION
from ddt_accel.solver.solve import solve_curve
from ddt_accel.workspace import Workspace


def told(cli, folder: Path) -> dict:
    ran = cli("status", "-w", folder, "--json")
    assert ran.code == 0, ran.err
    return json.loads(ran.out)


def test_an_empty_place(cli, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    for ran in (cli("status"), cli()):
        assert ran.code == 0
        assert "There is nothing in ddt-accel-run yet." in ran.out
        assert "Next: ddt-accel demo, or ddt-accel optimize --model CHECKPOINT --speedup 5" in ran.out
    assert "ddt-accel --help" in cli().out
    assert not list(tmp_path.iterdir())
    (tmp_path / "file").touch()
    assert cli("status", "-w", "file").code == 2


def test_it_needs_no_pytorch(solved) -> None:
    """Which takes seconds to load."""
    code = (
        "import sys\n"
        f"sys.argv = ['ddt-accel', 'status', '-w', {str(solved)!r}]\n"
        "from ddt_accel.cli.app import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "assert 'torch' not in sys.modules"
    )
    ran = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert "schedule.json" in ran.stdout


def test_schedules_with_what_is_predicted(cli, solved) -> None:
    """Every schedule in the folder, with the dB that its error means and the seconds that measured costs make of it."""
    schedule = Schedule.load(solved / "schedule.json")
    Schedule.full(schedule.spec).save(solved / "plans" / "0.4-unshared.json")
    Schedule.uniform(SamplingSpec(num_steps=6), 3).save(solved / "by-hand.json")
    (solved / "notes.json").write_text("[]")
    costs = Costs(unit=SECONDS, encoder=1e-3, decoder=5e-4, forecast=1e-5, evaluation=1e-4, conditions="here",
                  checkpoint_sha256=schedule.checkpoint_sha256)  # fmt: skip
    costs.save(solved / "costs.json")
    first, *others = told(cli, solved)["schedules"]
    assert (first["name"], first["encoder_runs"], first["evaluations"], first["steps"]) == ("schedule.json", 2, 6, 6)
    assert first["predicted_ms"] == pytest.approx(1000 * costs.of(schedule))
    assert schedule.predicted_error is not None
    assert 2 * 10 ** (-first["predicted_db"] / 20) == pytest.approx(schedule.predicted_error)
    assert [row["name"] for row in others] == ["by-hand.json", "plans/0.4-unshared.json"]
    assert others[0]["predicted_ms"] is None  # it may be of any checkpoint
    shown = cli("status", "-w", solved).out
    for word in ("by-hand.json", "2 samples, 6 steps of euler", "3 × 8 × 8", "measured: here"):
        assert word in shown


def test_a_curve_is_a_line(cli, solved) -> None:
    statistics = Calibration.load(solved / "calibration.safetensors")
    for schedule, _ in solve_curve(statistics, 6):
        schedule.save(solved / "curve" / f"{schedule.budget}.json")
    assert told(cli, solved)["curve"]["encoder_runs"] == [1, 2, 3, 4, 5, 6]
    assert len(told(cli, solved)["schedules"]) == 1


def test_what_was_measured_and_what_comes_next(cli, workspace) -> None:
    """Export, then the report of this very schedule; one that was solved after it has not been measured."""

    def following() -> list[str]:
        return told(cli, workspace)["next"]

    assert following() == ["ddt-accel bench", "ddt-accel sample"]
    benched = cli("bench", "-w", workspace, "-n", 2, "--curve-images", 2)
    assert benched.code == 0
    assert re.search(r"^Does sharing pay here\? (Yes|No|No clear difference|Not known)\. ", benched.out, re.MULTILINE)
    assert cli("sample", "-w", workspace, "-n", 3).code == 0
    report = json.loads((workspace / "report.json").read_text())
    (solved,) = [m for m in report["measurements"] if m["name"] == "solved"]
    (first,) = [m for m in report["measurements"] if m["name"] == report["headline"]]
    said = f"it begins with {first['name']}, {first['speedup']:.2f} times as fast"
    assert said in " ".join(cli("status", "-w", workspace).out.split())
    found = told(cli, workspace)
    (row,) = found["schedules"]
    assert row["measured_db"] == pytest.approx(solved["psnr"]["mean"])
    assert row["measured_ms"] == pytest.approx(1000 * solved["seconds"])
    assert (found["next"], found["samples"]["pictures"]) == (["ddt-accel sample"], 3)
    Workspace(workspace).keep_speeds({"batch": 2, "device": "cpu"}, {"torch": 1.0, "onnx": 2.0})
    assert following() == ["ddt-accel sample --backend auto"]
    (workspace / "speeds.json").unlink()

    schedule = Schedule.load(workspace / "schedule.json")
    spec = schedule.spec
    others = {
        "again": schedule,
        "fit": dataclasses.replace(schedule, times=tuple(0.9 * t for t in spec.times[: spec.num_evaluations])),
        "forecast": dataclasses.replace(schedule, forecasts={}, forecast="hold"),
        "shift": dataclasses.replace(schedule, spec=dataclasses.replace(spec, timeshift=2.0)),
        "network": dataclasses.replace(schedule, checkpoint_sha256="0" * 64),
    }
    for name, other in others.items():
        other.save(workspace / f"{name}.json")
        os.utime(workspace / f"{name}.json", (0, 0))  # earlier than the report, as copies may be
    rows = told(cli, workspace)["schedules"]
    assert {r["name"] for r in rows if r["measured_ms"] is not None} == {"schedule.json", "again.json"}
    for name in others:
        (workspace / f"{name}.json").unlink()

    assert cli("solve", "--budget", 3, "-w", workspace).code == 0
    assert told(cli, workspace)["schedules"][0]["measured_db"] is None
    assert following() == ["ddt-accel bench", "ddt-accel sample"]
    assert f"Next: ddt-accel bench -w {workspace}" in cli("status", "-w", workspace).out


def test_a_report_of_another_network_or_version_measures_nothing(cli, workspace) -> None:
    """A schedule by hand names no checkpoint: it goes by the calibration beside it."""
    by_hand = dataclasses.replace(Schedule.load(workspace / "schedule.json"), checkpoint_sha256=None)
    by_hand.save(workspace / "schedule.json")
    network = Calibration.load(workspace / "calibration.safetensors").checkpoint_sha256
    row = {"name": "given", "refresh_steps": by_hand.refresh_steps, "num_steps": 6, "num_evaluations": 6,
           "seconds": 0.5, "speedup": 2.0, "schedule_sha256": checksum(by_hand.document())}  # fmt: skip
    report = {"num_images": 2, "conditions": {}, "checkpoint_sha256": network, "measurements": [row]}

    def measured(content: dict) -> float | None:
        write_json(workspace / "report.json", FORMAT, VERSION, content)
        found = told(cli, workspace)
        assert found["report"]["images"] == 2
        return found["schedules"][0]["measured_ms"]

    assert measured(report) == 500
    assert measured({**report, "checkpoint_sha256": "0" * 64}) is None
    earlier = {key: value for key, value in row.items() if key != "schedule_sha256"}
    assert measured({"num_images": 2, "conditions": {}, "measurements": [earlier]}) is None


def test_interrupted_work(cli, solved) -> None:
    (solved / "schedule.json").unlink()
    (solved / "calibration.safetensors").rename(solved / "calibration.partial.safetensors")
    assert told(cli, solved)["interrupted_calibration"]["samples"] == 2
    shown = cli("status", "-w", solved).out
    assert "Next: the same `ddt-accel calibrate` as before" in shown


@pytest.mark.parametrize(
    "damage",
    [b"", b"{", b"\x00" * 100, b'{"format": "ddt-accel report", "version": 1}'],
    ids=["empty", "cut", "zeros", "something else"],
)
def test_damage_is_a_line_of_the_listing(cli, workspace, damage: bytes) -> None:
    """Whatever is in a file, the others are told of."""
    files = ["calibration.safetensors", "calibration.partial.safetensors", "schedule.json", "costs.json", "report.json",
             "export/manifest.json", "workspace.json", "speeds.json", "curve/2.json", "plans/1.json"]  # fmt: skip
    for name in files:
        path = workspace / name
        before = path.read_bytes() if path.exists() else None
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(damage)
        ran = cli("status", "-w", workspace)
        assert (ran.code, "damaged" in ran.out) == (0, True), (name, ran)
        assert ("6 steps of euler" in ran.out) == (name != "calibration.safetensors")
        if before is None:
            path.unlink()
        else:
            path.write_bytes(before)


def test_costs_are_relative_to_the_sampler_that_a_schedule_is_for(cli, workspace) -> None:
    """As `inspect` tells them, by the network that the export beside the schedule is of."""
    schedule = Schedule.load(workspace / "schedule.json")
    costs = counted_costs(TINY, (3, 8, 8))
    share = costs.of(schedule) / costs.of(Schedule.full(schedule.spec))
    assert json.loads(cli("inspect", workspace / "schedule.json", "--json").out)["cost"].startswith(
        f"{share:.3f} of the multiply-adds"
    )
    # Of fewer steps with times of its own, too: what was calibrated is what it stands in for.
    times = (0.0, 0.3, 0.7)
    spec = SamplingSpec(num_steps=3, solver="ab2")
    fitted = Schedule(
        spec=spec, refresh_steps=(0, 1), times=times, objective="fitted", checkpoint_sha256=schedule.checkpoint_sha256
    )
    fitted.save(workspace / "fitted.json")
    share = costs.of(fitted) / costs.of(Schedule.full(schedule.spec))
    told = json.loads(cli("inspect", workspace / "fitted.json", "--json").out)["cost"]
    assert told == f"{share:.3f} of the multiply-adds of the calibrated sampler without sharing, 6 steps of euler"
    (workspace / "calibration.safetensors").unlink()
    share = costs.of(fitted) / costs.of(Schedule.full(spec))
    told = json.loads(cli("inspect", workspace / "fitted.json", "--json").out)["cost"]
    assert (
        told == f"{share:.3f} of the multiply-adds of its own trajectory without sharing, 3 steps of its own integrator"
    )
