"""`optimize` as it is typed: from pictures of one's own to a schedule, a report and five lines."""

from __future__ import annotations

import dataclasses
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ddt_accel import Calibration, Schedule
from ddt_accel.evaluation import benchmark
from ddt_accel.evaluation.benchmark import Measurement
from ddt_accel.evaluation.costs import Costs, added_up

NETWORK = ["--size", 16, "--hidden-size", 32, "--heads", 2, "--encoder-blocks", 1, "--decoder-blocks", 1, "--patch", 4,
           "--batch-size", 16, "--images", 320]  # fmt: skip
# Few steps, so that nothing takes long.
QUICKLY = ["--quick", "--steps", 24, "--batch-size", 8]


def pictures(folder: Path) -> Path:
    """Grey ones of 28 × 28 in two classes: bars that lie and bars that stand."""
    generator = np.random.default_rng(0)
    for index in range(24):
        canvas = np.zeros((28, 28), dtype=np.uint8)
        first = int(generator.integers(2, 20))
        canvas[first : first + 5] = generator.integers(100, 255)
        upright = index % 2 == 1
        place = folder / ("standing" if upright else "lying") / f"{index}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(canvas.T if upright else canvas).save(place)
    return folder


# What this machine takes for the parts of a trajectory, in the tests that hang on it; and how much longer for fits than
# their parts do.
PARTS = Costs(unit="seconds", encoder=4e-3, decoder=1e-3, forecast=2e-4, evaluation=1e-4, conditions="by the test")
LONGER = 1.15


@pytest.fixture
def steady(monkeypatch) -> None:
    """A machine that always takes the same, so that what is chosen does not hang on its other work."""

    def taken(name: str, one: Any, num_images: int, speed: float) -> Measurement:
        row = added_up(name, one.schedule, PARTS)
        return dataclasses.replace(row, seconds=row.seconds * (LONGER if one.schedule.is_fitted else 1))

    monkeypatch.setattr(benchmark, "_own", taken)


@pytest.mark.slow
def test_on_a_network_trained_on_own_pictures(cli, steady, tmp_path) -> None:
    ran = cli("train", "--data", pictures(tmp_path / "pictures"), "--out", tmp_path / "trained", *NETWORK)
    assert ran.code == 0, ran.err
    place = tmp_path / "run"
    ran = cli("optimize", "--speedup", 5, *QUICKLY, "--model", tmp_path / "trained/model.safetensors", "-w", place)
    assert ran.code == 0, ran.err
    speed, fidelity, fewer, sharing, made = ran.out.splitlines()
    schedule, costs = Schedule.load(place / "schedule.json"), Costs.load(place / "costs.json")
    calibration = Calibration.load(place / "calibration.safetensors")
    # Parts alone would not have told: from end to end it is as fast as it should be.
    unshared, longer = Schedule.full(calibration.spec), LONGER if schedule.is_fitted else 1
    assert PARTS.of(schedule) * longer <= PARTS.of(unshared) / 5
    assert "choosing once more, by what whole trajectories take" in ran.err
    assert "is reached" in speed
    assert costs.of(unshared) == pytest.approx(PARTS.of(unshared))
    assert re.match(r"5 times was asked for, and .* ms an image instead of .* times as fast as the sampler", speed)
    assert re.match(r"It ends at .* dB \(.*\) to the reference solution, on 12 images", fidelity)
    assert re.match(r"Fewer steps in (the same time|[\d.]+ times the time here), \d+ .* end at .* dB", fewer)
    assert f"the encoder runs at {schedule.budget} of {schedule.spec.num_evaluations} evaluations" in sharing
    assert (place / "report.html").exists()
    assert str(place / "report.html") in made
    backend = re.search(r"Next: ddt-accel sample --backend (onnx|torch) -w ", made)[1]
    assert cli("sample", "--backend", backend, "-w", place, "-n", 2).code == 0

    # Again, for a program: what lies there is used, and what is reported is of images that nothing has seen.
    before = (place / "calibration.safetensors").stat().st_mtime_ns
    ran = cli("optimize", "--speedup", 5, *QUICKLY, "-w", place, "--json")
    assert ran.code == 0, ran.err
    assert ran.err.count("Kept: ") == 2
    assert "searching" not in ran.err
    assert (place / "calibration.safetensors").stat().st_mtime_ns == before
    told = json.loads(ran.out)
    assert Schedule.load(told["schedule"]) == Schedule.load(place / "schedule.json")
    assert len(told["expect"]) == 5
    seed = json.loads((place / "report.json").read_text())["seed"]
    seen = {one[0] for one in schedule.fitted_on} | {images.seed for images in calibration.ranges}
    assert seen
    assert seed not in seen


@pytest.mark.slow
def test_what_was_stopped_goes_on(cli, tiny_model_path, tmp_path) -> None:
    """Beyond what can be reached, too, which is said: then the nearest is taken."""
    line = ["optimize", "--speedup", 500, *QUICKLY, "--steps", 12, "--backend", "torch", "--model", tiny_model_path]
    line += ["-w", tmp_path]
    with subprocess.Popen(
        [sys.executable, "-m", "ddt_accel", *map(str, line)], stderr=subprocess.PIPE, text=True
    ) as process:  # fmt: skip
        for told in process.stderr:
            if told.startswith("3/5"):
                process.terminate()  # as Ctrl-C, but that background jobs ignore
                break
        rest = process.stderr.read()
    assert process.returncode == 143, rest
    assert "the same command goes on from there" in rest
    before = (tmp_path / "calibration.safetensors").read_bytes()
    ran = cli(*line)
    assert ran.code == 0, ran.err
    assert f"Kept: 12 trajectories of 12 steps in {tmp_path / 'calibration.safetensors'}" in ran.err
    assert (tmp_path / "calibration.safetensors").read_bytes() == before
    assert ran.out.startswith("500 times cannot be reached here by 4 steps or more; the nearest that can: ")
    assert len(ran.out.splitlines()) == 5
    assert Schedule.load(tmp_path / "schedule.json").spec.num_steps <= 5


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--speedup", 2, "--budget-ms", 5], "--budget-ms and --speedup are two targets; give one"),
        (["--speedup", 0], "more than 1"),
        (["--min-psnr", "nan"], "above 0"),
        (["--solver", "sde"], "stochastic"),
        (["--backend", "tpu"], "auto, compiled, onnx, torch or trt"),
        (["--model", "none.ckpt"], "none.ckpt"),
    ],
)
def test_a_mistake_is_a_sentence(cli, workspace, arguments: list[object], said: str) -> None:
    before = {path: path.read_bytes() for path in workspace.rglob("*") if path.is_file()}
    ran = cli("optimize", "--quick", *arguments, "-w", workspace)
    assert ran.code == 2, ran.err
    assert said in " ".join(ran.err.split())
    assert "Traceback" not in ran.err
    for path, content in before.items():
        assert path.read_bytes() == content


def test_images_that_a_plan_was_chosen_on_are_not_reported_on(cli, workspace) -> None:
    """Neither by `bench`, which says so, nor by `optimize`, which takes others."""
    from ddt_accel.cli.preparation import QUICK, held_out, known
    from ddt_accel.workspace import Workspace

    place = Workspace(workspace)
    calibration = place.calibration()
    usual = held_out(calibration, QUICK, known(place, calibration))
    assert {name: images.seed for name, images in usual.items()} == {"reporting": 1, "choosing": 2, "fitting": 3}
    for seed in (1, 2):
        assert cli("plan", "-w", workspace, "--cost", 0.7, "-n", 2, "--seed", seed).code == 0
        assert (seed, 0, 2) in place.schedule().fitted_on
        ran = cli("bench", "-w", workspace, "--backend", "torch", "-n", 2, "--seed", seed)
        assert ran.code == 2
        assert f"fitted on images of seed {seed}, or chosen by them; measure with another --seed" in ran.err
        others = held_out(calibration, QUICK, known(place, calibration))
        assert others["fitting"] == usual["fitting"]
        assert not {others["reporting"].seed, others["choosing"].seed} & {seed, others["fitting"].seed}


def test_a_fit_that_is_replaced_stays_among_the_plans(workspace) -> None:
    from ddt_accel.cli.preparation import keep
    from ddt_accel.workspace import Workspace

    place = Workspace(workspace)
    solved = Schedule.load(place.schedule_path)
    mine = Schedule(spec=solved.spec, refresh_steps=(0, 3), times=(0.0, 0.1, 0.2, 0.4, 0.6, 0.8), objective="fitted")
    mine.save(place.schedule_path)
    keep(place, solved)
    assert Schedule.load(place.schedule_path) == solved
    assert [Schedule.load(path) for path in place.plans_path.glob("*.json")] == [mine]
    keep(place, solved)  # nothing that would be lost
    assert len(list(place.plans_path.glob("*.json"))) == 1
