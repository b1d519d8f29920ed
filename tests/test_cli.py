"""Every command as typed, and every mistake that typing can make."""

from __future__ import annotations

import dataclasses
import json
import re
import resource
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import safetensors
from conftest import assert_sentence, write_tiny_model
from PIL import Image
from safetensors.torch import load_file, save_file

from ddt_accel import Calibration, SamplingSpec, Schedule, calibrate, load_model, solve
from ddt_accel.backends.manifest import Manifest
from ddt_accel.exporting import export as exporting
from ddt_accel.exporting.onnx import write_network
from ddt_accel.networks.checkpoints import tensors_sha256

STEPS = "6"


def test_one_command_after_the_other(cli, tiny_model_path, tmp_path, monkeypatch) -> None:
    """As the README shows them, no path typed; what one makes is what the next one uses."""
    monkeypatch.chdir(tmp_path)
    place = Path("ddt-accel-run")
    commands = {
        "calibrate": ["calibrate", "--model", tiny_model_path, "--steps", STEPS, "--samples", 2],
        "solve": ["solve", "--steps", STEPS, "--budget", 2],
        "export": ["export", "--onnx"],
        "sample": ["sample", "--images", 3, "--npz", "samples.npz"],
        "bench": ["bench", "--images", 2, "--curve-images", 2],
    }
    results = {}
    for name, command in commands.items():
        ran = cli(*command, "--json")
        assert ran.code == 0, ran.err
        results[name] = json.loads(ran.out)
    assert results["solve"]["refresh_steps"] == list(Schedule.load(place / "schedule.json").refresh_steps)
    certificate = results["solve"]["certificate"]
    assert certificate["cost"] <= min(certificate["uniform_cost"], certificate["published_cost"])
    assert max(results["export"]["parity"].values()) < 1e-4
    drawn = np.load("samples.npz")["arr_0"]
    assert (drawn.dtype, drawn.shape) == (np.uint8, (3, 8, 8, 3))
    for index in range(3):
        assert (np.asarray(Image.open(place / f"samples/{index:06d}-{index}.png")) == drawn[index]).all()
    assert results["bench"]["refresh_steps"] == results["solve"]["refresh_steps"]
    assert (place / "report.html").exists()
    assert (place / "report.md").exists()

    by_torch = cli("sample", "--images", 3, "--npz", "torch.npz", "--backend", "torch")
    assert by_torch.code == 0
    assert np.abs(np.load("torch.npz")["arr_0"].astype(int) - drawn).max() <= 1


def test_explicit_paths(cli, tiny_model_path, tmp_path) -> None:
    calibration, schedule, engines = tmp_path / "c.safetensors", tmp_path / "s.json", tmp_path / "e"
    nowhere = ["--workspace", tmp_path / "unused"]
    for command in (
        ["calibrate", "--model", tiny_model_path, "--steps", STEPS, "--samples", 1, "--out", calibration],
        ["solve", "--budget", 3, "--forecast", "hold", "--objective", "similarity", "--calibration", calibration,
         "--out", schedule],
        ["export", "--model", tiny_model_path, "--precision", "fp16", "--out", engines],
        ["sample", "--export", engines, "--schedule", schedule, "-n", 2, "--labels", "bee,3", "--out", tmp_path / "p"],
        ["bench", "--export", engines, "--schedule", schedule, "--calibration", calibration, "-n", 2,
         "--curve-images", 2, "--out", tmp_path / "r"],
    ):  # fmt: skip
        ran = cli(*command, *nowhere)
        assert ran.code == 0, ran.err
    statistics = Calibration.load(calibration)
    assert Schedule.load(schedule) == solve(statistics, 3, forecast="hold", objective="similarity")
    assert (tmp_path / "p" / "000001-3.png").exists()
    assert (tmp_path / "r" / "report.html").exists()


def test_plain_lines_on_a_pipe(cli, workspace) -> None:
    ran = cli("sample", "-w", workspace)
    assert "\x1b" not in ran.out + ran.err
    assert "sampling: 16/16" in ran.err
    assert "16 images" in ran.out


@pytest.mark.parametrize(
    ("file", "said"),
    [
        ("calibration.safetensors", "cosine"),
        ("schedule.json", "refresh steps"),
        ("export", "parity"),
        ("export/manifest.json", "parity"),
        ("export/decoder.onnx", "velocity: float32"),
        ("workspace.json", "tiny.safetensors"),
        (".", "schedule.json"),
    ],
)
def test_inspect_explains(cli, workspace, file: str, said: str) -> None:
    ran = cli("inspect", workspace / file)
    assert ran.code == 0, ran.err
    assert said in ran.out
    assert isinstance(json.loads(cli("inspect", workspace / file, "--json").out), dict)


def test_inspect_explains_reports_and_checkpoints(cli, workspace, tiny_model_path) -> None:
    assert cli("bench", "-w", workspace, "-n", 2, "--curve-images", 2).code == 0
    explained = cli("inspect", workspace / "report.json", "--json")
    said = json.loads(explained.out)["unshared"]
    assert re.match(r"6 encoder runs in 6 steps, .* dB to the reference solution$", said)
    assert "ant, bee, cat, dog" in cli("inspect", tiny_model_path).out


MISTAKES = {
    "budget 0": (["solve", "--budget", 0], "at least once"),
    "budget below 0": (["solve", "--budget=-1"], "at least once"),
    "budget above N": (["solve", "--budget", 7], "at most 6"),
    "budget no number": (["solve", "--budget", "ten"], "--budget"),
    "other steps than calibrated": (["solve", "--steps", 50], "calibrate --steps 50"),
    "unknown forecast": (["solve", "-k", 2, "--forecast", "oracle"], "calibrated"),
    "unknown objective": (["solve", "--objective", "speed"], "minimax"),
    "published objective with a forecast": (["solve", "--objective", "similarity"], "hold"),
    "no sources": (["solve", "--sources", 0], "1 or more"),
    "no steps": (["calibrate", "--steps", 0], "--steps"),
    "no samples": (["calibrate", "--samples", 0], "--samples"),
    "NaN guidance": (["calibrate", "--guidance", "nan"], "--guidance"),
    "huge guidance": (["calibrate", "--guidance", "1e39"], "within"),
    "huge time shift": (["calibrate", "--timeshift", "1e300"], "0.001 to 1000"),
    "huge seed": (["calibrate", "--seed", 2**32], "--seed"),
    "negative seed": (["sample", "--seed=-1"], "--seed"),
    "reversed interval": (["calibrate", "--guidance-interval", "0.9", "0.1"], "--guidance-interval"),
    "unknown solver": (["calibrate", "--solver", "ddim"], "euler"),
    "unknown model": (["calibrate", "--model", "cifar99"], "cifar10"),
    "missing checkpoint": (["calibrate", "--model", "./none.ckpt"], "none.ckpt"),
    "missing configuration": (["calibrate", "--config", "none.yaml"], "none.yaml"),
    "unknown weights": (["calibrate", "--weights", "best"], "choose 'ema', 'raw' or the name of a set"),
    "latent shape": (["calibrate", "--latent-shape", "4x32"], "channels,height,width"),
    "latent shape of nothing": (["calibrate", "--latent-shape", "3,0,8"], "channels,height,width"),
    "sampling for other steps": (["sample", "--steps", 50], "is a schedule for 6 steps"),
    "sampling for other guidance": (["sample", "--guidance", "4"], "guidance"),
    "label out of range": (["sample", "--labels", "4"], "0 to 3"),
    "negative label": (["sample", "--labels=-1"], "0 to 3"),
    "unknown label": (["sample", "--labels", "wolf"], "ant, bee, cat, dog"),
    "no images": (["sample", "--images", 0], "at least 1"),
    "a model beside an export of another": (["sample", "--model", "cifar10"], "other weights"),
    "a folder that cannot be": (["sample", "--out", "/dev/null/x"], "could not be written"),
    "a name too long": (["sample", "--schedule", "x" * 300], "name too long"),
    "brackets in a name": (["inspect", "[/bold]x.json"], "[/bold]x.json"),
    "a device": (["inspect", "/dev/null"], "neither a file nor a folder"),
    "unknown backend": (["sample", "--backend", "tpu"], "auto, compiled, onnx, torch or trt"),
    "unknown device": (["sample", "--device", "tpu"], "not supported; here you have cpu"),
    "missing schedule": (["sample", "--schedule", "none.json"], "ddt-accel solve"),
    "missing calibration": (["solve", "--calibration", "none.safetensors"], "ddt-accel calibrate"),
    "missing export": (["sample", "--export", "none"], "ddt-accel export"),
    "unknown precision": (["export", "--precision", "int4"], "fp16"),
    "one image": (["bench", "--images", 1], "at least 2"),
    "empty batches": (["bench", "--batch-size", 0], "--batch-size"),
    "calibrated images": (["bench", "--seed", 0], "another --seed"),
    "nothing to inspect": (["inspect", "none.json"], "none.json"),
    "no data": (["train", "--data", "none.zip", "--out", "run"], "none.zip"),
    "no place to train in": (["train", "--data", "none.zip", "--out", "/dev/null/x"], "could not be written"),
    "unknown option": (["solve", "--bugdet", 10], "bugdet"),
    "unknown command": (["accelerate"], "accelerate"),
}  # fmt: skip


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_a_sentence(cli, workspace, tmp_path, monkeypatch, mistake: str) -> None:
    monkeypatch.chdir(tmp_path)
    arguments, said = MISTAKES[mistake]
    before = {path: path.read_bytes() for path in workspace.rglob("*") if path.is_file()}
    place = [] if arguments[0] in ("inspect", "train", "accelerate") else ["--workspace", workspace]
    ran = cli(*arguments, *place)
    assert_sentence(ran, said)
    for path, content in before.items():
        if path.name != "workspace.json":
            assert path.read_bytes() == content


@pytest.mark.parametrize("file", ["calibration.safetensors", "schedule.json", "export/manifest.json",
                                  "export/encoder.onnx", "workspace.json"])  # fmt: skip
@pytest.mark.parametrize("damage", ["cut", "flipped", "empty", "folder"])
def test_damage_is_a_sentence(cli, workspace, file: str, damage: str) -> None:
    path = workspace / file
    content = bytearray(path.read_bytes())
    if damage == "cut":
        path.write_bytes(content[: len(content) // 2])
    elif damage == "flipped":
        middle = content.index(b'"', len(content) // 2) + 1 if path.suffix == ".json" else len(content) // 2
        content[middle] ^= 1
        path.write_bytes(content)
    elif damage == "empty":
        path.write_bytes(b"")
    else:
        path.unlink()
        path.mkdir()
    command = {
        "calibration.safetensors": ["solve", "--budget", 2],
        "schedule.json": ["sample"],
        "workspace.json": ["calibrate", "--steps", 4],
    }.get(file, ["sample"])
    assert_sentence(cli(*command, "-w", workspace), path.name)
    assert_sentence(cli("inspect", path), "")


def test_artefacts_of_another_checkpoint_are_refused(cli, workspace, tmp_path) -> None:
    other = write_tiny_model(tmp_path / "other.safetensors", seed=1)
    assert_sentence(cli("sample", "-w", workspace, "--backend", "torch", "--model", other), "checkpoint")
    exported = Manifest.load(workspace / "export")
    dataclasses.replace(exported, checkpoint_sha256=load_model(other).source.sha256).save(workspace / "export")
    assert_sentence(cli("sample", "-w", workspace), "checkpoint")
    assert_sentence(cli("bench", "-w", workspace, "-n", 2), "checkpoint")


def test_a_workspace_that_is_a_file(cli, tiny_model_path, tmp_path) -> None:
    (tmp_path / "run").write_text("mine")
    ran = cli("calibrate", "-m", tiny_model_path, "--steps", 2, "--samples", 1, "-w", tmp_path / "run")
    assert_sentence(ran, "run")
    assert (tmp_path / "run").read_text() == "mine"


def test_a_full_disk_is_a_sentence(cli, workspace, monkeypatch) -> None:
    """A file-size limit stands in for it: the system refuses the write half-way, as a full disk does."""
    monkeypatch.setattr(exporting, "write_network", write_network)  # which would be copied
    before = (workspace / "export" / "encoder.onnx").read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 14, limits[1]))
    try:
        ran = cli("export", "--precision", "fp16", "-w", workspace)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert_sentence(ran, "export")
    assert (workspace / "export" / "encoder.onnx").read_bytes() == before
    assert not list((workspace / "export").glob(".export*"))


def test_a_killed_calibration_goes_on(cli, tiny_model_path, tmp_path) -> None:
    """Kill −9 in the middle; the same command again keeps what was finished and ends at the same statistics."""
    folder, spec = tmp_path / "killed", SamplingSpec(num_steps=12)
    line = ["calibrate", "--model", str(tiny_model_path), "--steps", "12", "--samples", "60", "--batch-size", "1",
            "--sensitivity-samples", "1", "--workspace", str(folder)]  # fmt: skip
    with subprocess.Popen([sys.executable, "-m", "ddt_accel", *line], stderr=subprocess.DEVNULL) as process:
        partial = folder / "calibration.partial.safetensors"
        deadline = time.monotonic() + 120
        while not partial.exists() and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.01)
        process.kill()
    kept = Calibration.load(partial).num_samples
    assert 0 < kept < 60
    assert not (folder / "calibration.safetensors").exists()
    again = cli(*line)
    assert (again.code, "Continuing an interrupted calibration" in again.err) == (0, True)
    assert not partial.exists()
    first = Calibration.load(folder / "calibration.safetensors")
    second = calibrate(load_model(tiny_model_path), spec, 60, batch_size=1, sensitivity_samples=1)
    assert first.ranges == second.ranges
    np.testing.assert_allclose(first.similarity, second.similarity, rtol=0, atol=1e-12)
    np.testing.assert_allclose(first.sensitivity_sum, second.sensitivity_sum, rtol=1e-6)


def test_an_interrupted_calibration_of_other_settings_is_replaced(cli, tiny_model_path, tmp_path) -> None:
    line = ["calibrate", "--model", tiny_model_path, "--steps", 6, "--samples", 4, "--batch-size", 2, "-w", tmp_path]
    kept = calibrate(load_model(tiny_model_path), SamplingSpec(num_steps=6), num_samples=2, sensitivity_samples=2)
    for sensitivity_samples, told in ((2, "Continuing"), (1, "replaced")):
        kept.save(tmp_path / "calibration.partial.safetensors")
        again = cli(*line, "--sensitivity-samples", sensitivity_samples)
        assert again.code == 0
        assert told in again.err
        found = Calibration.load(tmp_path / "calibration.safetensors")
        assert (found.num_samples, found.sensitivity_sum[:, 0].max()) == (4, sensitivity_samples)


def test_options_that_an_export_cannot_follow_are_refused(cli, workspace) -> None:
    assert_sentence(cli("sample", "-w", workspace, "--latent-shape", "3,16,16"), "3, 16, 16")
    told = cli("sample", "-w", workspace, "--backend", "trt", "--export", workspace / "export")
    assert_sentence(told, "--device cuda")


def test_a_report_that_could_not_be_written_is_not_measured(cli, workspace, tmp_path) -> None:
    (tmp_path / "file").write_bytes(b"")
    told = cli("bench", "-w", workspace, "--out", tmp_path / "file" / "report")
    assert_sentence(told, "file")
    assert "measuring" not in told.err


def test_the_workspace_remembers_the_model(cli, tiny_model_path, tmp_path, monkeypatch) -> None:
    """What is said later adds to it; what cannot be loaded is not remembered; paths hold from any folder."""
    place = tmp_path / "run"
    line = ["calibrate", "-w", place, "--steps", 2, "--samples", 1, "--sensitivity-samples", 0]
    monkeypatch.chdir(tiny_model_path.parent)
    assert cli(*line, "--model", tiny_model_path.name).code == 0
    monkeypatch.chdir(tmp_path)
    assert_sentence(cli(*line, "--latent-shape", "3,7,7"), "Latents")
    assert_sentence(cli(*line, "--model", "none.ckpt"), "none.ckpt")
    assert cli(*line, "--latent-shape", "3,16,16").code == 0
    told = json.loads(cli("inspect", place, "--json").out)
    assert (told["source"], told["latent_shape"]) == (str(tiny_model_path), [3, 16, 16])


def test_a_demo_does_not_write_over_other_work(cli, workspace) -> None:
    before = (workspace / "calibration.safetensors").read_bytes()
    assert_sentence(cli("demo", "-w", workspace), "another --workspace")
    assert (workspace / "calibration.safetensors").read_bytes() == before


def test_a_demo_is_of_an_embedded_model(cli, tmp_path) -> None:
    assert_sentence(
        cli("demo", "-w", tmp_path, "--model", "mine.ckpt"), "optimize --model mine.ckpt --speedup 5 --quick"
    )


def test_results_that_are_not_finite_are_refused(cli, workspace, tmp_path) -> None:
    """Finite weights can overflow; black pictures and infinite fidelity would pass for a result."""
    tensors = load_file(write_tiny_model(tmp_path / "tiny.safetensors", seed=0))
    tensors["final_layer.linear.weight"] *= 1e38
    with safetensors.safe_open(tmp_path / "tiny.safetensors", framework="pt") as file:
        metadata = file.metadata() | {"tensors_sha256": tensors_sha256(tensors)}
    save_file(tensors, tmp_path / "hot.safetensors", metadata)
    hand = Schedule.uniform(SamplingSpec(num_steps=6), 3)
    hand.save(tmp_path / "hand.json")
    line = ["--backend", "torch", "--model", tmp_path / "hot.safetensors", "--schedule", tmp_path / "hand.json"]
    assert_sentence(cli("sample", "-w", tmp_path / "hot", *line), "NaN or infinity")
    assert not list(tmp_path.rglob("*.png"))


def test_a_shorter_run_leaves_no_pictures_of_a_longer_one(cli, workspace) -> None:
    for images, told in ((5, "5 images,"), (1, "1 image,")):
        ran = cli("sample", "-w", workspace, "-n", images)
        assert (ran.code, ran.out.startswith(told)) == (0, True)
        assert len(list((workspace / "samples").glob("0*.png"))) == images
