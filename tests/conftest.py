"""What several test modules share."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor

from ddt_accel import SamplingSpec, calibrate, load_model, solve
from ddt_accel.cli.app import main
from ddt_accel.networks.checkpoints import tensors_sha256
from ddt_accel.networks.ddt.config import DDTConfig
from ddt_accel.networks.ddt.network import DDT

TINY = DDTConfig(
    in_channels=3, patch_size=2, num_groups=2, hidden_size=16, num_blocks=3, num_encoder_blocks=2, num_classes=4
)

# Modules that export, compile, fit, build engines or start many processes; `make test-quick` leaves them out, and what
# needs the workspace that is made with an export.
SLOW = {
    "test_backends", "test_budgets", "test_capture", "test_cli", "test_compiled", "test_concurrency",
    "test_distribution", "test_docs", "test_engines", "test_file_systems", "test_fitting", "test_forecast",
    "test_inspect", "test_optimize", "test_optimizing", "test_plan", "test_report", "test_sampler", "test_samples",
    "test_sampling", "test_search", "test_shipped", "test_train_command",
}  # fmt: skip


def pytest_collection_modifyitems(items) -> None:
    for item in items:
        if item.path.stem in SLOW or "made" in item.fixturenames:
            item.add_marker(pytest.mark.slow)


@dataclass(frozen=True)
class Reference:
    """What the published implementation computed for a small network of random weights."""

    case: dict[str, Any]
    tensors: dict[str, Tensor]
    checkpoint: Path

    @property
    def config(self) -> dict[str, int]:
        return self.case["config"]


@pytest.fixture(scope="session", params=["small_square", "small_shifted"])
def reference(request) -> Reference:
    folder = Path(__file__).parent / "reference" / request.param
    return Reference(
        case=json.loads((folder / "case.json").read_text()),
        tensors=safetensors.torch.load_file(folder / "tensors.safetensors"),
        checkpoint=folder / "checkpoint.ckpt",
    )


@pytest.fixture(scope="session")
def tiny_model_path(tmp_path_factory) -> Path:
    """A network for [3, 8, 8] with four named classes, all of its weights random, released as training does it."""
    return write_tiny_model(tmp_path_factory.mktemp("tiny") / "tiny.safetensors", seed=0)


def write_tiny_model(path: Path, *, seed: int) -> Path:
    generator = torch.Generator().manual_seed(seed)
    tensors = {
        name: 0.15 * torch.randn(tensor.shape, generator=generator) for name, tensor in DDT(TINY).state_dict().items()
    }
    description = {
        "config": json.dumps(asdict(TINY)),
        "latent_shape": json.dumps([3, 8, 8]),
        "class_names": json.dumps(["ant", "bee", "cat", "dog"]),
        "tensors_sha256": tensors_sha256(tensors),
    }
    safetensors.torch.save_file(tensors, path, description)
    return path


@dataclass(frozen=True)
class Result:
    code: int
    out: str
    err: str


def assert_sentence(ran: Result, said: str) -> None:
    assert ran.code == 2, ran
    assert said in " ".join(ran.err.split()), ran.err
    assert "Traceback" not in ran.err
    assert ran.out == ""


@pytest.fixture
def cli(capfd, monkeypatch):
    """Runs a command line in this process."""

    def run(*arguments: object) -> Result:
        monkeypatch.setattr(sys, "argv", ["ddt-accel", *map(str, arguments)])
        capfd.readouterr()
        code = 0
        try:
            main()
        except SystemExit as end:
            code = int(end.code or 0)
        captured = capfd.readouterr()
        return Result(code, captured.out, captured.err)

    return run


@pytest.fixture(scope="session")
def made(tiny_model_path, tmp_path_factory) -> Path:
    """A workspace with a calibration, a schedule and an export of the tiny model."""
    folder = tmp_path_factory.mktemp("made") / "run"
    for command in (
        ["calibrate", "--model", tiny_model_path, "--steps", "6", "--samples", 2],
        ["solve", "--budget", 2],
        ["export"],
    ):
        line = [sys.executable, "-m", "ddt_accel", *map(str, command), "--workspace", str(folder)]
        subprocess.run(line, check=True, capture_output=True)
    return folder


@pytest.fixture
def solved(tiny_model_path, tmp_path) -> Path:
    """A workspace with a calibration and a schedule of the tiny model, made in this process, faster than `made`."""
    folder = tmp_path / "solved"
    statistics = calibrate(load_model(tiny_model_path), SamplingSpec(num_steps=6), 2, sensitivity_samples=2)
    statistics.save(folder / "calibration.safetensors")
    solve(statistics, 2).save(folder / "schedule.json")
    return folder


@pytest.fixture
def workspace(made, tmp_path) -> Path:
    shutil.copytree(made, tmp_path / "run")
    return tmp_path / "run"
