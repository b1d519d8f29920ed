"""Options that commands share: paths, devices, latents; and what is checked before a model is read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import get_type_hints

import pytest
import torch
import typer.main
from conftest import assert_sentence
from typer.core import TyperArgument

from ddt_accel import load_model
from ddt_accel.cli.app import app
from ddt_accel.cli.options import check_device, parse_latent_shape
from ddt_accel.errors import ConfigError

COMMANDS = typer.main.get_command(app).commands  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", COMMANDS)
def test_every_path_may_begin_with_the_users_folder(name: str, monkeypatch, tmp_path) -> None:
    """Of every command, as `--out='~/x'` or `--out=~/x` hand it over unexpanded."""
    monkeypatch.setenv("HOME", str(tmp_path))
    command = COMMANDS[name]
    kinds = get_type_hints(command.callback)
    paths = [one for one in command.params if kinds.get(str(one.name)) in (Path, Path | None)]
    seen: dict[str, object] = {}
    monkeypatch.setattr(command, "callback", lambda **values: seen.update(values))
    line: list[str] = []
    for one in paths:
        line += ["~/x"] if isinstance(one, TyperArgument) else [one.opts[0], "~/x"]
    command.main(line, standalone_mode=False)
    assert {str(seen[str(one.name)]) for one in paths} == {str(tmp_path / "x")}


@pytest.mark.parametrize("text", ["3,28,28", "3x28x28", "3 × 28 × 28", "[3, 28, 28]", "(3,28,28)", "3 28 28"])
def test_latents_as_people_write_them(text: str) -> None:
    assert parse_latent_shape(text) == (3, 28, 28)


@pytest.mark.parametrize("text", ["", "3", "3,28", "3,28,28,1", "3,28,0", "-3,28,28", "3,28,a", "3;28;28", "3,,28,28"])
def test_other_latents_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="--latent-shape is"):
        parse_latent_shape(text)


@pytest.mark.parametrize("device", ["mps", "tpu", "xpu:0", "cuda:-1", "cuda:x", "cuda:0:0", "gpu"])
def test_devices_that_are_not_supported(device: str) -> None:
    with pytest.raises(ConfigError, match=rf"--device is {device}, which is not supported; here you have cpu"):
        check_device(device)


def test_devices_by_number() -> None:
    assert check_device("CPU") == "cpu"
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    wrong = f"cuda:{count}"
    with pytest.raises(ConfigError, match=f"--device is {wrong}, .*no.* GPU; here you have cpu"):
        check_device(wrong)
    for index in range(count):
        assert check_device(f"cuda:{index}") == f"cuda:{index}"
        assert torch.cuda.current_device() == index


CHECKED_FIRST = {
    "device": (["calibrate", "--device", "mps"], "not supported"),
    "device of sample": (["sample", "--backend", "torch", "--device", "mps"], "not supported"),
    "device of fit": (["fit", "--device", "cuda:99"], "cuda:99"),
    "latents": (["export", "--latent-shape", "3"], "--latent-shape"),
    "precision": (["export", "--precision", "int4"], "fp16"),
    "precision of a fit": (["fit", "--precision", "int4"], "bf16 or fp32"),
    "sources": (["export", "--sources", "7"], "0 to 3"),
    "batches": (["export", "--trt", "--batch", "8:1:8"], "8:1:8"),
    "samples": (["calibrate", "--samples", "0"], "--samples"),
    "solver": (["calibrate", "--solver", "ddim"], "--solver"),
    "a place to write": (["calibrate", "--out", "/dev/null/x"], "could not be written"),
    "a place to export to": (["export", "--out", "/dev/null/x"], "could not be written"),
}


@pytest.mark.parametrize("mistake", CHECKED_FIRST)
def test_mistakes_are_found_before_a_model_is_read(cli, solved, tmp_path, mistake: str) -> None:
    """The model is none: whoever read it first would complain about it."""
    (tmp_path / "model.ckpt").write_bytes(b"no model")
    arguments, said = CHECKED_FIRST[mistake]
    ran = cli(*arguments, "--model", tmp_path / "model.ckpt", "-w", solved)
    assert_sentence(ran, said)
    assert "model.ckpt" not in ran.err


def test_messages_speak_the_command_line(cli, solved, tiny_model_path) -> None:
    """No name of Python's in what is said to somebody who typed options."""
    for arguments in (
        ["calibrate", "--steps", 0], ["calibrate", "--guidance-interval", 1, 0], ["calibrate", "--timeshift", 0],
        ["calibrate", "--last-step", 2], ["calibrate", "--steps", 10000, "--last-step", "1e-9", "--timeshift", 1000],
        ["fit", "--held-out", 1], ["fit", "--learning-rate", 7], ["fit", "--reference-steps", 1],
        ["fit", "--sources", 9], ["solve", "--budget", 0], ["solve", "--target-speedup=-1"],
        ["export", "--optimization-level", 9],
    ):  # fmt: skip
        ran = cli(*arguments, "-w", solved)
        assert ran.code == 2, ran
        assert "_" not in ran.err.replace(str(solved), "")


def test_the_embedded_model_is_said_before_work(cli, tmp_path) -> None:
    line = ["calibrate", "--steps", 1, "--samples", 1, "--sensitivity-samples", 0, "-w", tmp_path / "new"]
    ran = cli(*line)
    assert ran.code == 0
    told = ran.err.splitlines()
    assert any(line.endswith("taking the embedded model cifar10.") for line in told[:2])
    assert "embedded" not in cli(*line).err  # the workspace has its calibration


def test_where_something_was_written_is_in_the_hint(cli, tiny_model_path, tmp_path) -> None:
    out = tmp_path / "my calibration.safetensors"
    line = ["calibrate", "--model", tiny_model_path, "--steps", 2, "--samples", 1, "-w", tmp_path / "w", "--out", out]
    assert f"ddt-accel solve --budget 1 --calibration '{out}' -w {tmp_path / 'w'}" in cli(*line).out


@pytest.mark.slow
def test_fit_says_what_it_chose_and_goes_on(cli, solved, tiny_model_path, monkeypatch) -> None:
    """Ctrl-C after the first look; the same command again continues there and tells steps, runs and cost."""
    from ddt_accel.fitting.fit import LOOK_EVERY, Fitter

    line = ["fit", "--model", tiny_model_path, "-w", solved, "--iterations", LOOK_EVERY + 1, "--images", 4,
            "--held-out", 4, "--reference-steps", 16, "--steps", 4, "--budget", 2, "--batch-size", 4,
            "--json"]  # fmt: skip
    step, done = Fitter._step, []

    def interrupted(self, descent, targets) -> None:
        if len(done) == LOOK_EVERY:
            raise KeyboardInterrupt
        done.append(step(self, descent, targets))

    with monkeypatch.context() as patched:
        patched.setattr(Fitter, "_step", interrupted)
        ran = cli(*line)
    assert (ran.code, ran.out) == (130, "")
    assert "the fit so far are kept in" in ran.err
    assert "Found to start from: 4 steps of" in ran.err
    state = json.loads(cli("status", "-w", solved, "--json").out)["interrupted_fits"]
    assert state["state.safetensors"] == LOOK_EVERY
    ran = cli(*line)
    assert ran.code == 0, ran.err
    made = json.loads(ran.out)
    assert (made["steps"], made["encoder_runs"] <= 2) == (4, True)
    assert 0 < made["cost"] < 4 / 6 + 0.01
    assert not list((solved / "fit").glob("state*"))
    assert load_model(tiny_model_path) is not None
    assert Path(made["schedule"]) == solved / "schedule.json"
