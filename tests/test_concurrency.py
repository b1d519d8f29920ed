"""Commands at the same time in one workspace, as real processes: none breaks another."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
from PIL import Image

from ddt_accel import Calibration, Schedule
from ddt_accel.backends.manifest import Manifest

# Starts command lines at once, each in a process that has its imports behind it, and prints their exit codes.
START = """
import json, os, shutil, sys, time
import onnxruntime, onnxscript
import ddt_accel.exporting.export, ddt_accel.report.study, ddt_accel.report.render, ddt_accel.fitting.joint
from ddt_accel.cli.app import main

def copied(network, inputs, output, path):
    time.sleep(1)
    shutil.copyfile(f"{exports[str(network.model.dtype)]}/{path.name}", path)

# What takes seconds of a processor in an export touches no file.
exports = json.loads(sys.argv[3])
ddt_accel.exporting.export.write_network = copied

def start(number, line):
    child = os.fork()
    if child:
        return child
    for stream in (1, 2):
        os.dup2(os.open(f"{sys.argv[1]}/{number}.{stream}", os.O_WRONLY | os.O_CREAT), stream)
    sys.argv = ["ddt-accel", *line]
    code = 1
    try:
        main()
        code = 0
    except SystemExit as end:
        code = int(end.code or 0)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)

children = [start(number, line) for number, line in enumerate(json.loads(sys.argv[2]))]
print(json.dumps([os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]))
"""


def at_once(lines: list[list[object]], folder: Path, exports: dict[str, str]) -> list[tuple[int, str]]:
    """The exit code of each command line, and what it said on standard error; `exports` are folders, by data type."""
    folder.mkdir()
    told = json.dumps([[str(part) for part in line] for line in lines])
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    started = [sys.executable, "-c", START, str(folder), told, json.dumps(exports)]
    ran = subprocess.run(started, capture_output=True, text=True, check=True, env=environment)
    codes = json.loads(ran.stdout.splitlines()[-1])
    return [(code, (folder / f"{number}.2").read_text()) for number, code in enumerate(codes)]


def test_every_pair_of_commands_at_once(cli, workspace, exports, tmp_path) -> None:
    """Every command twice, with settings that tell the two apart; all succeed, and nothing is mixed or left over."""
    calibrate = ["calibrate", "--steps", 6, "--sensitivity-samples", 1, "--batch-size", 1, "--samples"]
    fit = ["fit", "--images", 4, "--held-out", 4, "--batch-size", 4, "--reference-steps", 12, "--iterations"]
    bench = ["bench", "--curve-images", 2, "--batch-size", 2, "--images"]
    lines: list[list[object]] = [
        ["export"],
        ["export", "--precision", "fp16"],
        [*bench, 2],
        [*bench, 3],
        [*calibrate, 2],
        [*calibrate, 3],
        ["solve", "--budget", 2],
        ["solve", "--budget", 3],
        ["solve", "--pareto"],
        ["solve", "--pareto", "--steps", 4],
        [*fit, 1],
        [*fit, 2],
        ["sample", "-n", 3, "--seed", 1, "--npz", tmp_path / "3.npz", "--backend", "torch"],
        ["sample", "-n", 6, "--seed", 2, "--npz", tmp_path / "6.npz"],
    ]
    made = {"torch.float32": str(exports("fp32")), "torch.float16": str(exports("fp16"))}
    ends = at_once([[*line, "--workspace", workspace] for line in lines], tmp_path / "said", made)
    assert [code for code, _ in ends] == [0] * len(lines), ends
    assert any("Waiting for ddt-accel" in said for _, said in ends)
    assert not [path for path in workspace.rglob("*") if path.name.startswith(".") or "partial" in path.name]
    assert not list((workspace / "fit").glob("state*"))

    assert Manifest.load(workspace / "export").precision in ("fp32", "fp16")
    assert Calibration.load(workspace / "calibration.safetensors").num_samples in (2, 3)
    curve = {path.name: Schedule.load(path) for path in (workspace / "curve").iterdir() if path.suffix == ".json"
             and path.name[0].isdigit()}  # fmt: skip
    steps = {schedule.spec.num_steps for schedule in curve.values()}
    assert steps in ({4}, {6})
    assert set(curve) == {f"{budget}.json" for budget in range(1, 1 + steps.pop())}
    drawn = sorted((workspace / "samples").iterdir())
    kept = np.load(tmp_path / f"{len(drawn)}.npz")["arr_0"]
    assert all((np.asarray(Image.open(path)) == image).all() for path, image in zip(drawn, kept, strict=True))
    numbers = json.loads((workspace / "report.json").read_text())
    for page in ("report.md", "report.html"):
        text = (workspace / page).read_text()
        assert all(f"{1000 * measured['seconds']:.1f}" in text for measured in numbers["measurements"])
    for name in (".", "export", "calibration.safetensors", "schedule.json", "costs.json", "report.json"):
        assert cli("inspect", workspace / name).code == 0
